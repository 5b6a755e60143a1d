"""Every crash of every small transaction, within a bound that is stated, on the code itself.

`memory` is a kernel whose one disk keeps what was synced and, of the rest, anything; `crashes` gives every disk that a power
cut can leave; `transactions` every transaction of up to three items; `explore` recovers each disk, cuts that recovery at
every call too, and so on until no new disk appears.  ``python -m tests.exhaustive`` does it for all; `test_exhaustive` for
few.
"""
