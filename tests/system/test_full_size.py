"""DeepSeek-V3 at its full size: 91,991 tensors in 161 shards, real names, shapes and headers; the data are holes.

What is measured, from outside, is memory: of the plan, and of a conversion from its start until it is stopped after
1 GB of output. The disk is taken for larger than it is, for the output would have 1.4 TB.
"""

from __future__ import annotations

import math
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from streamconv.formats.catalog import open_catalog
from streamconv.tensors.dtypes import BF16, F8_E4M3, F32
from support import found_in_the_tree, nowhere
from support.faults import ENDLESS
from support.running import command, environment
from support.watching import descendants, number

with found_in_the_tree():
    from benchmarks import checkpoints, quantised_models

MIB = 1 << 20


@pytest.fixture(scope="module")
def v3(tmp_path_factory) -> Path:
    return checkpoints.deepseek_v3(tmp_path_factory.mktemp("v3") / "source")


@dataclass(frozen=True)
class Seen:
    """How a command ended, what it said, and the most memory that its processes held."""

    code: int
    said: str
    peak: int


def watched(folder: Path, *words: object, stop_after: float = math.inf) -> Seen:
    """Run a command; stop it once it has written so many bytes."""
    peaks: dict[int, int] = {}
    said = folder / "said"
    with said.open("w") as both:
        process = subprocess.Popen(
            command(*words, faults=(ENDLESS,)),
            stdout=both,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=nowhere(),
        )
        while process.poll() is None:
            for pid in descendants(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), number(f"/proc/{pid}/status", "VmHWM:") * 1024)
            if number(f"/proc/{process.pid}/io", "wchar:") > stop_after:
                process.send_signal(signal.SIGTERM)
                stop_after = math.inf
            time.sleep(0.005)
    return Seen(process.returncode, said.read_text(), sum(peaks.values()))


def test_the_sample_is_what_deepseek_publishes(v3) -> None:
    catalog = open_catalog(v3)
    kinds = Counter(ref.dtype for ref in catalog.values())
    assert (len(catalog), kinds[F8_E4M3], kinds[F32], kinds[BF16]) == (91_991, 45_808, 45_867, 316)
    assert (round(catalog.nbytes / 1e9, 1), len(catalog.files)) == (688.6, 161)


@pytest.mark.parametrize(
    ("words", "outputs"),
    [
        (["-o", "layout=mcore"], 925),
        (["-o", "layout=classic", "-o", "use_gmm=true", "--dtype", "bf16"], 1_173),
        (["--model", "raw", "--format", "hf"], 46_183),
    ],
    ids=["mcore", "classic", "raw"],
)
def test_a_plan_takes_less_than_200_mib(v3, tmp_path, words, outputs) -> None:
    seen = watched(tmp_path, "plan", v3, tmp_path / "out", *words)
    assert seen.code == 0, seen.said[-2000:]
    assert f"{outputs} tensors in" in seen.said
    assert 0 < seen.peak < 200 * MIB


@pytest.mark.parametrize(
    ("make", "words", "weights"),
    [
        (
            quantised_models.kimi_k2_thinking,
            ["-o", "layout=mcore"],
            ["69120 weights to BF16: INT4, packed, groups of 32"],
        ),
        (quantised_models.deepseek_v4_flash, [], ["33792 weights to BF16: FP4", "weights to BF16: FP8 (E4M3), blocks"]),
    ],
    ids=["Kimi-K2-Thinking", "DeepSeek-V4-Flash"],
)
def test_the_plan_of_a_quantised_model_takes_less_than_250_mib(make, words, weights, tmp_path) -> None:
    """Of packed weights, few state their shape here; to convert them, all would have to."""
    seen = watched(tmp_path, "plan", make(tmp_path / "source"), tmp_path / "out", *words)
    assert seen.code == 0, seen.said[-2000:]
    assert all(line in seen.said for line in weights)
    assert 0 < seen.peak < 250 * MIB


@pytest.mark.parametrize("words", [["-o", "layout=mcore"], ["--model", "raw", "--format", "hf"]], ids=["mcore", "raw"])
def test_a_conversion_stays_below_256_mib_until_it_is_stopped(v3, tmp_path, words) -> None:
    seen = watched(tmp_path, "convert", v3, tmp_path / "out", *words, "--max-mem", "256M", stop_after=3e8)
    assert seen.code == 128 + signal.SIGTERM, seen.said
    assert 0 < seen.peak < 256 * MIB
    assert {path.name for path in tmp_path.iterdir()} == {"said", "out.partial", "out.partial.streamconv"}
    again = watched(tmp_path, "convert", v3, tmp_path / "out", *words, "--max-mem", "256M", stop_after=5e8)
    assert "resuming: " in again.said
    assert 0 < again.peak < 256 * MIB
