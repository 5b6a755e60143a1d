"""The rules of the protocol, one by one: what it is, how it is taken out of the model, and what does the same to the library.

A rule about a barrier, or about an order, has a mutant of `tests.powercut.mutants`, which the strictest disk gives away.  The
others have a replay: a change of the library's code, and what then goes wrong on a real filesystem.
"""

from __future__ import annotations

from attrs import define


@define(frozen=True)
class Rule:
    """``number`` in the model; ``text`` says what holds; ``mutant`` or ``replay`` how the code is spoilt."""

    number: int
    name: str
    invariant: str
    text: str
    mutant: str = ""
    replay: str = ""
    crashes: int = 1


RULES = (
    Rule(1, "NO_B1_CONTENT", "I1", "what is staged is durable before the first swap", mutant="content"),
    Rule(2, "NO_B1_JOURNAL", "I1", "the journal is durable before the first swap", mutant="journal"),
    Rule(3, "NO_B1_PARENTS", "I1", "so are the journal's names", mutant="parents"),
    Rule(4, "JOURNAL_IN_ONE", "I1", "the journal has a name in every folder", replay="journal_in_one"),
    Rule(5, "NO_B2", "I2", "the swaps are durable before the commit returns", mutant="B2"),
    Rule(6, "B2_AFTER_B3", "I2", "the swaps are durable before the mark is", mutant="B2-after-B3"),
    Rule(7, "NO_B3", "I3", "the mark is durable before the commit returns", mutant="B3"),
    Rule(
        8, "DISPLACED_EARLY", "I3", "what was displaced is deleted after the mark is durable", mutant="displaced-early"
    ),
    Rule(9, "STAGED_EARLY", "I3", "what was staged is deleted after the rollback is durable", mutant="staged-early"),
    Rule(10, "NO_UNDO_SYNC", "I2", "a rollback is durable before it is recorded", mutant="rollback-names"),
    Rule(11, "NO_UNDONE", "I3", "a rollback is recorded", mutant="undone"),
    Rule(12, "NO_UNDONE_SYNC", "I3", "that record is durable before the journal goes", mutant="undone-sync"),
    Rule(
        13,
        "NO_RECOVERY_SYNC",
        "I2",
        "recovery's undo is durable before it is recorded",
        mutant="recovery-names",
        crashes=2,
    ),
    Rule(14, "NO_RECOVERY_RECORD", "I3", "recovery records the outcome", mutant="recovery-record", crashes=2),
    Rule(
        15, "TRUST_OUTCOME", "I3", "recovery makes an outcome durable that it finds", replay="trust_outcome", crashes=2
    ),
    Rule(16, "UNDO_FORWARD", "I5", "steps are undone in reverse", replay="undo_forward"),
    Rule(17, "NO_IDENTITY", "I4", "undo touches only what has a recorded identity", replay="no_identity"),
    Rule(18, "NO_CHECK", "I4", "what came out of each swap is compared", replay="no_check"),
    Rule(19, "NO_RETURN", "I4", "recovery gives back what came out and was not compared", replay="no_return"),
    Rule(20, "NO_STRANDED", "I3", "an original that cannot go back is kept", replay="no_stranded"),
    Rule(21, "NO_LOCK", "I8", "a commit locks out readers", replay="no_lock"),
    Rule(22, "NO_HOT", "I8", "a reader looks for a journal under its lock", replay="no_hot"),
    Rule(
        23, "NO_NEVER_PREPARED", "I4", "without its name in every folder, nothing was swapped", replay="never_prepared"
    ),
    Rule(24, "CREATE_RETURNS", "I4", "what is in a shared slot belongs to the step before", replay="create_returns"),
)

#: No counterexample on the disk of the model: a rename there is whole, so a slot's first name is never missed.  The library
#: syncs it nevertheless, for disks where that is not so; the strictest disk demands it (the mutant "private folders").
NEEDLESS = Rule(
    25, "NO_B1_SLOTS", "I1", "the names of the slots are durable before the first swap", mutant="private folders"
)
