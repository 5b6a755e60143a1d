"""Journals as bytes, for tests that write them themselves."""

from __future__ import annotations

import struct
from hashlib import blake2b

from atomik._protocol.records import HEAD_SIZE, VERSION, Intent, encode


def encode_intent(intent: Intent) -> bytes:
    """The bytes of an intent record."""
    count = len(intent.steps)
    return b"".join(
        encode(intent.txid, intent.journal, intent.folders, lambda: intent.steps, count, intent.coordinator)
    )


def record(kind: int, payload: bytes, version: int = VERSION, magic: bytes = b"AtmK") -> bytes:
    """A record as someone else might write it, with a right checksum, which does not authenticate."""
    payload += bytes(-(HEAD_SIZE + len(payload) + 16) % 64)
    body = struct.pack("<4sHHQ", magic, version, kind, len(payload)) + payload
    return body + blake2b(body, digest_size=16).digest()
