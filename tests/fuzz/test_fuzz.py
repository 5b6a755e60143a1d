"""The rules of the fuzz targets for the seeds, and for some inputs that Hypothesis makes of them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.fuzz.targets import TARGETS, seeds

SEEDS = {name: list(seeds(name)) for name in TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_good_is_accepted(name: str) -> None:
    """Every seed keeps the rules, also with a byte changed or taken away."""
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for at in range(0, len(seed), 7):
            TARGETS[name](seed[:at] + bytes([seed[at] ^ 1]) + seed[at + 1 :])
            TARGETS[name](seed[:at] + seed[at + 1 :])


@pytest.mark.parametrize("name", ["journal", "change-set"])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_keep_the_rules(name: str, data: st.DataObject) -> None:
    """Bytes as they come, and seeds with a piece replaced."""
    seed = data.draw(st.sampled_from(SEEDS[name]))
    at = data.draw(st.integers(0, len(seed)))
    piece = data.draw(st.binary(max_size=40))
    TARGETS[name](data.draw(st.sampled_from([piece, seed[:at] + piece + seed[at + len(piece) :]])))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=30), st.sampled_from([b"\0", b"\x60"]))
def test_any_words_keep_the_rules(words: bytes, how: bytes) -> None:
    """A command line of any words, and of atomik's own in any order."""
    TARGETS["command-line"](how + words)
