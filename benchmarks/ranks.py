"""Ranks of a training: put together for HuggingFace, planned by the hundred, and cut again.

1. 2.55 GB of a Llama in the files of 8 ranks, converted to HuggingFace, against `cp -r` of the bytes written, and
   against MindSpore: `unified_safetensors`, then each part that it wrote loaded, renamed and saved; and, a shorter way
   for a model such as this, whose tensors only have other names, `unified_safetensors` with a function that renames
   them. Both results are compared with streamconv's, tensor by tensor.
2. `plan` of DeepSeek-V3 in the files of 256 ranks, real headers with holes for data, with and without Adam's states.
3. That Llama as one model, converted and cut for the 8 ranks, against the same conversion to one file.

MindSpore runs in an environment of its own (`peers/environments.py`); without it, a note says why it was not measured.
`unified_safetensors` sleeps while more than half of the machine's memory is in use.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from . import machine
from .checkpoints import deepseek_v3_ranks, llama_ranks
from .conversions import removed, size, streamconv, words
from .measuring import BenchmarkError, Run, Spread, interleaved, ratio, spread
from .measuring import measure as run
from .peers.environments import MINDSPORE, variables
from .results import Data, Say, Setting, Table
from .running import convert, every_round, run_and_remove

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Ranks of a training"
BUDGET = "256M"

MIB = 1 << 20
_PLAN_BUDGET = "1G"
# On the disk at once besides the ranks: the whole model, a copy of it, and three copies that MindSpore writes.
_COPIES = 5
_OURS, _CP, _RENAMED, _LOADED = (
    "streamconv",
    "cp -r",
    "unified_safetensors that renames",
    "unified_safetensors, then renamed",
)
_SMALL_LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
}
_SMALL_DEEPSEEK = {
    "num_hidden_layers": 4,
    "n_routed_experts": 8,
    "experts_over": 2,
}
_MINDSPORE = """
import sys
from pathlib import Path
import mindspore
from safetensors.numpy import load_file, save_file

NAMES = {
    "tok_embeddings.embedding_weight": "embed_tokens.weight", "norm_out": "norm", "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
}

def renamed(name):
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return name

way, ranks, dest = sys.argv[1:]
strategy = str(Path(ranks, "strategy", "ckpt_strategy_rank_0.ckpt"))
if way == "renames":
    mindspore.unified_safetensors(ranks + "/checkpoint", strategy, dest, choice_func=renamed)
else:
    mindspore.unified_safetensors(ranks + "/checkpoint", strategy, dest + "/unified")
    Path(dest, "hf").mkdir()
    for part in sorted(Path(dest, "unified").glob("part*.safetensors")):
        tensors = {renamed(name): array for name, array in load_file(part).items()}
        save_file(tensors, Path(dest, "hf", part.name), {"format": "pt"})
"""


def measure(setting: Setting, say: Say) -> Data:
    """Measure all parts; skip, with a note, what there is no space or no environment for."""
    data: Data = {"notes": []}
    source = setting.folder / "ranks"
    with removed(source):
        say("making a Llama on 8 ranks")
        llama_ranks(source, **(_SMALL_LLAMA if setting.quick else {}))
        if machine.room(setting.folder) < _COPIES * size(source):
            data["notes"].append("Llama: not measured, no room")
        else:
            _measure_llama(source, setting, say, data)
    data["plans"] = _plans(setting, say)
    return data


def _measure_llama(source: Path, setting: Setting, say: Say, data: Data) -> None:
    whole = setting.folder / "whole"
    with removed(whole):
        run(streamconv(words(_reverse(source), source, whole, BUDGET)))
        data["joined"] = _joined(source, whole, setting, say, data["notes"])
        say("cutting")
        dest = setting.folder / "dest"
        ways = {"cut": ["--strategy", str(source / "strategy")], "plain": []}
        contestants = {name: partial(convert, whole, dest, options, BUDGET) for name, options in ways.items()}
        data["cut"] = every_round(interleaved(contestants, setting.rounds))


def _reverse(source: Path) -> list[str]:
    return ["--reverse", "--config", str(source / "config.json")]


def _joined(source: Path, whole: Path, setting: Setting, say: Say, notes: list[str]) -> Data:
    """Measure putting together; `needed` is what has to be read."""
    dest = setting.folder / "dest"
    copy = ["cp", "-r", *machine.never_share(setting.folder), str(whole), str(dest)]
    contestants: dict[str, Callable[[], Run]] = {
        _OURS: partial(convert, source, dest, _reverse(source), BUDGET),
        _CP: partial(run_and_remove, copy, whole, dest),
    }
    theirs = {_LOADED: setting.folder / "loaded", _RENAMED: setting.folder / "renamed"}
    with removed(theirs[_LOADED]), removed(theirs[_RENAMED]):
        try:
            MINDSPORE.prepare(not setting.quick, say)
            contestants |= {name: partial(_mindspore, name, source, folder) for name, folder in theirs.items()}
        except BenchmarkError as error:
            notes.append(f"{MINDSPORE.tool}: not measured, {str(error).strip().splitlines()[-1]}")
        if (used := psutil.virtual_memory().percent) > 40:
            notes.append(f"{used:.0f} % of the machine's memory was in use, and above 50 % unified_safetensors sleeps")
        say("putting together")
        runs = every_round(interleaved(contestants, setting.rounds))
        same = {name: _same(whole, folder) for name, folder in theirs.items() if folder.exists()}
    return {"needed": size(source / "checkpoint"), "tool": MINDSPORE.tool, "runs": runs, "same": same}


def _mindspore(name: str, source: Path, dest: Path) -> Run:
    """Run one of MindSpore's ways, and keep what it writes."""
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir()
    way = "renames" if name == _RENAMED else "loads"
    command = [str(MINDSPORE.python), "-I", "-c", _MINDSPORE, way, str(source), str(dest)]
    return run(command, [source], env=variables(dest))


