"""Shared by tests of the command line: run it in a process of its own, and look at what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import conversion
from streamconv import testing as samples
from streamconv.cli import main as cli
from streamconv.engine.budget import Budget
from streamconv.families import find
from streamconv.formats import safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.output.writer import FileSink
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden, helpers, nowhere
from support.faults import SLOW, Fault
from support.faults import command as on_bad_storage


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(*words: object, before: str = "", faults: tuple[Fault, ...] = ()) -> list[str]:
    """The command line, with these faults of storage; with `before`, that Python is run first, in the same process."""
    if faults:
        return on_bad_storage(faults, words)
    start = ["-c", f"{before}\nfrom streamconv.cli.main import main\nmain()"] if before else ["-m", "streamconv"]
    return [sys.executable, *start, *map(str, words)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: as users have it, with buffers."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**buffered, **(extra or {})}


def run(
    *words: object,
    before: str = "",
    faults: tuple[Fault, ...] = (),
    prepare: Callable[[], object] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run `streamconv WORDS`, as it is installed, to its end; `prepare` is called in the child."""
    done = subprocess.run(
        command(*words, before=before, faults=faults),
        capture_output=True,
        preexec_fn=prepare,
        cwd=cwd or nowhere(),
        env=environment(env),
        timeout=120,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert "Traceback" not in ended.err, ended.err
    return ended


def call(capsys: Any, *words: object) -> Ended:
    """The same in this process, which is faster; signals and the end of a process are not part of it."""
    before = sys.argv
    sys.argv = ["streamconv", *map(str, words)]
    try:
        code = cli.run()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return Ended(code, captured.out, captured.err)


def start(*words: object, faults: tuple[Fault, ...] = (SLOW,), **arguments: Any) -> subprocess.Popen[bytes]:
    """Begin `streamconv WORDS`; the child takes SIGINT even where the tests run in the background."""
    return subprocess.Popen(
        command(*words, faults=faults),
        stdout=subprocess.PIPE,
        stderr=arguments.pop("stderr", subprocess.PIPE),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        env=environment(arguments.pop("env", None)),
        cwd=nowhere(),
        **arguments,
    )


class StoppedError(Exception):
    """What a test stops a run with."""


def stopped(source: Path, dest: Path, **arguments: Any) -> Path:
    """A conversion that is stopped when all is written and on record; its journal."""

    def stop(progress: streamconv.Progress) -> None:
        if progress.done == progress.total:
            raise StoppedError

    with pytest.raises(StoppedError):
        streamconv.convert(source, dest, progress=stop, **arguments)
    return dest.with_name(f"{dest.name}.partial.streamconv")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 60) -> None:
    """Wait for something that a running process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, (process.returncode, process.stderr and process.stderr.read())
        assert time.monotonic() < end
        time.sleep(0.005)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: files with their bytes, links with where they lead, directories."""
    return {str(p.relative_to(folder)): _content(p) for p in sorted(folder.rglob("*"))}


def _content(path: Path) -> bytes | str | None:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else None


def llama(folder: Path, case: str = "llama3_gqa_mixed_none", shard_count: int | None = None) -> Path:
    """A tiny Llama of mixed dtypes in three shards, with the files that make it a model."""
    source = next(c for c in golden.cases("llama") if c.name == case).write_source(folder, shard_count)
    for name, text in COMPANIONS.items():
        (folder / name).write_text(text)
    return source


#: `pytorch_model.bin` and `notes.xyz` belong to no converted checkpoint.
COMPANIONS = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"a": 1}',
    "tokenizer.model": "spm",
    "generation_config.json": '{"do_sample": true}',
    "special_tokens_map.json": "{}",
    "chat_template.jinja": "{{ x }}",
    "notes.xyz": "private",
}
KEPT = set(COMPANIONS) - {"notes.xyz"}


def tiny(folder: Path, shard: int = 10_000, **config: Any) -> Path:
    """A Llama of a few kilobytes, of one dtype, which is what the table of names gives."""
    values = {**helpers.LLAMA, **config}
    samples.write_hf(folder, values, samples.hf_specs(find(values["model_type"]), values), shard)
    return folder


def with_large_values(source: Path) -> Path:
    """Every 50th value is one that fp16 does not hold."""
    for shard in source.glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        for at in range(begin, len(data) - 1, 100):
            data[at : at + 2] = b"\x7f\x7f"
        shard.write_bytes(data)
    return source


#: Stacks of experts of 22 MiB, larger than a window or a box of the smallest budget.
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "num_local_experts": 4,
    "vocab_size": 2000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def mixtral(folder: Path) -> Path:
    """A Mixtral of 80 MB in one file."""
    samples.write_hf(folder, MIXTRAL, samples.hf_specs(find("mixtral"), MIXTRAL), 1 << 40)
    return folder


def dealt_again(source: Path, folder: Path, count: int) -> Path:
    """The same tensors, dealt over so many shards."""
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != shards.HF_INDEX:
            (folder / path.name).write_bytes(path.read_bytes())
    refs = list(open_catalog(source).values())
    weight_map = {}
    for number in range(count):
        name = shards.hf_shard_name(number + 1, count)
        group = refs[number::count]
        specs = [TensorSpec(r.name, r.dtype, r.shape) for r in group]
        golden.write(
            folder / name, safetensors.lay_out(name, specs, {}), {r.name: golden.stored_bytes(r) for r in group}
        )
        weight_map.update({r.name: name for r in group})
    (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, weight_map))
    return folder


def scalars(path: Path, count: int, shapes: Sequence[tuple[int, ...]] = ((),)) -> Path:
    """A safetensors file with so many tensors of one element, of these shapes in turn: more header than data."""
    specs = [TensorSpec(f"t{number}", dtypes.F32, shapes[number % len(shapes)]) for number in range(count)]
    golden.write(path, safetensors.lay_out(path.name, specs, {}), {s.name: golden.golden_bytes(s) for s in specs})
    return path


def failing(error: BaseException) -> Callable[..., Any]:
    """A call that always fails."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def flip(path: Path, position: int) -> None:
    """Change one byte; the same again changes it back."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))


def converted(source: Path, dest: Path, after: int | None, region: int, workers: int, **arguments: Any) -> bool:
    """A run whose windows and boxes have `region` bytes, stopped `after` so many writes; whether it came to its end."""
    calls: list[int] = []

    def counted(write: Any) -> Any:
        def call(*values: object) -> Any:
            calls.append(1)
            if after is not None and len(calls) > after:
                raise StoppedError
            return write(*values)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "decide_budget", lambda *_: Budget(1 << 30, 1 << 20, workers, region))
        for name in ("put", "write"):
            patch.setattr(FileSink, name, counted(getattr(FileSink, name)))
        try:
            streamconv.convert(source, dest, **arguments)
        except StoppedError:
            return False
    return True
