"""Measurements, side by side in one run: atomik, its peers, and the same system calls by hand.

    python -m tests.benchmarks                       everything, written to docs/explanation/performance.md
    python -m tests.benchmarks --quick --output -    a small run, printed

Nothing here asserts a time.  What must not regress is counted instead, in tests/promises/test_counts.py.

by_hand   the limit: the bare system calls, as a careful programmer would write them
peers     other libraries, and atomik 0.0.3 under another name
cases     what is measured
places    where: loop mounts on a disk file of ext4, xfs and btrfs, and tmpfs
timing    interleaved rounds, medians
report    the table, the plots, the page
"""
