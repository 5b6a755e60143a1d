"""The parsers of what others wrote - a journal, a change set, a command line - against any bytes at all.

`targets` says what must hold for every input.  Hypothesis tries some in the suite (`test_fuzz`); ``python -m tests.fuzz``
lets a coverage-guided fuzzer try millions.
"""
