"""atomik on real filesystems: what holds where, and what is refused where it cannot hold.

scenarios      the core suite: small stories over one folder, each with the state before and after
grounds        where they are played: the lab's filesystems, layers of an overlay, kernels that lack something
cells          plays one scenario on one ground and says what came of it
everywhere     more of them: servers, sandboxes, old kernels, several at once; each played as a whole
foretold       what the doctor's answers mean for each scenario
table          ``python -m tests.filesystems.table``: writes docs/reference/capabilities.md from a run
test_core      every cell, against what is expected of it
"""
