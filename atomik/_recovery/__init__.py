"""Recovery of what dead processes left, and readers, who must not see half of it.

* `unfinished_journal`: from a journal that was found to its folders, trusted or refused, and locked.
* `takeover`: undoes or finishes that transaction, and cleans up.  `leftovers`: what no journal mentions.
* `recover`, `reading`: what users call.

Folders go in; a report of what was done comes out.  Nothing is guessed: what carries no recorded identity is left alone.
"""
