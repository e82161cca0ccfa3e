"""`verify` on a cluster says what it says on one host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.cluster import verify as on_cluster
from streamconv.errors import StreamconvError, UsageError, VerificationError
from streamconv.units import BLOCK
from support import running
from support.clusters import sparse
from support.running import call, flip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    source = running.tiny(root / "source")
    streamconv.convert(source, root / "dest", max_shard_size=5000)
    streamconv.convert(source, root / "dest.ckpt", crc=True)
    return {"directory": root / "dest", "ckpt": root / "dest.ckpt", "blocks": sparse(root / "sparse", 3)}


def said(dest: Path, **arguments: Any) -> Any:
    """The result or the error, which names the node in lines of its own."""
    try:
        found = streamconv.verify(dest, **arguments)
    except StreamconvError as error:
        return type(error), error.message.splitlines()[0], error.hint
    return found.files, found.tensors, found.bytes_read, found.total


def same(dest: Path) -> Any:
    alone = said(dest)
    assert said(dest, on="ray") == alone
    return alone


@pytest.mark.parametrize("kind", ["directory", "ckpt", "blocks"])
@pytest.mark.parametrize("most", [1, BLOCK, 1 << 40])
def test_the_same_answer(kind: str, most: int, made: Any, on_threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_cluster, "portion_bytes", lambda total: most)
    on_threads("a", "b")
    assert isinstance(same(made[kind])[0], int)


@pytest.mark.parametrize("kind", ["directory", "ckpt", "blocks"])
def test_a_flipped_byte_is_found(kind: str, made: Any, on_threads: Any) -> None:
    on_threads("a", "b")
    path = max(made[kind].glob("*.safetensors")) if kind != "ckpt" else made[kind]
    for position in (0, path.stat().st_size // 2, path.stat().st_size - 1):
        flip(path, position)
        kinds, message, _ = same(made[kind])
        assert kinds is VerificationError
        assert f"{path} differs from its manifest between byte " in message
        flip(path, position)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("change", [Path.unlink, cut, lambda path: path.write_bytes(b"")])
def test_a_file_of_another_length(change: Callable[[Path], object], made: Any, on_threads: Any, tmp_path: Path) -> None:
    on_threads("a", "b")
    dest = Path(shutil.copytree(made["directory"], tmp_path / "dest"))
    change(min(dest.glob("*.safetensors")))
    assert same(dest)[0] is VerificationError


def test_links_between_ranks_are_read_once(tmp_path: Path, on_threads: Any, made: Any) -> None:
    on_threads("a")
    dest = sparse(tmp_path / "dest", 2, files=1)
    (dest / "b").hardlink_to(dest / "ms-model-0.safetensors")
    text = (dest / "streamconv.json").read_text()
    (dest / "streamconv.json").write_text(
        text.replace('"files": {', '"files": {').replace(
            '}}, "tensors"', '}, "b": {"same": "ms-model-0.safetensors"}}, "tensors"'
        )
    )
    assert same(dest)[2:] == (2 * BLOCK, 4 * BLOCK)


def test_the_command_line(made: Any, on_threads: Any, capsys: Any) -> None:
    on_threads("a", "b")
    alone, cluster = (call(capsys, "verify", made["ckpt"], *words) for words in ([], ["--on", "ray", "--quiet"]))
    assert alone == cluster
    values = call(capsys, "verify", made["ckpt"], "--on", "ray", "--workers-per-node", 2, "--json").out
    assert '"nodes": [{"host": "' in values
    assert '"nodes"' not in call(capsys, "verify", made["ckpt"], "--json").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on": "ray", "sample": "5%"}, "on has no effect on a sample"),
        ({"on": 1}, "on must be str, not int"),
        ({"on": "ray", "workers_per_node": 0}, "workers_per_node must be between 1 and 256: 0"),
        ({"on": "ray", "workers_per_node": "2"}, "workers_per_node must be int, not str"),
        ({"workers_per_node": 2}, "workers_per_node=2 has no effect without a cluster"),
        ({"on": "ray", "max_mem": "1G"}, "max_mem would have no effect"),
        ({"on": "slurm"}, "on names no cluster: slurm"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str, made: Any) -> None:
    with pytest.raises(UsageError, match=message):
        streamconv.verify(made["ckpt"], **arguments)
