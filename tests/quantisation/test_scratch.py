"""What dequantising takes besides its windows stays below what a worker's budget has for it, whatever the method."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
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

with found_in_the_tree():
    from benchmarks import quantised

SHAPE = (1024, 4096)


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes allocated at a time while `call` runs; NumPy reports its arrays to tracemalloc."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", quantised.KINDS)
def test_scratch_of_every_method(kind: str, transposed: bool, dtype: DType, tmp_path: Path) -> None:
    source = quantised.write(tmp_path / "source", kind, {"w": SHAPE})
    (leaf,) = views.leaf(Source.open(source, "8G", None).understood.catalog["w.weight"]).leaves()
    assert isinstance(leaf, Dequantised)
    windows = Windows(64 << 20, Access.READ)
    window = windows.quantised(leaf, whole(leaf.shape))
    shape = leaf.shape[::-1] if transposed else leaf.shape
    target = np.zeros(shape, f"u{dtype.itemsize}")
    out = target.T if transposed else target
    assert peak_of(lambda: dequantise(window, whole(leaf.shape), out, dtype)) <= kernels.SCRATCH_BYTES
    windows.close()
