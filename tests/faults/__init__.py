"""Every fault once, at every system call: see __main__.py."""
