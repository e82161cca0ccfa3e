"""The only stage that touches tensor data: boxes, the memory budget, reading, casting, worker threads."""
