"""What dequantising takes besides its windows stays below what a worker's budget has for it, whatever the method."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from streamconv.engine import kernels
from streamconv.engine.dequantise import dequantise
from streamconv.engine.windows import Windows
from streamconv.source import Source
from streamconv.storage.access import Access
from streamconv.tensors import views
from streamconv.tensors.dtypes import BF16, F32, DType
from streamconv.tensors.grids import whole
from streamconv.tensors.view_nodes import Dequantised
from support import found_in_the_tree
from support.decoders import METHODS, Dice, Size, save
from support.tracing import peak_of

with found_in_the_tree():
    from benchmarks import quantised

SHAPE = (1024, 4096)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", quantised.KINDS)
def test_scratch_of_every_method(kind: str, transposed: bool, dtype: DType, tmp_path: Path) -> None:
    source = quantised.write(tmp_path / "source", kind, {"w": SHAPE})
    (leaf,) = views.leaf(Source.open(source, "8G", None).understood.catalog["w.weight"]).leaves()
    assert isinstance(leaf, Dequantised)
    assert scratch_of(leaf, transposed, dtype) <= kernels.SCRATCH_BYTES


def scratch_of(leaf: Dequantised, transposed: bool, dtype: DType) -> int:
    with closing(Windows(64 << 20, Access.READ)) as windows:
        window = windows.quantised(leaf, whole(leaf.shape))
        shape = leaf.shape[::-1] if transposed else leaf.shape
        target = np.zeros(shape, f"u{dtype.itemsize}")
        out = target.T if transposed else target
        return peak_of(lambda: dequantise(window, whole(leaf.shape), out, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("ct-I8-block", Size(1600, 16384, 1, (700, 1))),
        ("ct-I8-block", Size(1600, 16384, 1, (1024, 16))),
        ("ct-I8-block", Size(1600, 4000, 1, (48, 100))),
        ("slim-W8A8_DYNAMIC", Size(530, 16001, 8000, (1, 1))),
        ("slim-W8A8_DYNAMIC", Size(530, 4097, 1000, (1, 1))),
        ("fp8-F32", Size(902, 1939, 1, (200, 5))),
        ("fp8-scale", Size(4097, 530, 1, (200, 5))),
        ("fp8-scale", Size(2049, 2049, 1, (17, 300))),
        ("ct-pack-5", Size(129, 16400, 1000, (1, 1))),
        ("ct-pack-3", Size(530, 4100, 100, (1, 1))),
    ],
    ids=str,
)
def test_scratch_of_blocks_of_any_size(method: str, size: Size, transposed: bool, tmp_path: Path) -> None:
    sample = METHODS[method](Dice(np.random.default_rng(1)), size)
    save(tmp_path, [sample], np.random.default_rng(0), 1)
    (leaf,) = views.leaf(Source.open(tmp_path, "8G", None).understood.catalog[sample.weight]).leaves()
    assert isinstance(leaf, Dequantised)
    for dtype in (BF16, F32):
        assert scratch_of(leaf, transposed, dtype) <= kernels.SCRATCH_BYTES
