"""The protocol as a model that SPIN checks exhaustively, and each of its rules replayed on the code.

``protocol.pml`` is the model.  `rules` lists what can be taken out of it, and for each the mutation of the library that does
the same; `spin` runs the checker.  ``python -m tests.model`` does all of it.
"""
