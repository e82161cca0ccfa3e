"""I1 for quantised sources: tensors of 224 MiB in bfloat16, and what they are read from, stay below 160 MiB."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamconv.formats import safetensors
from streamconv.tensors.dtypes import from_safetensors
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.watching import drop_from_cache, watch

MIB = 1 << 20
BUDGET = 160 * MIB
ROWS, COLUMNS = 8192, 14336

Tensors = Mapping[str, tuple[str, NDArray[Any]]]


def _any(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)


def _packed(rng: np.random.Generator) -> tuple[dict[str, Any], Tensors]:
    """compressed-tensors with zero points: the scales of 128 columns."""
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 128}
    entry = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return {"quantization_config": entry}, {
        "weight_packed": ("I32", _any(rng, ROWS, COLUMNS // 2).view(np.int32)),
        "weight_scale": ("F32", rng.uniform(1e-3, 1, (ROWS, COLUMNS // 128)).astype(np.float32)),
        "weight_zero_point": ("I32", _any(rng, ROWS // 8, COLUMNS // 32).view(np.int32)),
        "weight_shape": ("I64", np.array([ROWS, COLUMNS], np.int64)),
    }


def _gptq(rng: np.random.Generator) -> tuple[dict[str, Any], Tensors]:
    """GPTQ with activation ordering: every row has the scales of another group, and the result is transposed."""
    return {"quantization_config": {"quant_method": "gptq", "bits": 4, "desc_act": True}}, {
        "qweight": ("I32", _any(rng, ROWS // 8, 4 * COLUMNS).view(np.int32)),
        "qzeros": ("I32", _any(rng, ROWS // 128, COLUMNS // 2).view(np.int32)),
        "scales": ("F16", rng.uniform(1e-3, 1, (ROWS // 128, COLUMNS)).astype(np.float16)),
        "g_idx": ("I32", rng.permutation(np.arange(ROWS, dtype=np.int32) // 128)),
    }


def _int8(rng: np.random.Generator) -> tuple[dict[str, Any], Tensors]:
    """8 bits, asymmetric, in small groups: scales and offsets are half as many bytes as codes."""
    return {}, {
        "weight": ("I8", _any(rng, ROWS, COLUMNS).view(np.int8)),
        "weight_scale": ("F32", rng.uniform(1e-3, 1, (ROWS, COLUMNS // 16)).astype(np.float32)),
        "weight_offset": ("F32", rng.integers(-9, 9, (ROWS, COLUMNS // 16)).astype(np.float32)),
    }


def _fp8(rng: np.random.Generator) -> tuple[dict[str, Any], Tensors]:
    """MXFP8: a power of two for every 32 codes."""
    return {"quantization_config": {"quant_method": "mxfp8"}}, {
        "weight": ("F8_E4M3", _any(rng, ROWS, COLUMNS)),
        "weight_scale_inv": ("U8", rng.integers(100, 130, (ROWS, COLUMNS // 32), np.uint8)),
    }


KINDS: dict[str, Callable[[np.random.Generator], tuple[dict[str, Any], Tensors]]] = {
    "packed INT4": _packed,
    "GPTQ with activation ordering": _gptq,
    "INT8 in groups": _int8,
    "MXFP8": _fp8,
}


def write(folder: Path, kind: str) -> Path:
    """Two such matrices, as an unknown model's."""
    config, tensors = KINDS[kind](np.random.default_rng(5))
    folder.mkdir()
    every = {f"layers.{n}.{name}": one for n in range(2) for name, one in tensors.items()}
    specs = [TensorSpec(name, from_safetensors(dtype, name), array.shape) for name, (dtype, array) in every.items()]
    data = {name: np.ascontiguousarray(array).tobytes() for name, (_, array) in every.items()}
    golden.write(folder / "model.safetensors", safetensors.lay_out("model.safetensors", specs, {"format": "pt"}), data)
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float16", **config}))
    if "weight_offset" in tensors:
        described = dict.fromkeys(every, "W8A16")
        (folder / "quant_model_description.json").write_text(json.dumps(described))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kind", KINDS)
def test_quantised_tensors_larger_than_the_budget(kind: str, workers: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", kind)
    drop_from_cache(source)
    words = ["--model", "raw", "--format", "hf", "--max-mem", str(BUDGET), "--workers", workers]
    seen = watch(["convert", str(source), str(tmp_path / "out"), *words])
    assert seen.peak <= BUDGET
    assert seen.report["total_bytes"] > 2 * 224 * MIB
    assert seen.report["read_bytes"] <= 2 * seen.report["source_bytes"]
