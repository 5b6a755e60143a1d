"""Every system call, and nothing else.

* `kernel`: the port.  One method, one call; what an errno means is decided by the callers, with `kernel.errno_of`.
* `libc`: the calls that `os` does not offer, by ctypes; `machine`: their numbers, by machine and pointer size.
* `forked`: what a forked child must give up; `descriptors`: room for many open folders; `namespace`: a child's own mounts.

Descriptors and names go in; descriptors, values and OSError come out.  Nothing here knows what a transaction is.
"""
