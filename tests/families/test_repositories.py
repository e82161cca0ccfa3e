"""Published models at their real size, headers only: they plan without an unknown and without a missing tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import streamconv
from streamconv.errors import SourceError, UnsupportedError
from streamconv.families import families
from streamconv.formats import safetensors, shards
from streamconv.tensors.dtypes import BF16, F32, from_safetensors
from streamconv.tensors.refs import TensorSpec
from support.repositories import REPOSITORIES, Repository, expand

pytestmark = pytest.mark.slow

INDEX, NARROW = from_safetensors("I64", "index"), from_safetensors("I32", "index")
_INTEGERS = ("position_index", "position_ids", "tid2eid")


def sparse(folder: Path, repository: Repository, without: str = "") -> Path:
    """The repository's files: real headers, and holes where tensors would be."""
    folder.mkdir()
    if repository.config:
        (folder / "config.json").write_text(json.dumps(repository.config))
    specs = [
        TensorSpec(name, INDEX if name.endswith(_INTEGERS) else BF16, shape)
        for pattern, shape in repository.tensors.items()
        for name in expand(pattern)
        if name != without
    ]
    groups = shards.split(specs, 5_000_000_000)
    for number, group in enumerate(groups, 1):
        file = safetensors.lay_out(shards.hf_shard_name(number, len(groups)), group, {})
        with (folder / file.name).open("wb") as out:
            out.truncate(file.size)
            for offset, literal in file.literals:
                out.seek(offset)
                out.write(literal)
    return folder


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_published_model_plans(tmp_path, name) -> None:
    repository = REPOSITORIES[name]
    source = sparse(tmp_path / "source", repository)
    plan = streamconv.plan(source, tmp_path / "out", model=name, dtype="bf16", max_mem="2G").mapping
    used = {source for output in plan.outputs for source in output.sources}
    assert used | plan.dropped.keys() == streamconv.open(source).keys()
    assert all(why for why in plan.dropped.values())
    total = sum(math.prod(shape) for pattern, shape in repository.tensors.items() for _ in expand(pattern))
    written = sum(math.prod(o.view.shape) for o in plan.outputs)
    assert 0.97 * total < written < 1.3 * total  # tied heads are written again, MTP's copies are not
    assert not any(o.dtype not in (BF16, F32, INDEX, NARROW) for o in plan.outputs)


@pytest.mark.parametrize("name", REPOSITORIES)
def test_one_tensor_less_is_noticed(tmp_path, name) -> None:
    """The middle one, of those that a model cannot do without."""
    repository = REPOSITORIES[name]
    needed = [pattern for pattern in repository.tensors if pattern.endswith(".weight") and "{" in pattern]
    gone = list(expand(needed[len(needed) // 2]))[-1]
    source = sparse(tmp_path / "source", repository, without=gone)
    with pytest.raises((SourceError, UnsupportedError)) as caught:
        streamconv.plan(source, tmp_path / "out", model=name, max_mem="2G")
    assert f"{gone}: missing" in str(caught.value)


def test_every_family_has_a_published_model() -> None:
    assert REPOSITORIES.keys() == {family.name for family in families()} - {"raw", "mindone"}
