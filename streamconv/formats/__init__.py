"""On-disk formats, a module each: bytes to tensor references, and tensors to be written to bytes."""
