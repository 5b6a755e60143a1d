"""Journals as bytes, for tests that write them themselves."""

from __future__ import annotations

from atomik._protocol.records import Intent, encode


def encode_intent(intent: Intent) -> bytes:
    """The bytes of an intent record."""
    steps = len(intent.steps)
    return bytes(encode(intent.txid, intent.journal, intent.folders, intent.steps, steps, intent.coordinator))
