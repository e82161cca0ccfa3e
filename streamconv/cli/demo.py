"""The demo: convert a small generated model both ways, and measure every claim from outside."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from .. import testing as samples
from ..checkpoint import LazyTensor
from ..checkpoint import open as open_checkpoint
from ..errors import BudgetError, InternalError, StreamconvError, UsageError, VerificationError, storage_error
from ..families import find
from ..storage.memory import peak_bytes
from ..text import format_size, quote, setting
from ..units import parse_size

Say = Callable[[str], object]

_CONFIG = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 8000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_SHARD = 100_000_000
_ROWS = 1024
_POLL = 0.01


def run(keep: str | None, max_mem: str, say: Say) -> None:
    """Run the demo, in `keep` or a temporary directory.

    Raises:
        StreamconvError: a step failed, or a claim does not hold.
    """
    limit = parse_size(max_mem, setting("max_mem"))
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="streamconv-demo-") as temporary:
            _run(Path(temporary), limit, max_mem, say)
            say("the files were removed; --keep DIR keeps them")
        return
    folder = Path(keep)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise storage_error(error, "cannot use", folder) from error
    if not empty:
        raise UsageError(f"{quote(keep)} is not empty", "give --keep a new directory")
    _run(folder, limit, max_mem, say)


def _run(folder: Path, limit: int, max_mem: str, say: Say) -> None:
    source, there, back = folder / "mixtral-hf", folder / "mixtral-ms", folder / "mixtral-back"
    family = find("mixtral")
    specs = samples.hf_specs(family, _CONFIG)
    try:
        samples.write_hf(source, _CONFIG, specs, _SHARD)
    except OSError as error:
        raise storage_error(error, "cannot write", source) from error
    stacked = 8 * max(spec.nbytes for spec in specs if ".experts." in spec.name)
    say(
        f"made {quote(source)}: a Mixtral of {len(specs)} tensors, {format_size(sum(s.nbytes for s in specs))}, "
        f"random values; each stack of experts has {format_size(stacked)}, the memory limit is {format_size(limit)}"
    )
    _step(say, limit, "convert", source, there, "-o", "use_gmm=true", "--max-mem", max_mem)
    _step(say, limit, "verify", there)
    _step(say, limit, "verify", source, there, "--max-mem", max_mem)
    _step(say, limit, "convert", there, back, "--reverse", "--max-mem", max_mem)
    first, second = _digest(source), _digest(back)
    say(f"all tensors of the source: xxh3 {first}\nall tensors come back:     xxh3 {second}")
    if first != second:
        raise VerificationError("converting back gave other bytes")
    say("names, shapes, dtypes and bytes are the same")


def _step(say: Say, limit: int, *words: str | Path) -> None:
    """Run a command in a process of its own and measure its memory from outside."""
    arguments = [str(word) for word in words]
    say(f"$ streamconv {shlex.join(arguments)}")
    command = [sys.executable, "-m", "streamconv", *arguments, "--quiet", "--json"]
    started = time.monotonic()
    with _started(command) as process:
        peak = _watch(process)
        output = process.stdout.read() if process.stdout else ""
    seconds = time.monotonic() - started
    if process.returncode:
        failed = StreamconvError(f"the step above ended with exit code {process.returncode}")
        failed.exit_code = process.returncode if process.returncode > 0 else 1
        raise failed
    report = json.loads(output)
    size = report.get("written_bytes", report.get("bytes", 0))
    say(f"  {format_size(size)} in {seconds:.1f} s, peak memory {format_size(peak)} of {format_size(limit)} allowed")
    if peak > limit and "--max-mem" in arguments:
        raise InternalError(f"peak memory {peak} is above the limit of {limit} bytes")


def _started(command: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise BudgetError(
            f"the system refuses a process for the step above: {error.strerror or error}",
            "raise the limit on processes (ulimit -u, or the container's pids limit), or run the steps by hand",
        ) from error


def _watch(process: subprocess.Popen[str]) -> int:
    """Return the largest `VmHWM` seen while the process runs, in bytes."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_bytes(process.pid))
        time.sleep(_POLL)
    return peak


def _digest(path: Path) -> str:
    """Return one digest over names, dtypes, shapes and bytes of all tensors of a checkpoint."""
    digest = xxhash.xxh3_128()
    checkpoint = open_checkpoint(path)
    for name in sorted(checkpoint):
        tensor = checkpoint[name]
        digest.update(f"{name} {tensor.dtype_name} {tensor.shape}".encode())
        _update(digest, tensor)
    return digest.hexdigest()


def _update(digest: xxhash.xxh3_128, tensor: LazyTensor) -> None:
    for begin in range(0, tensor.shape[0], _ROWS):
        digest.update(tensor[begin : begin + _ROWS].tobytes())
