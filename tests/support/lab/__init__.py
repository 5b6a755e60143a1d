"""The laboratory of the test suite: real filesystems, servers and power cuts on demand.

It knows nothing of the library under test. Where to look:

namespace      a private mount namespace and scratch folder; reasons to skip
mounts         a fresh folder on any of FILESYSTEMS; bind, second and read-only mounts
fuse           the FUSE protocol over /dev/fuse, without libfuse
passthrough    a FUSE filesystem that honours, rejects or ignores rename flags; bindfs
recorder       a disk that logs every write, flush and mark
crash_states   from such a log, the states a power cut can leave
crash_images   disk images of these states, mounted
shutdown       a filesystem that stops as if the power were cut
strace         system calls counted, killed or failed from outside
need           skip a test with the reason that one of the above gave
residue        what is mounted, attached or connected on the machine, to compare before and after

Everything mounted is private to the process and is let go when it ends, also by
SIGKILL. Most of it needs root: each module says by a ``missing…()`` function why
it cannot serve, in words fit for ``pytest.skip``.
"""
