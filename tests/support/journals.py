"""Journals as bytes, for tests that write them themselves."""

from __future__ import annotations

from atomik._protocol.records import Intent, encode


def encode_intent(intent: Intent) -> bytes:
    """The bytes of an intent record."""
    count = len(intent.steps)
    return b"".join(
        encode(intent.txid, intent.journal, intent.folders, lambda: intent.steps, count, intent.coordinator)
    )
