"""The operating system, and nothing else: files and how to access them, reusable memory, what the host has of it."""
