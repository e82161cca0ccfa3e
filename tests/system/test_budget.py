"""I1, from outside: the peak resident memory of a conversion stays below its budget, whatever the tensors' size.

`VmHWM` is polled over the process tree of a command of its own. Tensors are larger than the budget, values random and
dense, the source is dropped from the page cache first so that the bytes read from the disk can be counted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamconv
from streamconv import prepared
from streamconv import testing as samples
from streamconv.engine import budget as budgets
from streamconv.families import find
from streamconv.units import parse_size
from support import nowhere
from support.watching import drop_from_cache, number, watch

MIB = 1 << 20
BUDGET = 160 * MIB

# Eight experts of 28 MiB in bf16: stacks of 224 MiB, larger than the budget.
CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 3584,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "num_local_experts": 8,
    "vocab_size": 2000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


IN_BUDGET = ["--max-mem", str(BUDGET)]
BF16_IN_BUDGET = [*IN_BUDGET, "--dtype", "bf16"]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("budget") / "mixtral"
    samples.write_hf(folder, CONFIG, samples.hf_specs(find("mixtral"), CONFIG), 300_000_000)
    return folder


WORDS = {
    "bf16": ["--dtype", "bf16"],
    "widened": ["--dtype", "fp32"],
    "transposed": ["--dtype", "fp16", "-o", "use_gmm=true"],
}
#: Every two of a way, a kind of destination and a number of workers meet.
PAIRS = [
    *(("bf16", "out", "1"), ("bf16", "out.ckpt", "2"), ("widened", "out", "2"), ("widened", "out.ckpt", "1")),
    *(("transposed", "out", "2"), ("transposed", "out.ckpt", "1"), ("transposed", "out.ckpt", "2")),
]


@pytest.mark.parametrize(
    ("words", "dest", "workers"), [(WORDS[way], *others) for way, *others in PAIRS], ids=map(" ".join, PAIRS)
)
def test_stacks_larger_than_the_budget(source, tmp_path, words, dest, workers) -> None:
    drop_from_cache(source)
    seen = watch(["convert", str(source), str(tmp_path / dest), *words, "--max-mem", str(BUDGET), "--workers", workers])
    assert seen.peak <= BUDGET
    assert seen.report["source_bytes"] > 4 * BUDGET
    assert seen.report["read_bytes"] <= 2 * seen.report["source_bytes"]
    assert seen.fetched <= 2 * seen.report["source_bytes"]


def test_reading_through_the_page_cache_holds_it_too(source, tmp_path) -> None:
    arguments = ["-o", "use_gmm=true", "--max-mem", str(BUDGET), "--io", "read"]
    seen = watch(["convert", str(source), str(tmp_path / "out"), *arguments])
    assert seen.peak <= BUDGET
    assert seen.report["read_bytes"] <= 2 * seen.report["source_bytes"]


def test_the_way_back_and_verification_hold_it_too(source, tmp_path) -> None:
    there, back = str(tmp_path / "ms"), str(tmp_path / "hf")
    budget = ["--max-mem", str(BUDGET)]
    watch(["convert", str(source), there, "-o", "use_gmm=true", *budget])
    for arguments in (["convert", there, back, "--reverse", *budget], ["verify", str(source), there, *budget]):
        assert watch(arguments).peak <= BUDGET
    assert watch(["verify", back]).peak <= BUDGET


def test_the_least_budget_that_is_named_suffices(source, tmp_path) -> None:
    """A budget that is too small is refused with a number, and that number holds."""
    command = [sys.executable, "-m", "streamconv", "convert", str(source), str(tmp_path / "out"), "--max-mem"]
    refused = subprocess.run([*command, "30M"], capture_output=True, text=True, check=False, cwd=nowhere())
    assert refused.returncode == 6
    assert not (tmp_path / "out").exists()
    size = refused.stderr.split("--max-mem ")[1].split()[0]
    seen = watch(["convert", str(source), str(tmp_path / "out"), "--max-mem", size, "--dtype", "fp32"])
    assert seen.peak <= parse_size(size)


# Embedding and head have 70 MiB in bf16.
LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 18_000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SMALL = 64 * MIB


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "llama"
    specs = samples.hf_specs(find("llama"), LLAMA)
    assert max(spec.nbytes for spec in specs) > SMALL
    samples.write_hf(folder, LLAMA, specs, 300_000_000)
    return folder


@pytest.mark.parametrize("words", [[], ["--dtype", "fp16", "--verify"], ["--dtype", "fp32", "--workers", "1"]])
@pytest.mark.parametrize("dest", ["out", "out.ckpt"])
def test_a_llama_in_64_mib(llama, tmp_path, words, dest) -> None:
    seen = watch(["convert", str(llama), str(tmp_path / dest), *words, "--max-mem", "64M"])
    assert seen.peak <= SMALL
    assert seen.report["source_bytes"] > 2 * SMALL


def test_the_least_budget_of_a_llama_suffices(llama, tmp_path) -> None:
    """Where no tensor is transposed, the number that is named is for small windows and boxes."""
    command = [sys.executable, "-m", "streamconv", "convert", str(llama), str(tmp_path / "out"), "--max-mem", "40M"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd=nowhere())
    assert refused.returncode == 6
    size = refused.stderr.split("--max-mem ")[1].split()[0]
    assert parse_size(size) < 76 * MIB
    seen = watch(["convert", str(llama), str(tmp_path / "out"), "--max-mem", size])
    assert seen.peak <= parse_size(size)


def test_help_is_cheap() -> None:
    command = [sys.executable, "-m", "streamconv", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=nowhere()) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, number(f"/proc/{process.pid}/status", "VmHWM:") * 1024)
            time.sleep(0.002)
    assert 8 * MIB < peak <= 64 * MIB


@pytest.mark.parametrize("words", [["--help"], ["models"], ["inspect", "SOURCE"], ["plan", "SOURCE", "DEST"]])
def test_neither_torch_nor_mindspore_is_imported(source, tmp_path, words) -> None:
    """I9; nor what only few runs need."""
    arguments = [{"SOURCE": str(source), "DEST": str(tmp_path / "o")}.get(word, word) for word in words]
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\nfrom streamconv.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'mindspore', 'transformers', 'yaml', 'psutil', 'importlib.metadata'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=nowhere()
    )
    assert done.returncode == 0, done.stderr


def test_torch_files_with_tensors_larger_than_the_budget(tmp_path) -> None:
    """Of 381 MiB each, one of them stored turned: read, cast, and written as a torch file again."""
    torch = pytest.importorskip("torch")
    big = torch.randn((5000, 20_000), generator=torch.Generator().manual_seed(0))
    torch.save({"plain": big, "turned": big.t()}, tmp_path / "m.bin")
    there = watch(["convert", str(tmp_path / "m.bin"), str(tmp_path / "ms.ckpt"), "--model", "raw", *BF16_IN_BUDGET])
    back = watch(["convert", str(tmp_path / "ms.ckpt"), str(tmp_path / "back.bin"), "--model", "raw", *IN_BUDGET])
    assert max(there.peak, back.peak) < BUDGET
    loaded = torch.load(tmp_path / "back.bin", weights_only=True, mmap=True)
    assert torch.equal(loaded["plain"], big.bfloat16())
    assert torch.equal(loaded["turned"], big.t().bfloat16())


def test_fewer_workers_where_what_is_transposed_would_be_scattered_else(source, tmp_path, monkeypatch) -> None:
    """An expert fits one worker's window and box, but not one of two."""
    monkeypatch.setattr(prepared, "resident_bytes", lambda: 60 * MIB)
    monkeypatch.setattr(budgets, "cores", lambda: 2)

    def workers(max_mem: str, asked: int | None = None, **options: bool) -> int:
        words = {"options": options, "max_mem": max_mem, "workers": asked}
        return streamconv.plan(source, tmp_path / "dest", **words).budget.workers

    assert workers("160M", use_gmm=True) == 1
    assert workers("200M", use_gmm=True) == 2
    assert workers("160M", asked=2, use_gmm=True) == 2, "the user knows better"
    assert workers("160M", use_gmm=False) == 2, "nothing is transposed"
    assert workers("110M", use_gmm=True) == 2, "it does not fit one either"
