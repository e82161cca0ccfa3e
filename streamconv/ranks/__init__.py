"""Checkpoints of many ranks: how a training cuts tensors, who holds which slice, and the slices as whole tensors."""
