"""What a name in single backticks means in a docstring: a link if it is public, else code.

Docstrings are read in a terminal first, where `recover` says more than a role with a path; here the path is found.
"""

from __future__ import annotations

import enum
import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref

import atomik
import atomik.rename
import atomik.testing


def _public() -> dict[str, str]:
    """Short name → where it is documented."""
    found = {"Recovered": "atomik.Recovered", "Promise": "atomik.Promise"}  # part of what is returned
    for module in (atomik.testing, atomik.rename, atomik.errors, atomik):
        for name in module.__all__:
            if inspect.ismodule(value := getattr(module, name)):
                continue
            home = "atomik.errors" if module is atomik and name == "AtomikError" else module.__name__
            home = "atomik.flags" if name in ("Flag", "Mode") else home
            found[name] = found[f"{home}.{name}"] = f"{home}.{name}"
            if inspect.isclass(value) and not issubclass(value, enum.Enum) and home in ("atomik", "atomik.testing"):
                methods = {member for member in dir(value) if not member.startswith("_")}
                found |= {f"{name}.{member}": f"{home}.{name}.{member}" for member in methods}
    return found


def _role(*given: Any) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    _name, rawtext, text, _line, inliner = given[:5]
    code = nodes.literal(rawtext, text, classes=["code"])
    target = _PUBLIC.get(text.removesuffix("()"))
    if target is None:
        return [code], []
    reference = pending_xref(
        rawtext, code, refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=True,
        refdoc=inliner.document.settings.env.current_document.docname,
    )  # fmt: skip
    return [reference], []


def _several(_app: Any, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """``:param a, b:`` speaks of two parameters; Sphinx would take the first for the type of the second."""
    lines[:] = [
        re.sub(r"(?<=:param )\w+(, \w+)+(?=:)", lambda names: names[0].replace(" ", ""), line) for line in lines
    ]


_PUBLIC = _public()


def setup(app: Any) -> dict[str, bool]:
    app.add_role("name", _role)
    app.add_config_value("names_role", "name", "env")
    app.connect("autodoc-process-docstring", _several)
    app.connect("builder-inited", lambda app: setattr(app.config, "default_role", "name"))
    return {"parallel_read_safe": True}
