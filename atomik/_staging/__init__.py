"""Outputs on their way in: one module for each method of `Transaction`, named like it, and what they share.

* `item` is their contract; `intake` accepts them; `checks`, `destinations` and `companions` refuse early what cannot work.
* `workspace` has the held folders, the private folders and the slots of one transaction.
* `written` is what `path` and an `in_place` folder have in common, `existing` what `move`, `exchange`, `removal` have.

Paths and options go in; something to write to comes out, and for the commit items that are complete.  Nothing here publishes.
"""
