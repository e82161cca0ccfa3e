"""Checkpoints to measure with: a family's real names and shapes, with random values or holes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv import testing as samples
from streamconv.families import find
from streamconv.tensors.dtypes import BF16
from streamconv.tensors.refs import TensorSpec

MIB = 1 << 20
_SHARD = 500_000_000

#: A narrower Mixtral: 25 MB of attention and norms per layer, 88 MB per expert.
MIXTRAL: Mapping[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def mixtral(folder: Path, **changes: Any) -> Path:
    """Write a Mixtral checkpoint in 500 MB shards: 88 MB per expert of 2048 x 7168, 1.7 GB of bfloat16 in all."""
    config = {**MIXTRAL, **changes}
    samples.write_hf(folder, config, samples.hf_specs(find("mixtral"), config), _SHARD)
    return folder


#: DeepSeek-V3 with its layers' real shapes: one dense layer, one with 8 of the 256 experts, and a small vocabulary.
DEEPSEEK3: Mapping[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}


def deepseek3(folder: Path, **changes: Any) -> Path:
    """Write a DeepSeek-V3 checkpoint in FP8 with the scales of its blocks, in 500 MB shards: 1.2 GB of FP8 in all."""
    config = {**DEEPSEEK3, **changes}
    specs = samples.fp8_specs(samples.hf_specs(find("deepseek3"), config))
    samples.write_hf(folder, config, specs, _SHARD)
    return folder


def mixtral_of(folder: Path, size: int, sparse: bool = False, **changes: Any) -> Path:
    """Write a Mixtral checkpoint with enough layers for about `size` bytes; its data are holes if `sparse`."""
    family = find("mixtral")
    one, two = (samples.hf_specs(family, {**MIXTRAL, **changes, "num_hidden_layers": n}) for n in (1, 2))
    layers = 1 + max(0, round((size - _nbytes(one)) / (_nbytes(two) - _nbytes(one))))
    config = {**MIXTRAL, **changes, "num_hidden_layers": layers}
    samples.write_hf(folder, config, samples.hf_specs(family, config), _SHARD, sparse=sparse)
    return folder


def deepseek_v3(folder: Path) -> Path:
    """Write DeepSeek-V3 at its full size, 91,991 tensors in 161 shards: real headers, holes for data."""
    config = {
        **DEEPSEEK3,
        "num_hidden_layers": 61,
        "num_nextn_predict_layers": 1,
        "n_routed_experts": 256,
        "first_k_dense_replace": 3,
        "vocab_size": 129280,
    }
    specs = samples.fp8_specs(samples.hf_specs(find("deepseek3"), config))
    specs.sort(key=lambda spec: [int(part) if part.isdecimal() else -1 for part in spec.name.split(".")])
    samples.write_hf(folder, config, specs, 4_300_000_000, sparse=True)
    return folder


def matrices(folder: Path, count: int, rows: int, columns: int, sparse: bool = False) -> Path:
    """Write `count` bfloat16 matrices of one shape, of no known model."""
    specs = [TensorSpec(f"layers.{number}.weight", BF16, (rows, columns)) for number in range(count)]
    samples.write_hf(folder, {}, specs, _SHARD, sparse=sparse)
    return folder


def _nbytes(specs: list[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs)
