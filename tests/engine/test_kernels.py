"""The kernels against independent oracles: torch, exact rational arithmetic, and NumPy's own copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import permutations, product
from typing import Any
from unittest import mock

import ml_dtypes
import numkong
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamconv.engine import dequantise, kernels, tiles
from streamconv.errors import InternalError, UnsupportedError
from streamconv.tensors.dtypes import BF16, DTYPES, F8_E4M3, F16, F32, F64, INTEGER, DType
from support.quantised import TILES, dequantise_fp8
from support.tracing import peak_of

Array = NDArray[Any]

FLOATS = (F16, BF16, F32, F64)
PAIRS = [pytest.param(a, b, id=f"{a}-{b}") for a, b in permutations(FLOATS, 2)]
NUMPY = {F16: np.float16, BF16: ml_dtypes.bfloat16, F32: np.float32, F64: np.float64}
MANTISSA = {F16: 10, BF16: 7, F32: 23, F64: 52}
BIAS = {F16: 15, BF16: 127, F32: 127, F64: 1023}
QUIET = {F16: 0x7E00, BF16: 0x7FC0, F32: 0x7FC00000, F64: 0x7FF8 << 48}

pytestmark = pytest.mark.filterwarnings("error")


def unsigned(dtype: DType) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def infinity(dtype: DType) -> int:
    return QUIET[dtype] - (1 << (MANTISSA[dtype] - 1))


def sign(dtype: DType) -> int:
    return 1 << (8 * dtype.itemsize - 1)


def cast(bits: Array, source: DType, target: DType) -> tuple[Array, int]:
    out = np.full(bits.shape, 0xA5, unsigned(target))
    return out, kernels.cast(bits, out, source, target)


def bits_of(values: object, dtype: DType) -> Array:
    return np.asarray(values, NUMPY[dtype]).view(unsigned(dtype))


def is_nan(bits: Array, dtype: DType) -> Array:
    magnitude: Array = bits & unsigned(dtype).type(sign(dtype) - 1)
    return magnitude > infinity(dtype)


def is_finite(bits: Array, dtype: DType) -> Array:
    magnitude: Array = bits & unsigned(dtype).type(sign(dtype) - 1)
    return magnitude < infinity(dtype)


def canonical_nans(bits: Array, source: DType, target: DType) -> Array:
    negative = bits >> (8 * source.itemsize - 1) != 0
    return np.where(negative, QUIET[target] | sign(target), QUIET[target]).astype(unsigned(target))


def check(bits: Array, source: DType, target: DType, expected: Array) -> None:
    """The cast gives `expected` but for NaN, which is canonical, and counts what became infinite."""
    out, overflows = cast(bits, source, target)
    expected = np.where(is_nan(bits, source), canonical_nans(bits, source, target), expected)
    np.testing.assert_array_equal(out, expected)
    assert overflows == np.count_nonzero(is_finite(bits, source) & ~is_finite(expected, target))


def by_torch(bits: Array, source: DType, target: DType) -> Array:
    torch = pytest.importorskip("torch")
    types = {F16: torch.float16, BF16: torch.bfloat16, F32: torch.float32, F64: torch.float64}
    ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    values = torch.from_numpy(bits.view(f"i{source.itemsize}")).view(types[source]).to(types[target])
    result: Array = values.view(ints[target.itemsize]).numpy().view(unsigned(target))
    return result


def by_search(values: NDArray[np.float64], target: DType) -> Array:
    """float64 rounded once to 16 bits: patterns lie in the order of their values, ties go to even ones."""
    patterns = np.arange(infinity(target) + 1, dtype=np.uint16)
    ladder = patterns.view(NUMPY[target]).astype(np.float64)
    ladder[-1] = 2.0 ** (BIAS[target] + 1)  # where infinity stands in the rounding
    middles = (ladder[:-1] + ladder[1:]) / 2
    index = np.searchsorted(middles, np.abs(values))
    tie = middles[np.minimum(index, len(middles) - 1)] == np.abs(values)
    index += tie & (index % 2 == 1)
    return (index | np.where(np.signbit(values), 0x8000, 0)).astype(np.uint16)


def by_fraction(value: float, target: DType) -> float:
    """A finite float rounded once to `target` in rational arithmetic (`round` of a Fraction ties to even)."""
    if value == 0:
        return value
    exponent = max(math.frexp(value)[1] - 1, 1 - BIAS[target])
    unit = Fraction(2) ** (exponent - MANTISSA[target])
    rounded = round(Fraction(value) / unit) * unit
    if abs(rounded) >= Fraction(2) ** (BIAS[target] + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


def random_bits(dtype: DType, count: int, seed: int = 7) -> Array:
    data = bytearray(np.random.default_rng(seed).bytes(count * dtype.itemsize))
    return np.frombuffer(data, unsigned(dtype))


def boundaries(dtype: DType) -> NDArray[np.float64]:
    """float64 values that try a format's rounding: ties, their neighbours, subnormals, near overflow."""
    bias, mantissa = BIAS[dtype], MANTISSA[dtype]
    tiny = -bias - mantissa
    exponents = {tiny - 1, tiny, tiny + 1, -bias - 1, -bias, 1 - bias, 2 - bias, -1, 0, 1, bias}
    tails = [Fraction(1, 2**n) for n in (mantissa - 1, mantissa, mantissa + 1, mantissa + 2, 24, 25, 40, 52)]
    steps = {Fraction(0), *tails, *(a + b for a, b in product(tails, tails)), *(1 - t for t in tails)}
    values = np.array([float(1 + s) * 2.0**e for s, e in product(steps, exponents) if -1022 <= e <= 1023 and s < 1])
    near = [values, np.nextafter(values, 0), np.nextafter(values, np.inf)]
    positive = np.concatenate([*near, [0.0, 5e-324, 2.0**-1022, np.finfo(np.float64).max, np.inf, np.nan]])
    return np.concatenate([positive, -positive])


