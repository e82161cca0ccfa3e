"""What is on disk, what of it is durable, and how it gets its name: writer, digests, journal, manifest, staging."""
