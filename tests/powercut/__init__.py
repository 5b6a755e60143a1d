"""Power cuts on real filesystems: every crash state of recorded histories, and a gate that proves the suite has teeth.

histories   what is done to a tree (write, fill, link, remove, move), the same as a pure function on a dictionary
workloads   named histories, and random ones from a seed
noise       what other programs do between the swaps: kernels that sync something at awkward moments
strict      the strictest disk there can be, as a kernel: nothing lasts that was not synced by name
mutants     the library with one barrier, or one rule of order, taken out
tape        record a history on a real filesystem; judge each crash state; cut the recovery in its turn
gate        which mutant a crash state gives away, on which filesystem
campaign    many recordings within a time: counts, and the first finding in a form that can be replayed
figures     the counts, written into the documentation
__main__    ``python -m tests.powercut --seed 7 --minutes 30``

The promise under test, for each crash state: mount it, run ``recover()``, and find all old or all new, and new if
``commit()`` had returned; content byte for byte; nothing left over; recovery repeated finds nothing to do.
"""