# ---------------------------------------------------------------- casts: values


@pytest.mark.parametrize("target", FLOATS, ids=str)
@pytest.mark.parametrize("source", [F16, BF16], ids=str)
def test_cast_of_every_16_bit_pattern_equals_torch(source: DType, target: DType) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    if source == target:
        np.testing.assert_array_equal(cast(bits, source, target)[0], bits)
    else:
        check(bits, source, target, by_torch(bits, source, target))


@pytest.mark.parametrize("target", [F16, BF16, F64], ids=str)
def test_cast_of_random_f32_equals_torch(target: DType) -> None:
    bits = random_bits(F32, (1 << 20) + 3)
    check(bits, F32, target, by_torch(bits, F32, target))


def test_cast_of_random_f64_to_f32_equals_torch() -> None:
    wild = random_bits(F64, 1 << 20)
    with np.errstate(all="ignore"):
        tame = bits_of(random_bits(F32, 1 << 20).view(np.float32).astype(np.float64) * 1.0000000417, F64)
    bits = np.concatenate([wild, tame])
    check(bits, F64, F32, by_torch(bits, F64, F32))


@pytest.mark.parametrize("target", [F16, BF16], ids=str)
@pytest.mark.parametrize("source", [F32, F64], ids=str)
def test_cast_to_16_bits_rounds_once(source: DType, target: DType) -> None:
    with np.errstate(all="ignore"):
        tame = np.exp2(np.random.default_rng(3).uniform(-30, 18, 1 << 19))
        bits = np.concatenate([random_bits(source, 1 << 20), bits_of(tame, source)])
        expected = by_search(bits.view(NUMPY[source]).astype(np.float64), target)
    check(bits, source, target, expected)


