"""FP8 blocks through the reader: dequantised before they are stacked, transposed and merged, box by box."""

from __future__ import annotations

import golden
import ml_dtypes
import numpy as np
import pytest

from streamconv import views
from streamconv.boxes import boxes, cells
from streamconv.dtypes import BF16, F8_E4M3, F32
from streamconv.formats import safetensors
from streamconv.grids import box_shape
from streamconv.sources import Reader
from streamconv.tensors import TensorSpec

ROWS, COLUMNS, EXPERTS = 300, 200, 3  # edge blocks of 44 rows and 72 columns


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Matrices and scales on disk: each a view and what it has to be, computed by NumPy in one go."""
    rng = np.random.default_rng(7)
    grid = (-(-ROWS // 128), -(-COLUMNS // 128))
    data, values = {}, []
    for e in range(EXPERTS):
        weight = rng.integers(0, 256, (ROWS, COLUMNS), np.uint8)
        weight[(weight & 0x7F) == 0x7F] = 0  # no NaN: it is equal to nothing
        scale = rng.uniform(1e-3, 1e2, grid).astype(np.float32)
        data[f"w{e}"], data[f"w{e}_scale_inv"] = weight.tobytes(), scale.tobytes()
        spread = np.repeat(np.repeat(scale, 128, 0), 128, 1)[:ROWS, :COLUMNS]
        product = weight.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread
        values.append(product.astype(ml_dtypes.bfloat16))
    specs = [TensorSpec(f"w{e}", F8_E4M3, (ROWS, COLUMNS)) for e in range(EXPERTS)]
    specs += [TensorSpec(f"w{e}_scale_inv", F32, grid) for e in range(EXPERTS)]
    path = tmp_path_factory.mktemp("fp8") / "model.safetensors"
    golden.write(path, safetensors.lay_out(path.name, specs, {}), data)
    _, refs = safetensors.read(path, 1 << 20)
    return [views.scaled(refs[f"w{e}"], refs[f"w{e}_scale_inv"]) for e in range(EXPERTS)], np.stack(values)


LAYOUTS = {
    "one": (lambda stacked: views.squeeze(views.cut(stacked, 0, 1, 2), 0), lambda a: a[1]),
    "stacked": (lambda stacked: stacked, lambda a: a),
    "transposed and merged": (
        lambda stacked: views.merge(views.permute(stacked, (0, 2, 1)), 0),
        lambda a: a.transpose(0, 2, 1).reshape(-1, ROWS),
    ),
    "every other row": (lambda stacked: views.cut(stacked, 1, 1, ROWS, 2), lambda a: a[:, 1::2]),
}


@pytest.mark.parametrize("mapped", [True, False], ids=["map", "read"])
@pytest.mark.parametrize("region", [4096, 1 << 16, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_any_layout_of_dequantised_matrices(experts, layout, region, mapped, dtype) -> None:
    leaves, values = experts
    arrange, reference = LAYOUTS[layout]
    view, expected = arrange(views.stack(leaves)), reference(values)
    result = np.zeros(view.shape, ml_dtypes.bfloat16 if dtype == BF16 else np.float32)
    reader = Reader(region, mapped)
    for cell in cells(view):
        for box in boxes(view, cell, dtype.itemsize, region):
            target = np.empty(np.prod(box_shape(box)), f"u{dtype.itemsize}")
            reader.place(view, box, target, dtype)
            result[tuple(slice(*side) for side in box)] = target.reshape(box_shape(box)).view(result.dtype)
    reader.close()
    np.testing.assert_array_equal(result, expected.astype(result.dtype))
