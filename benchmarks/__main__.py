"""streamconv against `cp` of the bytes it writes, cold cache, until synced: median ratio of interleaved pairs.

    python -m benchmarks [--folder DIR] [--pairs 5] [--max-mem 512M]

Needs some 4 GB in DIR. Ratios are what to quote: the two of a pair run one after the other on the same machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from streamconv import samples
from streamconv.families import find

_CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "num_local_experts": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_CASES = {
    "same dtype": [],
    "bf16 -> fp16": ["--dtype", "fp16"],
    "widened to fp32": ["--dtype", "fp32"],
    "transposed experts": ["-o", "use_gmm=true"],
}


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: the temporary directory)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--max-mem", default="512M")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "source"
        samples.write_hf(source, _CONFIG, samples.hf_specs(find("mixtral"), _CONFIG), 500_000_000)
        print(f"{'case':20} {'streamconv s':>14} {'cp s':>8} {'ratio (min median max)':>24}")
        for name, words in _CASES.items():
            print(
                _case(name, source, Path(folder), [*words, "--max-mem", arguments.max_mem], arguments.pairs), flush=True
            )


def _case(name: str, source: Path, folder: Path, words: list[str], pairs: int) -> str:
    ours, theirs = [], []
    for _ in range(pairs):
        dest, copy = folder / "dest", folder / "copy"
        command = [sys.executable, "-m", "streamconv", "convert", str(source), str(dest), *words, "--quiet"]
        ours.append(_timed(lambda c=command: _run(c), source))  # type: ignore[misc]
        theirs.append(_timed(lambda d=dest, c=copy: _run(["cp", "-r", str(d), str(c)]), dest))  # type: ignore[misc]
        shutil.rmtree(dest)
        shutil.rmtree(copy)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    spread = f"{ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f}"
    return f"{name:20} {statistics.median(ours):14.2f} {statistics.median(theirs):8.2f} {spread:>24}"


def _timed(work: Callable[[], object], cold: Path) -> float:
    """Seconds until everything is synced, with the files in `cold` dropped from the page cache first."""
    for path in cold.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    os.sync()
    started = time.monotonic()
    work()
    os.sync()
    return time.monotonic() - started


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
