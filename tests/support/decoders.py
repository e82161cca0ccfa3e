"""Quantised weights at random, and what they stand for: a second decoder, which shares nothing with streamconv's.

Sources: OCP 8-bit Floating Point and Microscaling Formats 1.0 for the numbers; for the files the libraries that write
them: compressed-tensors, ModelOpt, GPTQModel, AutoAWQ, msModelSlim, gpt-oss, DeepSeek's own code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
Shape = tuple[int, ...]

MODULE = "model.layers.0.mlp.up_proj"
BF16_NAN = 0x7FC0

# ---------------------------------------------------------------- numbers


def _e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return math.nan
    size = math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10)
    return -size if code & 0x80 else size


def _e2m1(code: int) -> float:
    exponent, mantissa = code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else math.ldexp(2 + mantissa, exponent - 2)
    return -size if code & 8 else size


E4M3: Floats = np.array([_e4m3(code) for code in range(256)], np.float32)
E2M1: Floats = np.array([_e2m1(code) for code in range(16)], np.float32)
E8M0: Floats = np.array([math.ldexp(1, code - 127) for code in range(255)] + [math.nan], np.float32)

_BITS = {"F32": "<u4", "BF16": "<u2", "F16": "<u2", "F8_E4M3": "u1", "F8_E8M0": "u1", "U8": "u1", "I8": "u1"}
_BITS |= {"I16": "<u2", "F64": "<u8", "I32": "<u4", "I64": "<u8"}


def rounded(values: Floats) -> NDArray[np.uint16]:
    """The bits of the nearest BF16, ties to even; every NaN is the positive quiet one."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    up = bits + 0x7FFF + (bits >> np.uint64(16) & np.uint64(1)) >> np.uint64(16)
    return np.where(np.isnan(values), BF16_NAN, up).astype(np.uint16)