@pytest.mark.parametrize("target", [F16, BF16], ids=str)
@pytest.mark.parametrize("source", [F32, F64], ids=str)
def test_cast_to_16_bits_at_every_tie_and_beside_it(source: DType, target: DType) -> None:
    ladder = np.arange(infinity(target), dtype=np.uint16).view(NUMPY[target]).astype(np.float64)
    ladder = np.append(ladder, 2.0 ** (BIAS[target] + 1))
    with np.errstate(all="ignore"):
        ties = ((ladder[:-1] + ladder[1:]) / 2).astype(NUMPY[source])
        zero, top = NUMPY[source](0), NUMPY[source](np.inf)
        values = np.concatenate([ties, np.nextafter(ties, zero), np.nextafter(ties, top)])
        values = np.concatenate([values, -values])
    check(bits_of(values, source), source, target, by_search(values.astype(np.float64), target))


@pytest.mark.parametrize("target", [F16, BF16, F32], ids=str)
def test_cast_of_f64_is_exact_at_boundaries(target: DType) -> None:
    values = boundaries(target)
    finite = np.isfinite(values)
    with np.errstate(all="ignore"):
        expected = values.copy()
        expected[finite] = [by_fraction(v, target) for v in values[finite].tolist()]
    check(bits_of(values, F64), F64, target, bits_of(expected.astype(NUMPY[target]), target))


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([F16, BF16, F32]))
def test_cast_of_any_f64_is_exact(value: float, target: DType) -> None:
    out, overflows = cast(bits_of([value], F64), F64, target)
    expected = by_fraction(value, target)
    assert out.view(NUMPY[target]).astype(np.float64).view(np.uint64) == bits_of([expected], F64)
    assert overflows == math.isinf(expected)


def test_cast_of_f64_to_bf16_where_two_roundings_differ() -> None:
    above_tie = 1 + 2.0**-8 + 2.0**-40  # by way of float32 the last term is lost, and the tie goes to 1.0
    below_tie = 1 + 3 * 2.0**-8 - 2.0**-40
    out, _ = cast(bits_of([above_tie, below_tie, -above_tie], F64), F64, BF16)
    assert out.tolist() == [0x3F81, 0x3F81, 0xBF81]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_cast_gives_nan_one_pattern_and_keeps_its_sign(source: DType, target: DType) -> None:
    lowest, highest = infinity(source) + 1, sign(source) - 1
    payloads = [lowest, lowest + 1, QUIET[source], QUIET[source] + 1, highest]
    bits = np.array([p | s for p in payloads for s in (0, sign(source))], unsigned(source))
    out, overflows = cast(bits, source, target)
    assert out.tolist() == [QUIET[target], QUIET[target] | sign(target)] * len(payloads)
    assert overflows == 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_cast_keeps_infinity_and_zero_without_counting(source: DType, target: DType) -> None:
    out, overflows = cast(bits_of([np.inf, -np.inf, 0.0, -0.0], source), source, target)
    assert out.tolist() == [infinity(target), infinity(target) | sign(target), 0, sign(target)]
    assert overflows == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_cast_to_the_same_dtype_keeps_every_bit(dtype: DType) -> None:
    bits = random_bits(dtype, 1 << 16)
    out, overflows = cast(bits, dtype, dtype)
    np.testing.assert_array_equal(out, bits)
    assert overflows == 0


@pytest.mark.parametrize(
    ("source", "target", "largest", "too_large"),
    [
        (F32, F16, 65519.99, 65520.0),
        (F64, F16, math.nextafter(65520.0, 0), 65520.0),
        (BF16, F16, 65280.0, 65536.0),
        (F32, BF16, 3.3961773e38, (2 - 2.0**-8) * 2.0**127),
        (F64, BF16, math.nextafter((2 - 2.0**-8) * 2.0**127, 0), (2 - 2.0**-8) * 2.0**127),
        (F64, F32, math.nextafter((2 - 2.0**-24) * 2.0**127, 0), (2 - 2.0**-24) * 2.0**127),
    ],
    ids=str,
)
def test_cast_counts_overflows_over_all_tiles(source: DType, target: DType, largest: float, too_large: float) -> None:
    bits = bits_of(np.full(300_000, largest), source)
    assert cast(bits, source, target)[1] == 0
    bits[::1000] = bits_of(-too_large, source)
    bits[1::1000] = bits_of(np.nan, source)
    bits[2::1000] = bits_of(np.inf, source)
    assert cast(bits, source, target)[1] == 300


