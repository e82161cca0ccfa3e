"""Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory."""
