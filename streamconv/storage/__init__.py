"""The operating system, and nothing else: every call on files, how a file system is accessed, reusable memory."""