@pytest.mark.parametrize("place", [0, 450_000, 999_999])
@pytest.mark.parametrize("rare", ["subnormal", "-0", "nan", "highest nan", "inf"])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_cast_finds_one_rare_value_among_many(source: DType, target: DType, rare: str, place: int) -> None:
    bits = bits_of(np.full(1_000_000, 1.5), source)
    rares = {"subnormal": 1 << (MANTISSA[source] - 1), "-0": sign(source), "inf": infinity(source)}
    rares |= {"nan": infinity(source) + 1, "highest nan": 2 * sign(source) - 1}
    bits[place] = rares[rare]
    expected, _ = cast(bits[place : place + 1], source, target)
    out, overflows = cast(bits, source, target)
    assert out[place] == expected[0]
    assert np.count_nonzero(out != bits_of([1.5], target)) == 1 and overflows == 0


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_cast_ignores_how_the_caller_treats_numpy_errors(source: DType, target: DType) -> None:
    bits = random_bits(source, 5000)
    quiet, _ = cast(bits, source, target)
    with np.errstate(all="raise"):
        loud, _ = cast(bits, source, target)
    np.testing.assert_array_equal(loud, quiet)


# ---------------------------------------------------------------- copies and casts: where the elements lie


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...]) -> Callable[[np.dtype[Any]], tuple[Array, Array]]:
    """Makes a buffer and a view of `shape` in it: axes in any order, steps, gaps, any alignment."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in shape]
    shift = draw(st.integers(0, 3))

    def make(dtype: np.dtype[Any]) -> tuple[Array, Array]:
        lengths = [shape[axis] * abs(steps[axis]) for axis in order]
        buffer = np.arange(math.prod(lengths) * dtype.itemsize + shift, dtype=np.uint64).astype(np.uint8)
        whole: Array = np.frombuffer(buffer.data, dtype, math.prod(lengths), offset=shift).reshape(lengths)
        strided = whole[(*(slice(None, None, steps[axis]) for axis in order), ...)]
        return buffer, strided.transpose(np.argsort(order).tolist() if order else [])

    return make


@st.composite
def two_layouts(draw: st.DrawFn) -> tuple[Any, Any]:
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=4)))
    return draw(layouts(shape)), draw(layouts(shape))


def small_tiles() -> Any:
    """Tiles so small that a small array needs many."""
    sizes = {"_TILE_BYTES": 256, "_LONG_SIDE_BYTES": 170, "_TURNED_TILE_BYTES": 256, "_RUN": 6}
    return mock.patch.multiple(tiles, **sizes)


def fill(view: Array, seed: int) -> None:
    view[...] = random_bits(F64, view.size, seed).astype(view.dtype).reshape(view.shape)


@pytest.mark.slow
@settings(deadline=None)
@given(two_layouts(), st.sampled_from([1, 2, 4, 8]))
def test_copy_equals_copyto_for_any_strides(makes: tuple[Any, Any], itemsize: int) -> None:
    _, source = makes[0](np.dtype(f"u{itemsize}"))
    fill(source, itemsize)
    buffer, target = makes[1](np.dtype(f"u{itemsize}"))
    wanted, reference = makes[1](np.dtype(f"u{itemsize}"))
    np.copyto(reference, source)
    with small_tiles():
        kernels.copy(source, target)
    np.testing.assert_array_equal(buffer, wanted)  # nor is any byte touched between the elements


@settings(deadline=None)
@given(two_layouts(), st.sampled_from(list(permutations(FLOATS, 2))))
def test_cast_of_any_strides_equals_cast_of_contiguous(makes: tuple[Any, Any], pair: Any) -> None:
    source_dtype, target_dtype = pair
    _, source = makes[0](unsigned(source_dtype))
    fill(source, 5)
    buffer, target = makes[1](unsigned(target_dtype))
    wanted, reference = makes[1](unsigned(target_dtype))
    expected, overflows = cast(np.ascontiguousarray(source).reshape(source.shape), *pair)
    np.copyto(reference, expected)
    with small_tiles():
        assert kernels.cast(source, target, *pair) == overflows
    np.testing.assert_array_equal(buffer, wanted)


@pytest.mark.parametrize("shape", [(1000, 777), (3, 70_001), (70_001, 3), (5, 300, 401)], ids=str)
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_copy_of_large_transposes(shape: tuple[int, ...], itemsize: int) -> None:
    source = np.arange(math.prod(shape), dtype=np.uint64).astype(f"u{itemsize}").reshape(shape)
    target = np.zeros(shape[::-1], source.dtype)
    kernels.copy(source, target.T)
    np.testing.assert_array_equal(target, source.T)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_cast_of_large_transposes(source: DType, target: DType) -> None:
    bits = random_bits(source, 700 * 513).reshape(700, 513)
    out = np.zeros((513, 700), unsigned(target))
    overflows = kernels.cast(bits, out.T, source, target)
    expected, expected_overflows = cast(bits, source, target)
    np.testing.assert_array_equal(out, expected.T)
    assert overflows == expected_overflows


def test_copy_of_a_repeated_row() -> None:
    source = np.broadcast_to(np.arange(5, dtype=np.uint16)[:, np.newaxis], (5, 7))
    target = np.zeros((5, 7), np.uint16)
    kernels.copy(source, target)
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1), (1,)], ids=str)
def test_tiny_shapes(shape: tuple[int, ...]) -> None:
    source = bits_of(np.full(shape, 1e39), F64)
    target = np.zeros(shape, np.uint16)
    assert kernels.cast(source, target, F64, BF16) == source.size
    assert (target == 0x7F80).all()
    same = np.zeros(shape, np.uint64)
    kernels.copy(source, same)
    assert (same == source).all()


def test_read_only_source() -> None:
    source = np.frombuffer(b"\x00\x3c" * 9, np.uint16)
    out, _ = cast(source, F16, F32)
    assert (out.view(np.float32) == 1).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: kernels.copy(a, b[:1]),
        lambda a, b: kernels.copy(a, b.astype(np.uint32)),
        lambda a, b: kernels.cast(a, b[:1], F16, BF16),
        lambda a, b: kernels.cast(a, b, F16, F8_E4M3),
        lambda a, b: dequantise_fp8(a.view(np.uint8), np.ones((1, 1), np.float32), b, BF16, 0, 0),
        lambda a, b: dequantise_fp8(a.astype(np.uint8), np.ones((1, 1), np.float32), b[:1], BF16, 0, 0),
        lambda a, b: dequantise_fp8(a.astype(np.uint8), np.ones((1, 1), np.float32), b, F8_E4M3, 0, 0),
    ],
)
def test_calls_that_do_not_fit_are_refused(call: Callable[[Array, Array], None]) -> None:
    with pytest.raises(InternalError):
        call(np.zeros((2, 4), np.uint16), np.zeros((2, 4), np.uint16))


# ---------------------------------------------------------------- FP8 blocks


def dequantised(weight: Array, scale: Array, block: tuple[int, int] = (128, 128)) -> Array:
    """The bits of the whole matrix, by torch, which makes the widest temporaries it likes."""
    torch = pytest.importorskip("torch")
    values = torch.from_numpy(weight).view(torch.float8_e4m3fn).to(torch.float32)
    grid = torch.from_numpy(scale).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    product = values * grid[: weight.shape[0], : weight.shape[1]]
    result: Array = product.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return result


def same_but_for_nan(out: Array, expected: Array, weight: Array) -> None:
    nan = is_nan(expected, BF16)
    np.testing.assert_array_equal(out[~nan], expected[~nan])
    np.testing.assert_array_equal(out[nan], np.where(weight[nan] >= 0x80, 0xFFC0, 0x7FC0))


def matrix(rows: int, columns: int, block: tuple[int, int] = (128, 128)) -> tuple[Array, Array]:
    rng = np.random.default_rng(rows + columns)
    weight = rng.integers(0, 256, (rows, columns), np.uint8)
    grid = -(-rows // block[0]), -(-columns // block[1])
    scale = np.exp2(rng.uniform(-20, 4, grid)).astype(np.float32)
    return weight, scale


EXTREMES = [1.0, -3.7, 1e-38, 1e-45, 1e30, 3e38, 0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan]
EXTREMES += [
    float(np.nextafter(np.float32(2.0**e), np.float32(side))) for e in (-100, 100) for side in (0, 2.0**e, 9e30)
]


def by_arithmetic(weight: Array, factors: Array) -> Array:
    """What the words of `dequantise` say, in NumPy."""
    with np.errstate(all="ignore"):
        values = weight.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * factors
        result = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return np.where(np.isnan(values), np.where(weight >= 0x80, 0xFFC0, 0x7FC0), result).astype(np.uint16)


@pytest.mark.parametrize("scale", EXTREMES, ids=str)
def test_dequantise_every_pattern(scale: float) -> None:
    weight = np.arange(256, dtype=np.uint8).reshape(2, 128)
    grid = np.full((1, 1), scale, np.float32)
    out = np.zeros(weight.shape, np.uint16)
    with np.errstate(all="raise"):
        dequantise_fp8(weight, grid, out, BF16, 0, 0)
    np.testing.assert_array_equal(out, by_arithmetic(weight, grid))
    same_but_for_nan(out, dequantised(weight, grid), weight)


def every_pattern_times_many_scales() -> tuple[Array, Array, Array]:
    """All patterns in columns, a scale in each row, and what comes out: ties, bfloat16 scales and powers of two too."""
    rng = np.random.default_rng(5)
    any_scale = rng.integers(0, 1 << 32, 3000, np.uint32)
    near_one = (rng.integers(0, 1 << 23, 3000, np.uint32) & 0xFFFFFFF0) | 0x3C000000
    short = rng.integers(0, 1 << 16, 3000, np.uint32) << 16
    scales = np.concatenate([any_scale, near_one, short]).view(np.float32)
    scales = np.concatenate([scales, np.exp2(np.arange(-149.0, 128)).astype(np.float32), np.float32(EXTREMES)])
    weight = np.broadcast_to(np.arange(256, dtype=np.uint8), (len(scales), 256)).copy()
    return weight, scales[:, np.newaxis], by_arithmetic(weight, scales[:, np.newaxis])


@pytest.mark.slow
@pytest.mark.parametrize("without_nan", [False, True])
def test_dequantise_every_pattern_times_many_scales(without_nan: bool) -> None:
    weight, scale, expected = every_pattern_times_many_scales()
    columns = (np.arange(256) & 0x7F) != 0x7F if without_nan else np.ones(256, bool)
    weight = weight[:, columns]
    out = np.zeros(weight.shape, np.uint16)
    dequantise_fp8(weight, scale, out, BF16, 0, 0, (1, 256))
    np.testing.assert_array_equal(out, expected[:, columns])


def with_fewer_and_fewer_instructions() -> Iterator[None]:
    """Other processors take other ways through NumKong: all that this one can take, to the one without any."""
    able = [name for name, has in numkong.get_capabilities().items() if has and name != "serial"]
    try:
        yield
        for name in reversed(able):
            numkong.disable_capability(name)
            yield
    finally:
        for name in able:
            numkong.enable_capability(name)


@pytest.mark.slow
def test_dequantise_whatever_instructions_numkong_may_use() -> None:
    weight, scale, expected = every_pattern_times_many_scales()
    for _ in with_fewer_and_fewer_instructions():
        out = np.zeros(weight.shape, np.uint16)
        dequantise_fp8(weight, scale, out, BF16, 0, 0, (1, 256))
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("source", "target"), [(F16, F32), (BF16, F16), (F32, F16)], ids=str)
def test_cast_whatever_instructions_numkong_may_use(source: DType, target: DType) -> None:
    """Every pattern of 16 bits; of 32 every tie of float16 and what lies beside it, and a million others."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    if source == F32:
        values = np.abs(bits.view(np.float16)[:0x7C00].astype(np.float32))
        ties = np.append((values[:-1] + values[1:]) / 2, np.float32(65520)).view(np.uint32)
        near = np.concatenate([values.view(np.uint32)[1:], ties])
        positive = np.concatenate([near - 1, near, near + 1, np.arange(0x7F7FFFF0, 0x7F800010, dtype=np.uint32)])
        bits = np.concatenate([positive, positive | sign(F32), random_bits(F32, 1 << 20)]).astype(np.uint32)
    expected = by_torch(bits, source, target)
    for _ in with_fewer_and_fewer_instructions():
        check(bits, source, target, expected)


