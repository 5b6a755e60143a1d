"""Content by descriptor: everything that reads files and folder trees, or changes their content.

In: open folders (`Directory`) and names in them (`Place`).  Out: copies, values to compare, or nothing but the effect; and
errors of atomik's own classes with the whole path.

`walk` goes down and up a tree, and the others use it: `delete`, `sync`, `clone`, `compare`, `fingerprint`.  `content` copies
the bytes of one file, `metadata` what it carries besides.

Never here: a link followed, a mount crossed, recursion, descriptors that grow with the tree, an object that is more open
than its original, a decision about destinations.
"""
