"""The tests of each module: `tests/unit/<room>/test_<module>.py` mirrors the package, without the rooms' underscores."""
