"""Benchmarks: `python -m benchmarks` on the host at hand, in interleaved pairs, with peak memory seen from outside."""