def _same(whole: Path, folder: Path) -> bool:
    """Return whether MindSpore's way led to the same tensors, bit for bit."""
    result = folder / "hf" if (folder / "hf").exists() else folder
    (part,) = result.glob("part*.safetensors")
    command = streamconv(["diff", str(whole), str(part), "--max-mem", "512M", "--quiet"])
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def _plans(setting: Setting, say: Say) -> Data:
    say("planning DeepSeek-V3 on 256 ranks")
    weights, states = setting.folder / "weights", setting.folder / "states"
    with removed(weights), removed(states):
        for source in (weights, states):
            deepseek_v3_ranks(source, source is states, **(_SMALL_DEEPSEEK if setting.quick else {}))
        contestants = {"weights": partial(_plan, weights), "weights, adam_m and adam_v": partial(_plan, states)}
        return every_round(interleaved(contestants, setting.rounds))


def _plan(source: Path) -> Run:
    options = [*_reverse(source), "-o", "interleave_mlp=true", "--max-mem", _PLAN_BUDGET]
    command = streamconv(["plan", str(source), str(source.with_name("dest")), *options])
    return run(command, [source], synced=False)


def tables(data: Data) -> Sequence[Table]:
    """Return a table for each part."""
    llama = [_table_of_joined(data["joined"]), _table_of_cut(data["cut"])] if "cut" in data else []
    return [*llama[:1], _table_of_plans(data["plans"]), *llama[1:]]


def _table_of_joined(found: Data) -> Table:
    columns = (
        "8 ranks to HuggingFace",
        "seconds",
        "streamconv / this",
        "CPU s",
        "peak MiB",
        "read / needed",
        "same tensors",
    )
    return Table(columns, [_row(name, found) for name in found["runs"]])


def _row(name: str, found: Data) -> tuple[str, ...]:
    runs, same = found["runs"], found["same"].get(name)
    return (
        f"{found['tool']}: {name}" if name in (_LOADED, _RENAMED) else name,
        f"{spread(runs[name]['seconds']):.2f}",
        "" if name == _OURS else f"{_ratio(found, name):.2f}",
        _cpu(runs[name]),
        f"{max(runs[name]['peak']) / MIB:,.0f}",
        f"{max(runs[name]['read']) / found['needed']:.3f}",
        "" if same is None else "yes" if same else "NO",
    )


def _ratio(found: Data, name: str) -> Spread:
    return ratio(found["runs"][_OURS]["seconds"], found["runs"][name]["seconds"])


def _cpu(runs: Data) -> str:
    return f"{spread(runs['cpu']).median:.1f}"


def _table_of_plans(found: Data) -> Table:
    columns = ("plan of DeepSeek-V3 on 256 ranks", "seconds", "goal, s", "CPU s", "peak MiB", "goal, MiB")
    rows = [
        (name, f"{spread(runs['seconds']):.2f}", "10", _cpu(runs), f"{max(runs['peak']) / MIB:.0f}", "400")
        for name, runs in found.items()
    ]
    return Table(columns, rows)


def _table_of_cut(found: Data) -> Table:
    columns = ("from HuggingFace", "seconds", "cut / plain", "peak MiB")
    cut, plain = found["cut"], found["plain"]
    rows = [
        (
            "cut for 8 ranks",
            f"{spread(cut['seconds']):.2f}",
            f"{ratio(cut['seconds'], plain['seconds']):.2f}",
            f"{max(cut['peak']) / MIB:.0f}",
        ),
        ("to one file", f"{spread(plain['seconds']):.2f}", "", f"{max(plain['peak']) / MIB:.0f}"),
    ]
    return Table(columns, rows)


def figures(data: Data) -> Mapping[str, Figure]:
    """Plot nothing: the tables are short."""
    return {}
