"""Content by descriptor: everything that reads files and folder trees, or changes their content.

In: open folders (`Directory`) and names in them (`Place`).  Out: copies, values to compare, or nothing but the effect; and
errors of atomik's own classes with the whole path.

`walk` goes down and up a tree, and the others use it: `delete`, `sync`, `clone`, `compare`, `fingerprint`, `changes`.
`content` copies the bytes of one file, `metadata` everything else that belongs to it.  `layer` and `several_names` read what
a program changed through an overlay.

Nothing here follows a link, crosses a mount or recurses.  The number of descriptors does not grow with the tree, no copy is
more open than its original, and nothing is decided about destinations.
"""
