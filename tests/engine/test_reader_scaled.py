"""FP8 blocks through the reader: dequantised before they are stacked, transposed and merged, box by box."""

from __future__ import annotations

from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from streamconv.engine.boxes import boxes, cells
from streamconv.engine.reader import Reader
from streamconv.engine.windows import Windows
from streamconv.formats import safetensors
from streamconv.formats.header_room import HeaderRoom
from streamconv.storage.access import Access
from streamconv.tensors import views
from streamconv.tensors.dtypes import BF16, F8_E4M3, F16, F32
from streamconv.tensors.grids import box_shape
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.quantised import fp8_in_blocks

pytestmark = pytest.mark.usefixtures("short_is_long_enough")

ROWS, COLUMNS, EXPERTS = 300, 200, 3  # edge blocks of 44 rows and 72 columns


#: The dtypes of scales: DeepSeek's, Qwen's, and one that other tools write.
SCALES = {F32: np.float32, BF16: ml_dtypes.bfloat16, F16: np.float16}


@pytest.fixture(scope="module", params=SCALES, ids=lambda dtype: dtype.name)
def experts(tmp_path_factory, request):
    """Matrices and scales on disk: each a view and what it has to be, computed by NumPy in one go."""
    rng = np.random.default_rng(7)
    grid = (-(-ROWS // 128), -(-COLUMNS // 128))
    data, values = {}, []
    for e in range(EXPERTS):
        weight = rng.integers(0, 256, (ROWS, COLUMNS), np.uint8)
        weight[(weight & 0x7F) == 0x7F] = 0  # no NaN: it is equal to nothing
        scale = rng.uniform(1e-3, 2e2, grid).astype(SCALES[request.param])
        data[f"w{e}"], data[f"w{e}_scale_inv"] = weight.tobytes(), scale.tobytes()
        spread = np.repeat(np.repeat(scale.astype(np.float32), 128, 0), 128, 1)[:ROWS, :COLUMNS]
        product = weight.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread
        values.append(product.astype(ml_dtypes.bfloat16))
    specs = [TensorSpec(f"w{e}", F8_E4M3, (ROWS, COLUMNS)) for e in range(EXPERTS)]
    specs += [TensorSpec(f"w{e}_scale_inv", request.param, grid) for e in range(EXPERTS)]
    path = tmp_path_factory.mktemp("fp8") / "model.safetensors"
    golden.write(path, safetensors.lay_out(path.name, specs, {}), data)
    _, refs = safetensors.read(path, HeaderRoom())
    weights = [fp8_in_blocks(refs[f"w{e}"], refs[f"w{e}_scale_inv"]) for e in range(EXPERTS)]
    return [views.leaf(weight) for weight in weights], np.stack(values)


LAYOUTS = {
    "one": (lambda stacked: views.squeeze(views.cut(stacked, 0, 1, 2), 0), lambda a: a[1]),
    "stacked": (lambda stacked: stacked, lambda a: a),
    "transposed and merged": (
        lambda stacked: views.merge(views.permute(stacked, (0, 2, 1)), 0),
        lambda a: a.transpose(0, 2, 1).reshape(-1, ROWS),
    ),
    "every other row": (lambda stacked: views.cut(stacked, 1, 1, ROWS, 2), lambda a: a[:, 1::2]),
}


@pytest.mark.slow
@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("region", [4096, 1 << 16, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_any_layout_of_dequantised_matrices(experts, layout, region, access, dtype) -> None:
    leaves, values = experts
    arrange, reference = LAYOUTS[layout]
    view, expected = arrange(views.stack(leaves)), reference(values)
    result = np.zeros(view.shape, ml_dtypes.bfloat16 if dtype == BF16 else np.float32)
    reader = Reader(region, access)
    for cell in cells(view):
        for box in boxes(view, cell, dtype.itemsize, region):
            target = np.empty(np.prod(box_shape(box)), f"u{dtype.itemsize}")
            reader.fill(view, box, target, dtype)
            result[tuple(slice(*side) for side in box)] = target.reshape(box_shape(box)).view(result.dtype)
    reader.close()
    np.testing.assert_array_equal(result, expected.astype(result.dtype))


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize(("layout", "direct"), [("one", True), ("transposed", True), ("every other row", False)])
def test_a_box_in_any_order_goes_straight_to_its_place(experts, layout, direct, access) -> None:
    """Weights and scales alone have to fit the region then: there is no second buffer, and no second pass."""
    one = experts[0][1]
    view = {"one": one, "transposed": views.permute(one, (1, 0)), "every other row": views.cut(one, 0, 1, ROWS, 2)}[
        layout
    ]
    (piece,) = view.box(tuple((0, n) for n in view.shape))
    reader = Reader(ROWS * COLUMNS + 64, access)
    assert (len(list(reader.split_to_fit(piece.leaf, piece.grid))) == 1) == direct
    target = np.empty(np.prod(view.shape), np.uint16)
    with mock.patch.object(Windows, "_dequantised", autospec=True, side_effect=Windows._dequantised) as dequantised:
        reader.fill(view, tuple((0, n) for n in view.shape), target, BF16)
    assert dequantised.called != direct
    reader.close()


def test_overflows_of_dequantised_values_are_counted(experts) -> None:
    leaves, values = experts
    reader = Reader(1 << 20, Access.READ)
    target = np.empty(ROWS * COLUMNS, np.uint16)
    count = reader.fill(leaves[0], ((0, ROWS), (0, COLUMNS)), target, F16)
    reader.close()
    with np.errstate(over="ignore"):
        expected = values[0].astype(np.float32).astype(np.float16)
    np.testing.assert_array_equal(target.view(np.float16).reshape(ROWS, COLUMNS), expected)
    assert count == np.isinf(expected).sum() > 0
