"""A held folder: how it is reached, the names in it, its locks, and the filesystem that it is on.

* `directory`: a folder held open.  `place`: a name in it, and what can be done with two of them.  `lock`: its flock(2).
  `pin`: the sign that a reader uses it.
* `paths`, `resolve`: from a user's path to an open folder, once, and not through another user's trap.
* `filesystem`, `mounts`: what is known about the filesystem, and whether a mount is in the way.

Paths go in, and descriptors come out that are never resolved again (I7).  Nothing here knows about steps, slots or journals,
or decides whether a transaction may continue.
"""
