"""Quantised models at their full size: real names, shapes and headers, and holes for data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from streamconv import testing as samples
from streamconv.families import find
from streamconv.formats.catalog import open_catalog
from streamconv.tensors.dtypes import BF16, F8_E4M3, F8_E8M0, I8, I32, I64
from streamconv.tensors.refs import Catalog, TensorSpec

from .checkpoints import DEEPSEEK_V3, in_layers

_SHARD = 10_000_000_000

#: Kimi-K2-Thinking: routed experts of 4 bits, packed, with a scale for 32 of them.
KIMI_K2_THINKING: Mapping[str, Any] = {
    **DEEPSEEK_V3,
    "model_type": "kimi_k2",
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "first_k_dense_replace": 1,
    "vocab_size": 163840,
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
            }
        },
    },
}

#: DeepSeek-V4-Flash: projections in FP8 with blocks of 128 x 128, routed experts in FP4, all scales powers of two.
DEEPSEEK_V4_FLASH: Mapping[str, Any] = {
    "model_type": "deepseek_v4",
    "num_hidden_layers": 43,
    "hidden_size": 4096,
    "vocab_size": 129280,
    "num_attention_heads": 64,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "hc_mult": 4,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "num_experts_per_tok": 6,
    "num_nextn_predict_layers": 1,
    "num_hash_layers": 3,
    "compress_ratios": [0, 0, *(4, 128) * 20, 4, 0],
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]},
}


def kimi_k2_thinking(folder: Path, **changes: Any) -> Path:
    """Write Kimi-K2-Thinking, 594 GB: all data are holes but the shapes of one layer's packed weights."""
    config = {**KIMI_K2_THINKING, **changes}
    specs = samples.hf_specs(find("deepseek3"), config)
    specs.sort(key=in_layers)
    samples.write_hf(folder, config, [one for spec in specs for one in _packed(spec)], _SHARD, sparse=True)
    catalog = open_catalog(folder)
    for spec in specs:
        if ".layers.1.mlp.experts." in spec.name:
            _write_shape(catalog, spec)
    return folder


def _packed(spec: TensorSpec) -> list[TensorSpec]:
    """Return what compressed-tensors makes of a routed expert's matrix with 4 bits: eight codes in a word."""
    if ".mlp.experts." not in spec.name:
        return [spec]
    rows, columns = spec.shape
    return [
        TensorSpec(f"{spec.name}_packed", I32, (rows, columns // 8)),
        TensorSpec(f"{spec.name}_scale", BF16, (rows, columns // 32)),
        TensorSpec(f"{spec.name}_shape", I64, (2,)),
    ]


def _write_shape(catalog: Catalog, spec: TensorSpec) -> None:
    extent = catalog[f"{spec.name}_shape"].extents[0]
    with extent.file.path.open("r+b") as file:
        file.seek(extent.offset)
        file.write(np.array(spec.shape, np.int64).tobytes())


def deepseek_v4_flash(folder: Path, **changes: Any) -> Path:
    """Write DeepSeek-V4-Flash, 156 GB: all data are holes."""
    config = {**DEEPSEEK_V4_FLASH, **changes}
    specs = samples.hf_specs(find("deepseek4"), config)
    specs.sort(key=in_layers)
    samples.write_hf(folder, config, [one for spec in specs for one in _in_fp8_and_fp4(spec)], _SHARD, sparse=True)
    return folder


def _in_fp8_and_fp4(spec: TensorSpec) -> Iterator[TensorSpec]:
    """Yield what DeepSeek makes of a tensor: of a projection codes and their scales."""
    stem = spec.name.removesuffix(".weight")
    if len(spec.shape) != 2 or stem.endswith(("norm", "gate", "embed", "head")) or stem == spec.name:
        yield spec
        return
    rows, columns = spec.shape
    if ".experts." in stem:
        yield TensorSpec(spec.name, I8, (rows, columns // 2))
        yield TensorSpec(f"{stem}.scale", F8_E8M0, (rows, columns // 32))
    else:
        yield TensorSpec(spec.name, F8_E4M3, spec.shape)
        yield TensorSpec(f"{stem}.scale", F8_E8M0, (-(-rows // 128), -(-columns // 128)))
