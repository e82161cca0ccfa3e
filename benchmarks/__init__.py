"""Benchmarks: `python -m benchmarks` on the host at hand, in interleaved rounds, with peak memory seen from outside."""
