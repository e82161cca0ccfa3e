"""The sources: a Llama checkpoint in HuggingFace's and in MindSpore's format, and a DeepSeek-V3 in FP8."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamconv import testing as samples
from streamconv.families import find

from ..checkpoints import DEEPSEEK3, MIB
from ..conversions import streamconv

#: Llama-7B with 5 of its 32 layers: 2.5 GB of bfloat16.
_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 5,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_SMALL_LLAMA = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}

#: DeepSeek-V3 with 40 experts and a larger vocabulary: 2.8 GB, nine tenths of it FP8.
_DEEPSEEK: Mapping[str, Any] = {**DEEPSEEK3, "n_routed_experts": 40, "vocab_size": 8192}
_SMALL_DEEPSEEK = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
}


def llama(folder: Path, small: bool) -> Path:
    """Write HuggingFace's Llama to `folder`, in three shards of bfloat16."""
    config = {**_LLAMA, **(_SMALL_LLAMA if small else {})}
    dest = folder / "llama"
    samples.write_hf(dest, config, samples.hf_specs(find("llama"), config), 15 * MIB if small else 1000 * MIB)
    return dest


def llama_ckpt(folder: Path, small: bool) -> Path:
    """Write the same Llama as one MindSpore `.ckpt`."""
    return _convert(llama(folder, small), folder / "model.ckpt")


def llama_safetensors(folder: Path, small: bool) -> Path:
    """Write the same Llama as one MindSpore safetensors file."""
    dest = _convert(llama(folder, small), folder / "ms")
    (file,) = dest.glob("*.safetensors")
    return file.rename(folder / "model.safetensors")


def deepseek(folder: Path, small: bool) -> Path:
    """Write HuggingFace's DeepSeek-V3 to `folder`, in four shards; weights are FP8 with a scale per block."""
    config = {**_DEEPSEEK, **(_SMALL_DEEPSEEK if small else {})}
    specs = samples.fp8_specs(samples.hf_specs(find("deepseek3"), config))
    dest = folder / "deepseek"
    samples.write_hf(dest, config, specs, -(-sum(spec.nbytes for spec in specs) // 4) + (2 if small else 30) * MIB)
    return dest


def _convert(source: Path, dest: Path) -> Path:
    command = streamconv(["convert", str(source), str(dest), "--max-mem", "512M", "--quiet"])
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return dest
