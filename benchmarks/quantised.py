"""Quantised matrices to measure with, as tools write them: random codes, and scales that weights may have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamconv.formats import safetensors
from streamconv.tensors.dtypes import from_safetensors
from streamconv.tensors.refs import TensorSpec

Tensors = Mapping[str, tuple[str, NDArray[Any]]]
Made = tuple[Mapping[str, object], Tensors]
"""Entries of the config, and the tensors of a module: ending -> dtype and elements."""


def _any(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def _scales(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.uniform(1e-3, 1, shape).astype(np.float32)


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _packed(rng: np.random.Generator, rows: int, columns: int, group: int, symmetric: bool) -> Made:
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    entry = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    tensors: dict[str, tuple[str, NDArray[Any]]] = {
        "weight_packed": ("I32", _any(rng, rows, columns // 2).view(np.int32)),
        "weight_scale": ("BF16", _bf16(_scales(rng, rows, columns // group))),
        "weight_shape": ("I64", np.array([rows, columns], np.int64)),
    }
    if not symmetric:
        tensors["weight_zero_point"] = ("I32", _any(rng, rows // 8, 4 * (columns // group)).view(np.int32))
    return {"quantization_config": entry}, tensors


def _gptq(rng: np.random.Generator, rows: int, columns: int, in_order: bool) -> Made:
    groups = np.arange(columns, dtype=np.int32) // 128
    return {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": not in_order}}, {
        "qweight": ("I32", _any(rng, columns // 8, 4 * rows).view(np.int32)),
        "qzeros": ("I32", _any(rng, columns // 128, rows // 2).view(np.int32)),
        "scales": ("F16", _scales(rng, columns // 128, rows).astype(np.float16)),
        "g_idx": ("I32", groups if in_order else rng.permutation(groups)),
    }


def _awq(rng: np.random.Generator, rows: int, columns: int) -> Made:
    return {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}}, {
        "qweight": ("I32", _any(rng, columns, rows // 2).view(np.int32)),
        "qzeros": ("I32", _any(rng, columns // 128, rows // 2).view(np.int32)),
        "scales": ("F16", _scales(rng, columns // 128, rows).astype(np.float16)),
    }


def _mxfp4(rng: np.random.Generator, rows: int, columns: int) -> Made:
    return {"quantization_config": {"quant_method": "modelopt", "quant_algo": "MXFP4"}}, {
        "weight": ("U8", _any(rng, rows, columns // 2)),
        "weight_scale": ("U8", rng.integers(100, 130, (rows, columns // 32), np.uint8)),
    }


def _nvfp4(rng: np.random.Generator, rows: int, columns: int) -> Made:
    return {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}}, {
        "weight": ("U8", _any(rng, rows, columns // 2)),
        "weight_scale": ("F8_E4M3", rng.integers(8, 120, (rows, columns // 16), np.uint8)),
        "weight_scale_2": ("F32", np.float32(0.01).reshape(())),
    }


def _mxfp8(rng: np.random.Generator, rows: int, columns: int) -> Made:
    return {"quantization_config": {"quant_method": "mxfp8"}}, {
        "weight": ("F8_E4M3", _any(rng, rows, columns) & np.uint8(0xF7)),
        "weight_scale_inv": ("U8", rng.integers(100, 130, (rows, columns // 32), np.uint8)),
    }


def _int8(rng: np.random.Generator, rows: int, columns: int) -> Made:
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}}, {
        "weight": ("I8", _any(rng, rows, columns).view(np.int8)),
        "weight_scale": ("F32", _scales(rng, rows, 1)),
    }


def _int8_in_groups(rng: np.random.Generator, rows: int, columns: int) -> Made:
    entry = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    return {"quantization_config": entry}, {
        "weight": ("I8", _any(rng, rows, columns).view(np.int8)),
        "weight_scale": ("F32", _scales(rng, rows, columns // 16)),
        "weight_zero_point": ("I8", rng.integers(-9, 9, (rows, columns // 16), np.int8)),
    }


#: What it is -> what makes a weight of [rows, columns] of it; both are multiples of 128.
KINDS: Mapping[str, Callable[[np.random.Generator, int, int], Made]] = {
    "INT4, groups of 32": lambda rng, rows, columns: _packed(rng, rows, columns, 32, symmetric=True),
    "INT4, groups of 128, zero points": lambda rng, rows, columns: _packed(rng, rows, columns, 128, symmetric=False),
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "GPTQ, 4 bits": lambda rng, rows, columns: _gptq(rng, rows, columns, in_order=True),
    "GPTQ, 4 bits, activation order": lambda rng, rows, columns: _gptq(rng, rows, columns, in_order=False),
    "AWQ, 4 bits": _awq,
    "INT8, a scale for each row": _int8,
    "INT8, groups of 16, zero points": _int8_in_groups,
    "MXFP8": _mxfp8,
}


def write(folder: Path, kind: str, shapes: Mapping[str, tuple[int, int]]) -> Path:
    """Write weights of one kind, module by module, in a single file, with their config."""
    rng, every = np.random.default_rng(0), dict[str, tuple[str, NDArray[Any]]]()
    config: Mapping[str, object] = {}
    for module, shape in shapes.items():
        config, tensors = KINDS[kind](rng, *shape)
        every |= {f"{module}.{ending}": one for ending, one in tensors.items()}
    specs = [TensorSpec(name, from_safetensors(dtype, name), array.shape) for name, (dtype, array) in every.items()]
    file = safetensors.lay_out("model.safetensors", specs, {"format": "pt"})
    folder.mkdir()
    with (folder / file.name).open("wb") as out:
        for offset, literal in file.literals:
            out.seek(offset)
            out.write(literal)
        for name, (_, array) in every.items():
            out.seek(file.extents[name][0][0])
            out.write(np.ascontiguousarray(array).tobytes())
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float16", **config}))
    return folder
