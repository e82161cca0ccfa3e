"""Small checkpoints for both sides: made once, on the host, so that both read the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from streamconv import testing as samples
from streamconv.families import find
from streamconv.formats import safetensors
from streamconv.tensors.dtypes import DTYPES
from streamconv.tensors.refs import TensorSpec

#: Large enough for requests past the page cache, of a MiB and more.
_CONFIG: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 1,
    "vocab_size": 1500,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_LLAMA = {**_CONFIG, "model_type": "llama"}
_MIXTRAL = {**_CONFIG, "model_type": "mixtral", "num_local_experts": 3}
_SHARD = 4_000_000


def make(folder: Path) -> None:
    """Write all sources into a new folder."""
    folder.mkdir()
    for name, config in (("llama", _LLAMA), ("mixtral", _MIXTRAL)):
        samples.write_hf(folder / name, config, samples.hf_specs(find(name), config), _SHARD)
    specs = samples.fp8_specs(samples.hf_specs(find("llama"), _LLAMA))
    samples.write_hf(folder / "fp8", _LLAMA, specs, _SHARD)
    every = [TensorSpec(f"t.{dtype.name}", dtype, (37, 1021)) for dtype in DTYPES if dtype.safetensors]
    _write_bits(folder / "dtypes.safetensors", every)
    # What cannot be cast or written to a .ckpt is not in it: floats of any bits, so with every kind of NaN.
    _write_bits(folder / "floats.safetensors", [spec for spec in every if spec.dtype.kind == "float"])


def _write_bits(path: Path, specs: list[TensorSpec]) -> None:
    """Write tensors of random bits."""
    file = safetensors.lay_out(path.name, specs, {})
    content = bytearray(np.random.default_rng(1).bytes(file.size))
    for offset, literal in file.literals:
        content[offset : offset + len(literal)] = literal
    path.write_bytes(content)
