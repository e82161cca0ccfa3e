"""Layout: files, offsets and indices, from names and sizes alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import UnsupportedError
from streamconv.formats.layout import CKPT, HF_SAFETENSORS, MS_SAFETENSORS, lay_out
from streamconv.tensors.dtypes import BF16, F32, from_safetensors
from streamconv.tensors.refs import TensorSpec
from support.helpers import LLAMA, catalog, hf, planned


def specs(*sizes: int) -> list[TensorSpec]:
    return [TensorSpec(f"t{i}", F32, (n,)) for i, n in enumerate(sizes)]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 400), st.sampled_from(["safetensors", "hf"])
)
def test_shards_hold_every_tensor_once_and_no_more_than_they_may(sizes, limit, kind) -> None:
    tensors = specs(*sizes)
    layout = lay_out(tensors, kind, "out", limit, crc=False)
    held = [name for file in layout.files for name in file.extents]
    assert sorted(held) == sorted(t.name for t in tensors)
    for file in layout.files:
        count = sum(length for extents in file.extents.values() for _, length in extents)
        assert count <= limit or len(file.extents) == 1
        spans = [(offset, len(data)) for offset, data in file.literals]
        spans += [span for extents in file.extents.values() for span in extents if span[1]]
        end = 0
        for offset, length in sorted(spans):
            assert offset == end
            end += length
        assert end == file.size
    assert layout.total == sum(f.size for f in layout.files) + sum(map(len, layout.texts.values()))


@pytest.mark.parametrize(
    ("kind", "sizes", "names", "index"),
    [
        (HF_SAFETENSORS, (5, 5), ["model.safetensors"], None),
        (
            HF_SAFETENSORS,
            (5, 25),
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "model.safetensors.index.json",
        ),
        (MS_SAFETENSORS, (5, 5), ["ms-model-00001-of-00001.safetensors"], "param_name_map.json"),
        (
            MS_SAFETENSORS,
            (20, 20),
            ["ms-model-00001-of-00002.safetensors", "ms-model-00002-of-00002.safetensors"],
            "param_name_map.json",
        ),
        (CKPT, (20, 200), ["out.ckpt"], None),
    ],
)
def test_names_of_files_and_what_the_index_says(kind, sizes, names, index) -> None:
    layout = lay_out(specs(*sizes), kind, "out.ckpt", 100, crc=False)
    assert [file.name for file in layout.files] == names
    assert list(layout.texts) == ([index] if index else [])
    if index:
        said = json.loads(layout.texts[index])
        assert said["weight_map"] == {name: file.name for file in layout.files for name in file.extents}
        assert said["metadata"] == {"total_size": 4 * sum(sizes)}


def test_each_side_writes_its_own_metadata() -> None:
    for kind, mark in ((HF_SAFETENSORS, b'"pt"'), (MS_SAFETENSORS, b'"ms"')):
        (file,) = lay_out(specs(5), kind, "out", 100, crc=False).files
        assert mark in file.literals[0][1]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "C64"])
@pytest.mark.parametrize("kind", [MS_SAFETENSORS, CKPT])
def test_what_mindspore_cannot_load_is_not_written_for_it(dtype, kind) -> None:
    tensors = [*specs(5), TensorSpec("odd\x1b", from_safetensors(dtype, ""), (5,))]
    with pytest.raises(UnsupportedError, match=r"odd\\x1b"):
        lay_out(tensors, kind, "out.ckpt", 100, crc=False)
    assert len(lay_out(tensors, HF_SAFETENSORS, "out", 100, crc=False).files) == 1


def test_the_crc_lengthens_a_ckpt_by_17_bytes() -> None:
    (plain,), (with_crc,) = (lay_out(specs(5), CKPT, "a.ckpt", 100, crc).files for crc in (False, True))
    assert with_crc.size == plain.size + 17
    assert not plain.slots
    assert [(slot.begin, slot.end, slot.at) for slot in with_crc.slots] == [(0, plain.size, (plain.size + 7,))]


@pytest.mark.parametrize("kind", [MS_SAFETENSORS, CKPT])
def test_the_layout_does_not_know_how_the_source_is_sharded(kind) -> None:
    tensors = hf(LLAMA, dtype=BF16)
    layouts = [
        lay_out([o.spec for o in planned(source, LLAMA, qkv_concat=True).outputs], kind, "x.ckpt", 1000, crc=False)
        for source in (catalog(tensors), catalog(tensors, 7), catalog(reversed(tensors), 2))
    ]
    assert layouts[0] == layouts[1] == layouts[2]
