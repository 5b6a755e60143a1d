"""The same crashes for other packages: ``python -m tests.peers``, with the versions of the extra ``peers``.

Each package does the same work in its own way, is killed before each call that changes a name, and recovered in its own way.
Those that promise durability are cut from power as well.
"""
