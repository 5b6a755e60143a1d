"""The way of a child into a namespace: what it checks, and what it tells."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from atomik._system import kernel
from atomik._system.namespace import Answer, Entrance, Process, View
from tests.support.users import CHOWN, DAC_OVERRIDE, SYS_ADMIN, root, without

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    for name in ("shown", "hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    fd = os.open(tmp_path, os.O_RDONLY)
    keys = [(found.st_dev, found.st_ino) for found in (os.stat(tmp_path / name) for name in ("shown", "hidden"))]
    found = View(fd, "shown", "hidden", keys[0], keys[1], str(tmp_path / "hidden"))
    with Entrance(found) as entrance:
        answer = entrance.try_it()
    if answer is None or answer.failed in ("unshare", "userns", "map", "private"):
        os.close(fd)
        pytest.skip(f"no namespaces here: {answer}")
    yield found
    os.close(fd)


def test_a_program_sees_one_in_the_place_of_the_other(view: View, tmp_path: Path) -> None:
    """By the path and as working folder; nobody else does."""
    with Entrance(view) as entrance:
        said = subprocess.check_output(["sh", "-c", f"cat file {tmp_path}/hidden/file"], preexec_fn=entrance.enter)
        assert entrance.answer() == Answer("", 0)
    assert said == b"shownshown"
    assert (tmp_path / "hidden/file").read_text() == "hidden"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shown": (1, 1)}, Answer("folder", errno.ESTALE)),
        ({"hidden": (1, 1)}, Answer("folder", errno.ESTALE)),
        ({"source": "link"}, Answer("folder", errno.ENOTDIR)),
        ({"target": "link"}, Answer("folder", errno.ENOTDIR)),
        ({"source": "none"}, Answer("folder", errno.ENOENT)),
        ({"cwd": "/none"}, Answer("cwd", errno.ENOENT)),
    ],
)
def test_what_somebody_swapped(view: View, tmp_path: Path, changed: dict[str, Any], said: Answer) -> None:
    """Another folder, or a link, at one of the paths: no program runs, and the answer says which step failed."""
    os.symlink("shown", tmp_path / "link")
    with Entrance(view._replace(**changed)) as entrance:
        with pytest.raises(subprocess.SubprocessError):
            subprocess.run(["touch", tmp_path / "ran"], preexec_fn=entrance.enter)
        assert entrance.answer() == said
        assert entrance.members() == []
    assert not (tmp_path / "ran").exists()


@root
def test_root_of_a_container_gains_nothing(view: View) -> None:
    """User 0 that may not create a mount namespace gets a user namespace as well, but no capability that it did not have."""

    def work() -> bool:
        kernel.port.bound([CHOWN, DAC_OVERRIDE])
        look = ["grep", "Cap[PEB]", "/proc/self/status"]
        with Entrance(view) as entrance:
            inside = subprocess.check_output(look, preexec_fn=entrance.enter)
        return inside == subprocess.check_output(look)

    assert without([SYS_ADMIN], work) == "True"


def test_members(view: View) -> None:
    """Those in the namespace, as long as they live; signals reach them and nobody else."""
    with Entrance(view) as entrance, Entrance(view) as another:
        assert entrance.members() == []
        first = subprocess.Popen(["sleep", "60"], preexec_fn=entrance.enter)
        second = subprocess.Popen(["sleep", "60"], preexec_fn=another.enter)
        assert entrance.members() == [Process(first.pid, "sleep")]
        assert another.members() == [Process(second.pid, "sleep")]
        assert {process.pid for process in entrance.members(os.getpid())} >= {first.pid, second.pid}
        entrance.send(Process(second.pid, "sleep"), signal.SIGKILL)
        entrance.send(Process(first.pid, "sleep"), signal.SIGTERM)
        assert first.wait() == -signal.SIGTERM
        assert second.poll() is None
        entrance.send(Process(first.pid, "sleep"), signal.SIGTERM)  # gone
        another.send(Process(second.pid, "sleep"), signal.SIGKILL)
        assert second.wait() == -signal.SIGKILL
        assert (entrance.members(), another.members()) == ([], [])
