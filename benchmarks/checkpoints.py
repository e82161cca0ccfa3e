"""Checkpoints to measure with: a family's real names and shapes, random values or holes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv import samples
from streamconv.families import find

MIB = 1 << 20

#: Mixtral, narrower: 42 MB a layer of attention and norms, 88 MB an expert.
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
    """A Mixtral checkpoint in shards of 500 MB: 88 MB an expert of 2048 x 7168, 1.7 GB of bfloat16 in all."""
    config = {**MIXTRAL, **changes}
    samples.write_hf(folder, config, samples.hf_specs(find("mixtral"), config), 500_000_000)
    return folder
