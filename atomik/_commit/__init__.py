"""From sealed outputs to published ones, or all back.

* `plan`: what was asked for and what was found, to steps; pure.  `preview` shows it.
* `commit`: carries the steps out; its diagram is the order of everything.  `barriers`: which syncs make it durable.
* `machinery`: what only a commit with a journal needs.  `later`: displaced folders are deleted by a thread.

Items go in, and what was published comes out, or an exception with everything as it was.  No user code runs under the locks
except the progress function and listeners of the log.
"""
