"""Checkpoints to measure with: a family's real names and shapes, with random values or holes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import streamconv
from streamconv import testing as samples
from streamconv.families import find
from streamconv.formats import safetensors
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.strategy_format import encode
from streamconv.tensors.dtypes import BF16, F32
from streamconv.tensors.refs import OutputFile, TensorSpec

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


#: DeepSeek-V3 at its full size.
DEEPSEEK_V3: Mapping[str, Any] = {
    **DEEPSEEK3,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "n_routed_experts": 256,
    "first_k_dense_replace": 3,
    "vocab_size": 129280,
}


def deepseek_v3(folder: Path, **changes: Any) -> Path:
    """Write DeepSeek-V3 at its full size, 91,991 tensors in 161 shards: real headers, holes for data."""
    config = {**DEEPSEEK_V3, **changes}
    specs = samples.fp8_specs(samples.hf_specs(find("deepseek3"), config))
    specs.sort(key=in_layers)
    samples.write_hf(folder, config, specs, 4_300_000_000, sparse=True)
    return folder


def in_layers(spec: TensorSpec) -> list[int]:
    """Return what sorts tensors layer by layer, and expert by expert."""
    return [int(part) if part.isdecimal() else -1 for part in spec.name.split(".")]


def matrices(folder: Path, count: int, rows: int, columns: int, sparse: bool = False) -> Path:
    """Write `count` bfloat16 matrices of one shape, of no known model."""
    specs = [TensorSpec(f"layers.{number}.weight", BF16, (rows, columns)) for number in range(count)]
    samples.write_hf(folder, {}, specs, _SHARD, sparse=sparse)
    return folder


#: A narrow Llama with a large vocabulary: 2.55 GB of bfloat16.
LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 16,
    "vocab_size": 65536,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama_ranks(folder: Path, **changes: Any) -> Path:
    """Write what a training of a Llama on 8 ranks leaves: 2 x 4 devices, tensor parallel 4, optimizer sharding 2.

    No two ranks hold the same of a matrix, nor of a norm, which optimizer sharding cuts for all 8.
    """
    config = {**LLAMA, **changes}
    specs = _mindspore_specs("llama", config)
    _write_ranks(folder, config, {spec: _llama_layout(spec) for spec in specs})
    return folder


def _llama_layout(spec: TensorSpec) -> DeviceLayout:
    if len(spec.shape) == 1:
        axes: tuple[tuple[int, ...], ...] = ((),)
    else:
        axes = ((), (0,)) if spec.name.endswith(("wo.weight", "w2.weight")) else ((0,), ())
    return DeviceLayout((2, 4), axes, -1)


def deepseek_v3_ranks(folder: Path, optimizer: bool = False, experts_over: int = 64, **changes: Any) -> Path:
    """Write what a training of DeepSeek-V3 on 256 ranks leaves: real headers, holes for data.

    Experts are cut for 64 ranks; of all else, matrices are cut for 4 (tensor parallel), and once more for 8 (optimizer
    sharding) where that divides them.

    Args:
        folder: the directory to create.
        optimizer: whether the ranks hold Adam's two states of each tensor, in float32.
        experts_over: for how many ranks the experts are cut; four times as many are written.
        changes: to the config.
    """
    config = {**DEEPSEEK_V3, **changes}
    del config["quantization_config"]
    weights = _mindspore_specs("deepseek3", config, layout="mcore")
    states = [TensorSpec(f"adam_{which}.{spec.name}", F32, spec.shape) for which in "mv" for spec in weights]
    specs = [*weights, *(states if optimizer else ())]
    layouts = {spec: _deepseek_layout(spec, experts_over) for spec in specs}
    _write_ranks(folder, config, layouts, sparse=True)
    return folder


def _deepseek_layout(spec: TensorSpec, experts_over: int) -> DeviceLayout:
    devices, tensor_parallel, shards = (experts_over, 4), 4, 8
    if len(spec.shape) == 1 or "router" in spec.name:
        return DeviceLayout(devices, ((),) * len(spec.shape))
    if "mlp.experts." in spec.name:
        return DeviceLayout(devices, ((1,), ()))
    row_parallel = "linear_proj" in spec.name or "linear_fc2" in spec.name
    axes = ((), (0,)) if row_parallel else ((0,), ())
    rows = spec.shape[0] // (1 if row_parallel else tensor_parallel)
    return DeviceLayout(devices, axes, shards if experts_over % shards == 0 == rows % shards else 0)


def _mindspore_specs(family: str, config: Mapping[str, Any], **options: str) -> Sequence[TensorSpec]:
    """Return the tensors that a model has in MindFormers."""
    with TemporaryDirectory() as found:
        source = Path(found, "hf")
        samples.write_hf(source, config, samples.hf_specs(find(family), config), 10 * _SHARD, sparse=True)
        return [output.spec for output in streamconv.plan(source, Path(found, "ms"), options=options).outputs]


def _write_ranks(
    folder: Path, config: Mapping[str, Any], layouts: Mapping[TensorSpec, DeviceLayout], sparse: bool = False
) -> None:
    """Write a folder for each rank, the strategy next to them, and config.json; holes for data if `sparse`."""
    slices = [
        TensorSpec(
            spec.name,
            spec.dtype,
            tuple(size // count for size, count in zip(spec.shape, layout.divisions, strict=True)),
        )
        for spec, layout in layouts.items()
    ]
    strategy = encode(0, {spec.name: layout for spec, layout in layouts.items()})
    (folder / "strategy").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    ranks = next(iter(layouts.values())).ranks
    paths = []
    for rank in range(ranks):
        file = safetensors.lay_out(f"model_rank_{rank}-1_10.safetensors", slices, {"format": "ms"})
        paths.append(folder / "checkpoint" / f"rank_{rank}" / file.name)
        _write_holes(paths[-1], file)
        (folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(strategy)
    if not sparse:
        _fill_ranks(paths, file, layouts)


def _write_holes(path: Path, file: OutputFile) -> None:
    path.parent.mkdir(parents=True)
    with path.open("wb") as out:
        for offset, literal in file.literals:
            out.seek(offset)
            out.write(literal)
        out.truncate(file.size)


def _fill_ranks(paths: Sequence[Path], file: OutputFile, layouts: Mapping[TensorSpec, DeviceLayout]) -> None:
    """Write random values into the files of all ranks, which have the same layout as `file`."""
    generator = np.random.default_rng(0)
    with ExitStack() as opened:
        files = [opened.enter_context(path.open("r+b")) for path in paths]
        for spec, layout in layouts.items():
            whole = samples.random_values(generator, int(np.prod(spec.shape)), spec.dtype).reshape(spec.shape)
            sizes = [size // count for size, count in zip(spec.shape, layout.divisions, strict=True)]
            for rank, out in enumerate(files):
                index = tuple(slice(i * n, (i + 1) * n) for i, n in zip(layout.index_of(rank), sizes, strict=True))
                out.seek(file.extents[spec.name][0][0])
                out.write(np.ascontiguousarray(whole[index]).tobytes())


def _nbytes(specs: list[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs)
