"""`diff` on a cluster says what it says on one host, to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv.cluster import diff as on_cluster
from streamconv.cluster.tensors_job import TensorsJob, from_plain, plain
from streamconv.errors import BudgetError, SourceChangedError
from streamconv.formats.catalog import open_catalog
from support import running
from support.clusters import check_plain
from support.running import call


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Checkpoints that differ in every way."""
    root = tmp_path_factory.mktemp("pairs")
    one = running.llama(root / "one")
    same = Path(shutil.copytree(one, root / "same"))
    streamconv.convert(one, root / "raw", model="raw", dtype="fp32")
    streamconv.convert(one, root / "ms")
    values = running.with_large_values(Path(shutil.copytree(one, root / "values")))
    wider = running.tiny(root / "wider", hidden_size=24)
    narrow = running.tiny(root / "narrow")
    return {
        "the same": (one, same),
        "dtypes": (one, root / "raw"),
        "names": (one, root / "ms"),
        "values": (one, values),
        "shapes": (narrow, wider),
    }


NAMES = ["the same", "dtypes", "names", "values", "shapes"]


@pytest.mark.parametrize("most", [1, 5000, 1 << 40])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_to_the_byte(name: str, most: int, pairs: Any, on_threads: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(on_cluster, "portion_bytes", lambda total: most)
    on_threads("a", "b")
    for words in ([], ["--json"]):
        alone = call(capsys, "diff", *pairs[name], *words)
        assert call(capsys, "diff", *pairs[name], *words, "--on", "ray", "--quiet") == alone
        assert alone.code == (0 if name == "the same" else 7)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_values(name: str, pairs: Any, on_threads: Any) -> None:
    on_threads("a", "b", "c")
    assert streamconv.diff(*pairs[name], on="ray", workers_per_node=2) == streamconv.diff(*pairs[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_difference_is_the_same_after_its_way(name: str, pairs: Any) -> None:
    for found in streamconv.diff(*pairs[name]).differences:
        if found.one and found.other:
            values = [found.kind, plain(found.compared)]
            check_plain(values)
            assert from_plain(values, found.one, found.other) == found


def test_progress_ends_at_the_total(pairs: Any, on_threads: Any) -> None:
    on_threads("a", "b")
    seen: list[streamconv.Progress] = []
    streamconv.diff(*pairs["the same"], on="ray", progress=seen.append)
    assert seen[-1].done == seen[-1].total == 2 * open_catalog(pairs["the same"][0]).nbytes


def test_a_memory_limit_that_is_too_low(pairs: Any, on_threads: Any) -> None:
    on_threads("a")
    with pytest.raises(BudgetError) as caught:
        streamconv.diff(*pairs["the same"], on="ray", max_mem="30M")
    assert caught.value.least > 30 << 20
    assert streamconv.diff(*pairs["the same"], on="ray", max_mem=caught.value.least + (8 << 20))


def test_a_tensor_that_has_gone(pairs: Any) -> None:
    a, b = pairs["names"]
    arguments = {"a": str(a), "b": str(b), "io": "auto", "strategy": [], "step": None, "memory_limit": 16 << 30}
    work = TensorsJob(arguments)
    with pytest.raises(SourceChangedError, match="changed during the run: it has no tensor"):
        work.run({"names": ["model.embed_tokens.weight"]}, lambda *_: None, lambda: False)