@pytest.mark.parametrize(
    ("scale", "rounds"), [(1.0, True), (-0.01, True), (1e-31, False), (-1e31, False), (0.0, False), (np.nan, False)]
)
def test_only_normal_products_are_rounded_by_numkong(scale: float, rounds: bool) -> None:
    """It may use instructions that flush subnormals, and it loses NaN."""
    weight, grid = np.full((2, 128), 0x38, np.uint8), np.full((1, 1), scale, np.float32)
    with mock.patch.object(numkong, "astype", wraps=numkong.astype) as astype:
        dequantise_fp8(weight, grid, np.zeros(weight.shape, np.uint16), BF16, 0, 0)
    assert [call.args[1] for call in astype.call_args_list] == ["float32"] + ["bfloat16"] * rounds


@pytest.mark.parametrize("dtype", [BF16, F32, F16, F64], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_dequantise_casts_what_it_rounded(dtype: DType, transposed: bool) -> None:
    """Large values in some blocks only: float16 overflows there, and that is counted over all tiles."""
    weight, scale = matrix(1000, 900)
    scale[::3, 1::2] = 2.0**9
    out = np.zeros(weight.shape[::-1] if transposed else weight.shape, unsigned(dtype))
    target = out.T if transposed else out
    overflows = dequantise_fp8(weight, scale, target, dtype, 0, 0)
    factors = scale.repeat(128, 0).repeat(128, 1)[:1000, :900]
    expected, expected_overflows = cast(by_arithmetic(weight, factors), BF16, dtype)
    np.testing.assert_array_equal(target, expected)
    assert overflows == expected_overflows
    assert (overflows > 0) == (dtype == F16)


@pytest.mark.parametrize("nan", [0x7F, 0xFF])
@pytest.mark.parametrize("place", [(0, 0), (127, 16_500), (299, 19_999), (128, 16_383)], ids=str)
def test_dequantise_finds_one_nan(nan: int, place: tuple[int, int]) -> None:
    weight, scale = matrix(300, 20_000)
    weight[(weight & 0x7F) == 0x7F] = 0
    weight[place] = nan
    out = np.zeros(weight.shape, np.uint16)
    dequantise_fp8(weight, scale, out, BF16, 0, 0)
    assert np.argwhere((out & 0x7FFF) > 0x7F80).tolist() == [list(place)]
    assert out[place] == (0x7FC0 if nan == 0x7F else 0xFFC0)


def test_dequantise_a_trimmed_matrix() -> None:
    weight, scale = matrix(300, 515)
    out = np.zeros(weight.shape, np.uint16)
    dequantise_fp8(weight, scale, out, BF16, 0, 0)
    same_but_for_nan(out, dequantised(weight, scale), weight)


@pytest.mark.slow
@settings(deadline=None)
@given(st.data())
def test_dequantise_boxes_that_start_anywhere(data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([(128, 128), (64, 200), (7, 5), (1, 16)]))
    weight, scale = matrix(290, 410, block)
    row, column = data.draw(st.integers(0, 289)), data.draw(st.integers(0, 409))
    height, width = data.draw(st.integers(0, 290 - row)), data.draw(st.integers(0, 410 - column))
    box = np.s_[row : row + height, column : column + width]
    first, last = (row // block[0], column // block[1]), (row + height - 1, column + width - 1)
    grid = scale[first[0] : last[0] // block[0] + 1, first[1] : last[1] // block[1] + 1]
    _, source = data.draw(layouts((height, width)))(np.dtype(np.uint8))
    source[...] = weight[box]
    _, target = data.draw(layouts((height, width)))(np.dtype(np.uint16))
    with mock.patch.multiple(dequantise, **data.draw(st.sampled_from(TILES))):
        dequantise_fp8(source, grid, target, BF16, row, column, block)
    factors = scale.repeat(block[0], 0).repeat(block[1], 1)[:290, :410]
    np.testing.assert_array_equal(target, by_arithmetic(weight, factors)[box])


# ---------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.parametrize("content", ["numbers", "nan"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_scratch_of_cast(source: DType, target: DType, transposed: bool, content: str) -> None:
    bits = bits_of(np.full((1024, 2048), np.nan if content == "nan" else 1.5), source)
    out = np.zeros((2048, 1024), unsigned(target)).T if transposed else np.zeros((1024, 2048), unsigned(target))
    assert peak_of(lambda: kernels.cast(bits, out, source, target)) <= kernels.SCRATCH_BYTES


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_scratch_of_copy(itemsize: int) -> None:
    source, target = (np.zeros((2048, 2048), f"u{itemsize}") for _ in range(2))
    assert peak_of(lambda: kernels.copy(source, target.T)) <= kernels.SCRATCH_BYTES // 4


@pytest.mark.slow
@pytest.mark.parametrize("content", ["numbers", "nan"])
@pytest.mark.parametrize("dtype", [BF16, F32, F16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        *product([(8, 60_000), (1000, 128), (130, 130), (700, 2048)], [(128, 128), (100_000, 300_000)]),
        *product([(8, 10_000), (1000, 16), (130, 130)], [(1, 16)]),  # many blocks, and each takes its time
    ],
    ids=str,
)
def test_scratch_of_dequantise(
    shape: tuple[int, int], block: tuple[int, int], dtype: DType, transposed: bool, content: str
) -> None:
    weight, scale = matrix(*shape, block)
    if content == "nan":
        weight[...] = 0xFF
    out = np.zeros(shape[::-1], unsigned(dtype)).T if transposed else np.zeros(shape, unsigned(dtype))
    assert peak_of(lambda: dequantise_fp8(weight, scale, out, dtype, 0, 0, block)) <= kernels.SCRATCH_BYTES


INTEGERS = {dtype.name: dtype for dtype in DTYPES if dtype.kind == INTEGER}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("source", "target"), [("I64", "I32"), ("I32", "I64"), ("U8", "I64"), ("I16", "I64")])
def test_integers_keep_their_values(source: str, target: str, order: Any) -> None:
    narrow = min(INTEGERS[source].itemsize, INTEGERS[target].itemsize)
    edge = np.iinfo(f"i{narrow}" if source != "U8" else "u1")
    values = np.array([[edge.min, 0, 1], [edge.max, 7, 2]], INTEGERS[source].numpy, order=order)
    result = np.zeros((2, 3), f"u{INTEGERS[target].itemsize}")
    bits = values.view(f"u{INTEGERS[source].itemsize}")
    assert kernels.cast(bits, result, INTEGERS[source], INTEGERS[target]) == 0
    np.testing.assert_array_equal(result.view(INTEGERS[target].numpy), values)
    kernels.cast(bits[1, 1, ...], result[0, 0, ...], INTEGERS[source], INTEGERS[target])
    assert result[0, 0] == 7


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, (1 << 63) - 1])
def test_an_integer_that_does_not_fit(value: int) -> None:
    values = np.array([0, value], np.int64).view(np.uint64)
    with pytest.raises(UnsupportedError, match="does not fit into I32"):
        kernels.cast(values, np.zeros(2, np.uint32), INTEGERS["I64"], INTEGERS["I32"])


def test_integers_take_no_more_memory_than_other_casts() -> None:
    values, out = np.arange(3_000_000, dtype=np.uint64), np.zeros(3_000_000, np.uint32)
    assert peak_of(lambda: kernels.cast(values, out, INTEGERS["I64"], INTEGERS["I32"])) <= kernels.SCRATCH_BYTES
