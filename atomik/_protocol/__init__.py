"""What a commit and a recovery share, so that both do the same to the same names.

* `step`: one change of one name.  `publish` does it, by the best method that a filesystem has; `undo` takes it back.
* `journal` on disk, its bytes in `records`; `private_folder` with the slots in it, `resumable` if it outlives its process.
* `locks` of all folders together; `trial` of what a filesystem does with names.

Held folders and identities go in.  Nothing here asks a user's options, or decides by anything but identities (I13).
"""
