"""One file a rank: names, links, and the names of tensors in files."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streamconv.errors import UnsupportedError
from streamconv.formats.rank_layout import Content, lay_out_ranks, strategy_file
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec, files_by_tensor


def content(ranks: Sequence[int], *keys: str) -> Content:
    specs = [
        TensorSpec(key.partition("[")[0], dtypes.BF16 if number else dtypes.F32, (2, 3))
        for number, key in enumerate(keys)
    ]
    return Content(ranks, keys, specs)


CONTENTS = (content((0, 2), "w[0:2, :]", "n"), content((1, 3), "w[2:4, :]", "n"))


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_ranks_that_hold_the_same_share_a_file(kind: str) -> None:
    placed = lay_out_ranks(CONTENTS, kind, False, True, {strategy_file(0): b"strategy"})
    assert [file.name for file in placed.files] == [f"rank_0/checkpoint_0.{kind}", f"rank_1/checkpoint_1.{kind}"]
    assert [file.links for file in placed.files] == [
        (f"rank_2/checkpoint_2.{kind}",),
        (f"rank_3/checkpoint_3.{kind}",),
    ]
    assert placed.linked == sum(file.size for file in placed.files)
    assert placed.total == placed.linked + len(b"strategy")
    assert sorted(placed.in_folders) == sorted(placed.names)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_without_links_every_rank_has_a_file(kind: str) -> None:
    placed = lay_out_ranks(CONTENTS, kind, False, False, {})
    assert [file.name for file in placed.files] == [f"rank_{rank}/checkpoint_{rank}.{kind}" for rank in range(4)]
    assert not any(file.links for file in placed.files)
    holders = files_by_tensor(placed.files)
    assert {key: len(files) for key, files in holders.items()} == {"w[0:2, :]": 2, "w[2:4, :]": 2, "n": 4}


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_files_have_the_tensors_own_names(kind: str) -> None:
    file = lay_out_ranks(CONTENTS, kind, False, True, {}).files[1]
    assert dict(file.names) == {"w[2:4, :]": "w", "n": "n"}
    assert file.extents.keys() == file.names.keys()
    head = b"".join(data for _, data in file.literals)
    assert b"w" in head and b"[2:4" not in head


def test_a_dtype_that_mindspore_does_not_know() -> None:
    spec = TensorSpec("w", dtypes.F8_E4M3, (2,))
    for kind in ("ckpt", "safetensors"):
        with pytest.raises(UnsupportedError):
            lay_out_ranks([Content((0,), ("w",), (spec,))], kind, False, True, {})
