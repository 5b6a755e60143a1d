"""A held folder: a name in it, its locks, the way to it, and what is known of its filesystem and mounts."""
