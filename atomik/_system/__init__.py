"""Every system call, and nothing else: the port, its bindings, and what a fork changes."""
