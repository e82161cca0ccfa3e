"""Benchmarks: `python -m benchmarks` measures this host in interleaved rounds, with peak memory polled from outside."""