def stream(words: Array, bits: int, count: int, crosses: bool = True) -> NDArray[np.int64]:
    """The first `count` codes in each row of words, low bits first; a code crosses words, or a word has spare bits."""
    rows, width = words.shape
    size = 8 * words.itemsize
    every = np.unpackbits(np.ascontiguousarray(words).view(np.uint8).reshape(rows, -1), axis=1, bitorder="little")
    if not crosses:
        every = every.reshape(rows, width, size)[:, :, : size // bits * bits].reshape(rows, -1)
    found: NDArray[np.int64] = every[:, : count * bits].reshape(rows, count, bits) @ (1 << np.arange(bits))
    return found


def word_count(count: int, bits: int, crosses: bool = True, size: int = 32) -> int:
    return -(-count * bits // size) if crosses else -(-count // (size // bits))


def nibbles(data: Array) -> NDArray[np.int64]:
    """Two codes in a byte, the low one first, along the last axis."""
    pairs: NDArray[np.int64] = np.stack([data & 15, data >> 4], -1).astype(np.int64)
    return pairs.reshape(*data.shape[:-1], -1)


def two_rows(data: Array) -> Floats:
    """Rows 2i in the low halves of bytes and 2i + 1 in the high ones, in two's complement."""
    codes = np.stack([data & 15, data >> 4], -2).reshape(-1, data.shape[-1]).astype(np.int64)
    return np.where(codes > 7, codes - 16, codes).astype(np.float32)


def times(codes: Floats, factor: Floats) -> NDArray[np.uint16]:
    with np.errstate(all="ignore"):
        return rounded(codes * factor)


def spread(grid: Array, block: tuple[int, int], shape: Shape) -> Array:
    """What blocks share, for each element."""
    rows, columns = (np.arange(size) // step for size, step in zip(shape[-2:], block, strict=True))
    return grid[..., rows[:, None], columns[None, :]]


# ---------------------------------------------------------------- samples


class Raw(NamedTuple):
    """A tensor as a file holds it: the dtype's name in safetensors, and the bits."""

    dtype: str
    bits: Array

    def values(self) -> Floats:
        """The numbers of a tensor of scales, zero points or 8-bit codes."""
        return _values(self.dtype, np.atleast_1d(self.bits)).reshape(np.shape(self.bits))


def _values(dtype: str, bits: Array) -> Floats:
    match dtype:
        case "F8_E4M3":
            return E4M3[bits]
        case "F8_E8M0" | "U8":
            return E8M0[bits]
        case "F16":
            return bits.view(np.float16).astype(np.float32)
        case "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        case "I64":
            return (bits & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
        case "I8":
            return bits.view(np.int8).astype(np.float32)
    return bits.view(np.float32)


@dataclass(frozen=True)
class Sample:
    """A quantised weight.

    Attributes:
        weight: its name.
        tensors: what it consists of.
        entry: what `quantization_config` or the file next to the weights says.
        expected: the bits of the BF16 that it stands for.
        file: the file next to the weights; `quantization_config` of config.json if empty.
    """

    weight: str
    tensors: Mapping[str, Raw] = field(repr=False)
    entry: Mapping[str, Any]
    expected: NDArray[np.uint16] = field(repr=False)
    file: str = ""


class Size(NamedTuple):
    """Rows and columns at least: a format that wants multiples gets the next; and how many codes share a scale."""

    rows: int
    columns: int
    group: int
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def multiple(self, rows: int = 1, columns: int = 1) -> Size:
        """The same with multiples."""
        return self._replace(rows=-(-self.rows // rows) * rows, columns=-(-self.columns // columns) * columns)

    def unstated(self) -> Size:
        """The same with groups that are told without a config: powers of two, and none is cut."""
        group = 1 << (self.group - 1).bit_length()
        return self._replace(group=group).multiple(columns=group)

    def grid(self, block: tuple[int, int]) -> tuple[int, int]:
        return -(-self.rows // block[0]), -(-self.columns // block[1])


_ODD_F32 = (0, 1 << 31, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFA00001, 0x71800001)


@dataclass
class Dice:
    """Random bits; wild ones hold everything that a dtype can."""

    rng: np.random.Generator
    wild: bool = False
    module: str = MODULE
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"{self.module}.weight"

    def one_of(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        """Bytes, each as often as the others."""
        every = np.resize(np.arange(256, dtype=np.uint8), math.prod(shape))
        return self.rng.permutation(every).reshape(shape)

    def words(self, *shape: int) -> NDArray[np.uint32]:
        return self.bytes(*shape, 4).view("<u4")[..., 0]

    def codes(self, dtype: str, *shape: int) -> Raw:
        return Raw(dtype, self.bytes(*shape))

    def small(self, *shape: int) -> Raw:
        """Zero points, a byte each."""
        return Raw("I8", self.bytes(*shape))

    def scales(self, dtype: str, *shape: int) -> Raw:
        if dtype in ("F8_E8M0", "U8"):
            low, high = (0, 255) if self.wild else (90, 160)
            return Raw(dtype, self.rng.integers(low, high, shape, np.uint8))
        if dtype == "F8_E4M3":
            return Raw(dtype, self.bytes(*shape) if self.wild else self.rng.integers(8, 0x7F, shape, np.uint8))
        bits = self._floats(shape or (1,)).reshape(shape)
        if dtype == "F32":
            return Raw(dtype, bits)
        if dtype == "I64":
            return Raw(dtype, bits.view(np.int32).astype(np.int64).view(np.uint64))
        if dtype == "BF16":
            return Raw(dtype, (bits >> 16).astype(np.uint16))
        with np.errstate(all="ignore"):
            return Raw(dtype, np.asarray(bits).view(np.float32).astype(np.float16).view(np.uint16))

    def _floats(self, shape: Shape) -> NDArray[np.uint32]:
        tame = np.exp2(self.rng.uniform(-12, 4, shape)) * self.rng.choice([1, 1, 1, -1], shape)
        bits = np.asarray(tame, np.float32).view(np.uint32)
        if not self.wild:
            return bits
        odd = self.rng.choice(np.array(_ODD_F32, np.uint32), shape)
        any_bits = self.rng.integers(0, 1 << 32, shape, np.uint32)
        kind = self.rng.integers(0, 4, shape)
        return np.where(kind == 0, odd, np.where(kind == 1, any_bits, bits)).astype(np.uint32)

    def groups(self, kind: str, count: int, group: int) -> Raw:
        """The group of each input: in their order, in any, or none."""
        numbers = np.arange(count) // group
        if kind == "shuffled":
            numbers = self.rng.permutation(numbers)
        if kind == "none":
            numbers[self.rng.integers(count)] = -1
        return Raw("I32", numbers.astype(np.int32).view(np.uint32))


Method = Callable[[Dice, Size], Sample]

# ---------------------------------------------------------------- FP8, and DeepSeek-V4's FP4


def _fp8_entry(size: Size) -> dict[str, Any]:
    return {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(size.block)}


def fp8_blocks(dice: Dice, size: Size, dtype: str, ending: str = "weight_scale_inv") -> Sample:
    codes, scales = dice.codes("F8_E4M3", *size.shape), dice.scales(dtype, *size.grid(size.block))
    expected = times(codes.values(), spread(scales.values(), size.block, size.shape))
    return Sample(dice.name, {dice.name: codes, f"{dice.module}.{ending}": scales}, _fp8_entry(size), expected)


def fp8_stacked(dice: Dice, size: Size) -> Sample:
    shape, name = (3, *size.shape), f"{dice.module}.gate_up_proj"
    codes, scales = dice.codes("F8_E4M3", *shape), dice.scales("F32", 3, *size.grid(size.block))
    expected = times(codes.values(), spread(scales.values(), size.block, shape))
    return Sample(name, {name: codes, f"{name}_scale_inv": scales}, _fp8_entry(size), expected)


def fp8_tensor(dice: Dice, size: Size, ending: str) -> Sample:
    shape = dice.one_of((), (1,))
    codes, scales = dice.codes("F8_E4M3", *size.shape), dice.scales(dice.one_of("BF16", "F32"), *shape)
    entry = {"quant_method": "fp8", **dice.one_of({}, {"weight_block_size": None})}
    expected = times(codes.values(), scales.values().reshape(1, 1))
    return Sample(dice.name, {dice.name: codes, f"{dice.module}.{ending}": scales}, entry, expected)


def _mxfp8(dice: Dice, size: Size, ending: str, entry: Mapping[str, Any], file: str = "") -> Sample:
    codes, scales = dice.codes("F8_E4M3", *size.shape), dice.scales("U8", *size.grid((1, 32)))
    expected = times(codes.values(), spread(scales.values(), (1, 32), size.shape))
    return Sample(dice.name, {dice.name: codes, f"{dice.module}.{ending}": scales}, entry, expected, file)


def mxfp8_transformers(dice: Dice, size: Size) -> Sample:
    return _mxfp8(dice, size, "weight_scale_inv", {"quant_method": "mxfp8"})


def _fp4(dice: Dice, size: Size, codes: str, scales: str, dtypes: tuple[str, str], group: int) -> Sample:
    size = size.multiple(columns=2)
    data, factor = dice.codes(dtypes[0], size.rows, size.columns // 2), dice.scales(dtypes[1], *size.grid((1, group)))
    expected = times(E2M1[nibbles(data.bits)], spread(factor.values(), (1, group), size.shape))
    return Sample(dice.name, {f"{dice.module}.{codes}": data, f"{dice.module}.{scales}": factor}, {}, expected)


def _stating(sample: Sample, entry: Mapping[str, Any], file: str = "") -> Sample:
    return Sample(sample.weight, sample.tensors, entry, sample.expected, file)


def fp4_deepseek(dice: Dice, size: Size) -> Sample:
    return _stating(_fp4(dice, size, "weight", "scale", ("I8", "F8_E8M0"), 32), _fp8_entry(size))


def mxfp4_gpt_oss(dice: Dice, size: Size) -> Sample:
    size, name = size.multiple(columns=32), f"{dice.module}.gate_up_proj"
    codes = dice.codes("U8", 2, size.rows, size.columns // 32, 16)
    scales = dice.scales("U8", 2, size.rows, size.columns // 32)
    values = E2M1[nibbles(codes.bits)].reshape(2, *size.shape)
    expected = times(values, spread(scales.values(), (1, 32), values.shape)).transpose(0, 2, 1)
    tensors = {f"{name}_blocks": codes, f"{name}_scales": scales}
    return Sample(name, tensors, {"quant_method": "mxfp4"}, expected)


# ---------------------------------------------------------------- ModelOpt


def _modelopt(algorithm: str, **values: object) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, **values}


def _modelopt_fp8(dice: Dice, size: Size, algorithm: str, shape: Shape, block: tuple[int, int]) -> Sample:
    codes, scales = dice.codes("F8_E4M3", *size.shape), dice.scales("F32", *shape)
    expected = times(codes.values(), spread(scales.values().reshape(size.grid(block)), block, size.shape))
    tensors = {dice.name: codes, f"{dice.module}.weight_scale": scales}
    return Sample(dice.name, tensors, _modelopt(algorithm), expected)


def modelopt_tensor(dice: Dice, size: Size) -> Sample:
    return _modelopt_fp8(dice, size, "FP8", (), size.shape)


def modelopt_channel(dice: Dice, size: Size) -> Sample:
    return _modelopt_fp8(dice, size, "FP8_PER_CHANNEL_PER_TOKEN", (size.rows,), (1, size.columns))


def modelopt_blocks(dice: Dice, size: Size) -> Sample:
    grid = size.grid((128, 128))
    return _modelopt_fp8(dice, size, "fp8_pb_wo", (grid[0], 1, grid[1], 1), (128, 128))


def modelopt_mxfp8(dice: Dice, size: Size) -> Sample:
    return _mxfp8(dice, size, "weight_scale", _modelopt("MXFP8"))


def modelopt_mxfp4(dice: Dice, size: Size) -> Sample:
    return _stating(_fp4(dice, size, "weight", "weight_scale", ("U8", "U8"), 32), _modelopt("mxfp4"))


def modelopt_nvfp4(dice: Dice, size: Size) -> Sample:
    size = size.multiple(columns=2)
    codes, scales = dice.codes("U8", size.rows, size.columns // 2), dice.scales("F8_E4M3", *size.grid((1, 16)))
    second = dice.scales("F32")
    with np.errstate(all="ignore"):
        factor = scales.values() * second.values()
    expected = times(E2M1[nibbles(codes.bits)], spread(factor, (1, 16), size.shape))
    names = f"{dice.module}.weight_scale", f"{dice.module}.weight_scale_2"
    tensors = {dice.name: codes, names[0]: scales, names[1]: second}
    config = {"quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    return Sample(dice.name, tensors, *dice.one_of((_modelopt("NVFP4"), expected), (config, expected, _HF_QUANT)))


_HF_QUANT = "hf_quant_config.json"


def modelopt_int4(dice: Dice, size: Size) -> Sample:
    states = dice.one_of(True, False)
    size = (size if states else size.unstated()).multiple(rows=2)
    codes, scales = dice.codes("U8", size.rows // 2, size.columns), dice.scales("F32", *size.grid((1, size.group)))
    tensors = {dice.name: codes, f"{dice.module}.weight_scale": scales}
    factor = spread(scales.values(), (1, size.group), size.shape)
    if dice.one_of(True, False):
        before = tensors[f"{dice.module}.pre_quant_scale"] = dice.scales("BF16", size.columns)
        with np.errstate(all="ignore"):
            factor = factor * before.values()
    entry = _modelopt("W4A16_AWQ", **({"group_size": size.group} if states else {}))
    return Sample(dice.name, tensors, entry, times(two_rows(codes.bits), factor))


# ---------------------------------------------------------------- compressed-tensors


def _compressed(layout: str, **weights: object) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "format": layout}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


def compressed_dense(dice: Dice, size: Size, dtype: str, strategy: str) -> Sample:
    """Codes of 8 bits, one in a byte, with zero points or without."""
    block = {
        "tensor": size.shape,
        "channel": (1, size.columns),
        "block": size.block,
        "group": (1, size.group),
    }[strategy]
    shape = (1,) if strategy == "tensor" else size.grid(block)
    codes, scales = dice.codes(dtype, *size.shape), dice.scales(dice.one_of("BF16", "F16", "F32"), *shape)
    tensors = {dice.name: codes, f"{dice.module}.weight_scale": scales}
    values = codes.values()
    if dice.one_of("", "zeros"):
        zeros = tensors[f"{dice.module}.weight_zero_point"] = dice.small(*shape)
        values = values - spread(zeros.values().reshape(size.grid(block)), block, size.shape)
    expected = times(values, spread(scales.values().reshape(size.grid(block)), block, size.shape))
    layout = "int-quantized" if dtype == "I8" else "float-quantized"
    numbers: dict[str, dict[str, Any]] = {
        "block": {"block_structure": list(size.block)},
        "group": {"group_size": size.group},
    }
    stated = numbers.get(strategy, {})
    return Sample(dice.name, tensors, _compressed(layout, num_bits=8, strategy=strategy, **stated), expected)


def _distinct(size: Size, bits: int, crosses: bool) -> Size:
    """Columns whose number of words tells whether codes cross words."""
    columns = size.columns
    while not crosses and word_count(columns, bits) == word_count(columns, bits, False):
        columns += 1
    return size._replace(columns=columns)


def compressed_packed(dice: Dice, size: Size, bits: int, crosses: bool) -> Sample:
    size = _distinct(size, bits, crosses)
    channel = dice.one_of(True, False, False)
    group = size.columns if channel else size.group
    grid = size.grid((1, group))
    words = Raw("I32", dice.words(size.rows, word_count(size.columns, bits, crosses)))
    scales = dice.scales(dice.one_of("BF16", "F16", "F32"), *grid)
    kind = dice.one_of("I32", "I64")
    shape = Raw(kind, np.array(size.shape, _BITS[kind]))
    tensors = {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}
    codes = stream(words.bits, bits, size.columns, crosses) - (1 << bits - 1)
    index, order = np.arange(size.columns) // group, dice.one_of("", "", "sorted", "shuffled", "none")
    if order and not channel:
        groups = tensors["weight_g_idx"] = dice.groups(order, size.columns, group)
        index = groups.bits.view(np.int32) if order == "shuffled" else index
    zeros = _zero_points(dice, tensors, grid, bits, crosses)
    expected = times((codes - zeros[:, index]).astype(np.float32), scales.values()[:, index])
    entry = _compressed("pack-quantized", num_bits=bits, **({} if channel else {"group_size": group}))
    return Sample(dice.name, {f"{dice.module}.{key}": raw for key, raw in tensors.items()}, entry, expected)


def _zero_points(
    dice: Dice, tensors: dict[str, Raw], grid: tuple[int, int], bits: int, crosses: bool
) -> NDArray[np.int64]:
    """None, or a byte each, or packed along the rows."""
    kind = dice.one_of("", "I8", "packed")
    if not kind:
        return np.zeros(grid, np.int64)
    if kind == "I8":
        raw = tensors["weight_zero_point"] = dice.small(*grid)
        return raw.bits.view(np.int8).astype(np.int64)
    words = dice.words(word_count(grid[0], bits, crosses), grid[1])
    tensors["weight_zero_point"] = Raw("I32", words)
    return stream(words.T, bits, grid[0], crosses).T - (1 << bits - 1)


def compressed_nvfp4(dice: Dice, size: Size) -> Sample:
    size = size.multiple(columns=2)
    codes, scales = dice.codes("U8", size.rows, size.columns // 2), dice.scales("F8_E4M3", *size.grid((1, 16)))
    second = dice.scales("F32", 1)
    with np.errstate(all="ignore"):
        factor = scales.values() / second.values()
    expected = times(E2M1[nibbles(codes.bits)], spread(factor, (1, 16), size.shape))
    parts = {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": second}
    tensors = {f"{dice.module}.{key}": raw for key, raw in parts.items()}
    return Sample(dice.name, tensors, _compressed("nvfp4-pack-quantized", num_bits=4, group_size=16), expected)


def compressed_mxfp4(dice: Dice, size: Size) -> Sample:
    entry = _compressed("mxfp4-pack-quantized", num_bits=4, group_size=32)
    return _stating(_fp4(dice, size, "weight_packed", "weight_scale", ("U8", "U8"), 32), entry)


def compressed_mxfp8(dice: Dice, size: Size) -> Sample:
    return _mxfp8(dice, size, "weight_scale", _compressed("mxfp8-quantized", num_bits=8, group_size=32))


# ---------------------------------------------------------------- GPTQ and AWQ: matrices of [in, out]


def gptq(dice: Dice, size: Size, bits: int, version: str) -> Sample:
    size = size.multiple(columns=32)
    group, order = dice.one_of((size.group, "sorted"), (size.group, "shuffled"), (size.columns, "sorted"))
    count = -(-size.columns // group)
    words = Raw("I32", dice.words(word_count(size.columns, bits), size.rows))
    packed = Raw("I32", dice.words(count, word_count(size.rows, bits)))
    scales = dice.scales(dice.one_of("F16", "BF16"), count, size.rows)
    groups = dice.groups(order, size.columns, group)
    stored = stream(packed.bits, bits, size.rows)
    zeros = stored if version == "gptq_v2" else (stored + 1) % (1 << bits)
    index = groups.bits.view(np.int32)
    codes = stream(words.bits.T, bits, size.columns) - zeros[index].T
    expected = times(codes.astype(np.float32), scales.values()[index].T)
    parts = {"qweight": words, "qzeros": packed, "scales": scales, "g_idx": groups}
    entry = {"quant_method": "gptq", "bits": bits, "group_size": -1 if group == size.columns else group}
    stated = {} if version == "gptq" and dice.one_of(True, False) else {"checkpoint_format": version}
    return Sample(dice.name, {f"{dice.module}.{key}": raw for key, raw in parts.items()}, entry | stated, expected)


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq_codes(words: Array) -> NDArray[np.int64]:
    found = np.empty((*words.shape, 8), np.int64)
    for place, column in enumerate(_AWQ_ORDER):
        found[..., column] = words >> 4 * place & 15
    return found.reshape(len(words), -1)


def awq(dice: Dice, size: Size) -> Sample:
    size = size.multiple(rows=8)
    count = size.grid((1, size.group))[1]
    words, packed = (Raw("I32", dice.words(n, size.rows // 8)) for n in (size.columns, count))
    scales = dice.scales(dice.one_of("F16", "BF16"), count, size.rows)
    index = np.arange(size.columns) // size.group
    codes = _awq_codes(words.bits) - _awq_codes(packed.bits)[index]
    expected = times(codes.astype(np.float32), scales.values()[index]).T
    parts = {"qweight": words, "qzeros": packed, "scales": scales}
    entry = {"quant_method": "awq", "bits": 4, "group_size": size.group, "version": "gemm", "zero_point": True}
    return Sample(dice.name, {f"{dice.module}.{key}": raw for key, raw in parts.items()}, entry, expected)


# ---------------------------------------------------------------- msModelSlim

_DESCRIPTION = "quant_model_description.json"


def _slim(dice: Dice, parts: Mapping[str, Raw], kind: str, expected: NDArray[np.uint16]) -> Sample:
    tensors = {f"{dice.module}.{key}": raw for key, raw in parts.items()}
    entry = {**dict.fromkeys(tensors, kind), "version": "1.0.0", "model_quant_type": kind, "group_size": 0}
    return Sample(dice.name, tensors, entry, expected, _DESCRIPTION)


def slim_static(dice: Dice, size: Size, dtype: str) -> Sample:
    codes, scales, inputs = dice.codes("I8", *size.shape), dice.scales(dtype, size.rows), dice.scales("F32", 1)
    with np.errstate(all="ignore"):
        factor = scales.values() / inputs.values()
    expected = times(codes.values(), factor[:, None])
    return _slim(dice, {"weight": codes, "deq_scale": scales, "input_scale": inputs}, "W8A8", expected)


def slim_offset(dice: Dice, size: Size, kind: str) -> Sample:
    """Offsets that are whole, or not, or zero, or not there; a scale for each row or group."""
    size = size.unstated()
    group = dice.one_of(size.columns, size.group)
    grid, dtype = size.grid((1, group)), "F8_E4M3" if kind == "WFP8AFP8_DYNAMIC" else "I8"
    codes, scales = dice.codes(dtype, *size.shape), dice.scales("F32", *grid)
    parts, values = {"weight": codes, "weight_scale": scales}, codes.values()
    offset = dice.one_of(None, np.zeros(grid), np.rint(dice.rng.uniform(-200, 200, grid)), dice.rng.normal(0, 9, grid))
    if offset is not None:
        parts["weight_offset"] = Raw("F32", offset.astype(np.float32).view(np.uint32))
        values = values - spread(offset.astype(np.float32), (1, group), size.shape)
    return _slim(dice, parts, kind, times(values, spread(scales.values(), (1, group), size.shape)))


def slim_two_rows(dice: Dice, size: Size) -> Sample:
    size = size.multiple(rows=2)
    codes, scales = dice.codes("I8", size.rows // 2, size.columns), dice.scales("F32", size.rows, 1)
    parts = {"weight": codes, "weight_scale": scales, "weight_offset": Raw("F32", np.zeros((size.rows, 1), np.uint32))}
    return _slim(dice, parts, "W4A8_DYNAMIC", times(two_rows(codes.bits), scales.values()))


def slim_mxfp8(dice: Dice, size: Size) -> Sample:
    found = _mxfp8(dice, size, "weight_scale", {})
    return _stating(found, dict.fromkeys(found.tensors, "W8A8_MXFP8"), _DESCRIPTION)


def slim_mxfp4(dice: Dice, size: Size) -> Sample:
    found = _fp4(dice, size, "weight", "weight_scale", ("U8", "U8"), 32)
    return _stating(found, dict.fromkeys(found.tensors, "W4A4_MXFP4"), _DESCRIPTION)


#: Every way in which weights are quantised.
METHODS: Mapping[str, Method] = {
    **{f"fp8-{dtype}": partial(fp8_blocks, dtype=dtype) for dtype in ("F32", "BF16", "F16", "F8_E8M0")},
    "fp8-scale": partial(fp8_blocks, dtype="F8_E8M0", ending="scale"),
    "fp8-stacked": fp8_stacked,
    **{f"fp8-tensor-{ending}": partial(fp8_tensor, ending=ending) for ending in ("weight_scale_inv", "weight_scale")},
    "fp8-mxfp8": mxfp8_transformers,
    "deepseek-fp4": fp4_deepseek,
    "gpt-oss": mxfp4_gpt_oss,
    "modelopt-tensor": modelopt_tensor,
    "modelopt-channel": modelopt_channel,
    "modelopt-blocks": modelopt_blocks,
    "modelopt-mxfp8": modelopt_mxfp8,
    "modelopt-mxfp4": modelopt_mxfp4,
    "modelopt-nvfp4": modelopt_nvfp4,
    "modelopt-int4": modelopt_int4,
    **{
        f"ct-{dtype}-{strategy}": partial(compressed_dense, dtype=dtype, strategy=strategy)
        for dtype in ("F8_E4M3", "I8")
        for strategy in ("tensor", "channel", "block", "group")
    },
    **{f"ct-pack-{bits}": partial(compressed_packed, bits=bits, crosses=True) for bits in range(2, 9)},
    **{f"ct-padded-{bits}": partial(compressed_packed, bits=bits, crosses=False) for bits in (3, 5, 6, 7)},
    "ct-nvfp4": compressed_nvfp4,
    "ct-mxfp4": compressed_mxfp4,
    "ct-mxfp8": compressed_mxfp8,
    **{
        f"{version}-{bits}": partial(gptq, bits=bits, version=version)
        for version in ("gptq", "gptq_v2")
        for bits in (2, 3, 4, 8)
    },
    "awq": awq,
    **{f"slim-static-{dtype}": partial(slim_static, dtype=dtype) for dtype in ("F32", "I64")},
    **{f"slim-{kind}": partial(slim_offset, kind=kind) for kind in ("W8A8_DYNAMIC", "W8A16", "WFP8AFP8_DYNAMIC")},
    "slim-W4A8_DYNAMIC": slim_two_rows,
    "slim-W8A8_MXFP8": slim_mxfp8,
    "slim-W4A4_MXFP4": slim_mxfp4,
}

# ---------------------------------------------------------------- files


def save(folder: Path, samples: Iterable[Sample], rng: np.random.Generator, files: int = 1) -> None:
    """A repository: the tensors in any order, each in any of so many files."""
    every = list(samples)
    tensors = [item for sample in every for item in sample.tensors.items()]
    entry = {key: value for sample in every for key, value in sample.entry.items()}
    file, stem = every[0].file, "quant_model_weights" if every[0].file == _DESCRIPTION else "model"
    config: dict[str, Any] = {"model_type": "any", "torch_dtype": "bfloat16"}
    if file:
        (folder / file).write_text(json.dumps(entry))
    else:
        config["quantization_config"] = entry
    (folder / "config.json").write_text(json.dumps(config))
    number = np.append(np.arange(files), rng.integers(0, files, len(tensors)))[: len(tensors)]
    number = rng.permutation(number)
    count, weight_map = int(number.max()) + 1, {}
    for shard in range(count):
        name = f"{stem}-{shard + 1:05}-of-{count:05}.safetensors"
        chosen = {key: raw for at, (key, raw) in zip(number, tensors, strict=True) if at == shard}
        (folder / name).write_bytes(file_bytes(chosen))
        weight_map.update(dict.fromkeys(chosen, name))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def file_bytes(tensors: Mapping[str, Raw]) -> bytes:
    """A safetensors file with the tensors in the given order."""
    header, parts, at = {}, [], 0
    for name, (dtype, bits) in tensors.items():
        data = bits.astype(_BITS[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)
