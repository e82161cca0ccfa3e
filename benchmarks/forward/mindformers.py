"""MindFormers' side: its models on a CPU, filled with a checkpoint.

Everything computes in float32, which MindFormers does not do by default. Operators that MindSpore has only for its
accelerators are replaced by plain arithmetic, when this module is imported: models look them up when they are called.
"""

from __future__ import annotations

import functools
import importlib
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import Array, Config, Inputs, Tensors

mindspore = importlib.import_module("mindspore")
mindspore.set_context(mode=mindspore.PYNATIVE_MODE, device_target="CPU")
ops = mindspore.ops
mindformers = importlib.import_module("mindformers")

VERSION = tuple(map(int, version("mindformers").split(".")[:2]))

#: A Cell of MindFormers, ready to be called.
Network = Any

#: Endings of parameters that are not weights.
_STATE = ("_cache", "dropout.seed", "dropout.offset", ".expert_load", ".fi_accu")

_TYPED = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
_FLOATS = dict.fromkeys(_TYPED, "float32")


def load(path: Path) -> Tensors:
    """Load a checkpoint with MindSpore."""
    return {name: parameter.asnumpy() for name, parameter in mindspore.load_checkpoint(str(path)).items()}


def logits(network: Network, tensors: Tensors, inputs: Inputs, unused: tuple[str, ...]) -> Array:
    """Fill a network with tensors, all of its parameters, and return its logits.

    Raises:
        ValueError: a parameter has no tensor, or a tensor no parameter.
    """
    parameters = {name: mindspore.Parameter(mindspore.Tensor(values), name=name) for name, values in tensors.items()}
    owned = [parameter.name for parameter in network.get_parameters()]
    unfilled, unplaced = mindspore.load_param_into_net(network, parameters)
    # MindSpore also lists names that it did match, after removing their prefix (BLOOM's `transformer.`).
    unknown = [name for name in unplaced if name not in unused and not any(name.endswith(f".{o}") for o in owned)]
    unfilled = [name for name in unfilled if not name.endswith(_STATE)]
    if unfilled or unknown:
        raise ValueError(f"no tensors for {unfilled}, no parameters for {unknown}")
    network.set_train(False)
    computed: Array = network(*map(mindspore.Tensor, inputs))[0].asnumpy()
    return computed


def llama(config: Config, inputs: Inputs, **more: object) -> Network:
    """Make a Llama, or a Qwen2, whose q, k and v have biases."""
    values = {
        **_sizes(inputs),
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "rms_norm_eps": config["rms_norm_eps"],
        "theta": config["rope_theta"],
        "max_position_embedding": config["max_position_embeddings"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "qkv_has_bias": config["model_type"] == "qwen2",
        **_rope(config),
        **more,
    }
    return mindformers.LlamaForCausalLM(mindformers.LlamaConfig(**values))


def llama_concat(config: Config, inputs: Inputs) -> Network:
    """Make a Llama with q, k, v in one tensor, and gate and up in another."""
    return llama(config, inputs, qkv_concat=True)


def mixtral(config: Config, inputs: Inputs) -> Network:
    """Make a Llama with experts, each with capacity for all tokens, because tokens above the capacity are dropped."""
    experts = {
        "expert_num": config["num_local_experts"],
        "num_experts_chosen": config["num_experts_per_tok"],
        "capacity_factor": float(config["num_local_experts"]),
        "routing_policy": "TopkRouterV2",
    }
    return llama(config, inputs, moe_config=experts)


def gpt2(config: Config, inputs: Inputs) -> Network:
    """Make a GPT-2."""
    values = {
        **_sizes(inputs),
        "vocab_size": config["vocab_size"],
        "hidden_size": config["n_embd"],
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "eos_token_id": config["eos_token_id"],
    }
    return _widened(mindformers.GPT2LMHeadModel(mindformers.GPT2Config(**values)))


def bloom(config: Config, inputs: Inputs) -> Network:
    """Make a BLOOM."""
    values = {
        **_sizes(inputs),
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "eos_token_id": config["eos_token_id"],
        "hidden_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    }
    network = _widened(mindformers.BloomLMHeadModel(mindformers.BloomConfig(**values)))
    embedding = network.transformer.embedding
    word, norm = embedding.word_embedding, embedding.norm

    def embed(tokens: Any) -> tuple[Any, Any]:
        found, table = word(tokens)
        return norm(found), table

    embedding.construct = embed  # the original rounds to float16
    return network


def whisper(config: Config, inputs: Inputs) -> Network:
    """Make a Whisper; its config has HuggingFace's keys."""
    floats = {**_FLOATS, "layernorm_compute_dtype": "float32", "embedding_init_type": "float32"}
    ours = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
    package = importlib.import_module("mindformers.models.whisper.modeling_whisper")
    network = package.WhisperForConditionalGeneration(package.WhisperConfig(**{**ours, **floats}))
    for cell in cells(network):
        if type(cell).__name__ == "GELU":  # by tanh here, by erf in transformers: logits would be off by 2e-3
            cell.gelu = functools.partial(ops.gelu, approximate="none")
    return network


def chatglm(config: Config, inputs: Inputs, **more: object) -> Network:
    """Make a ChatGLM2 or 3; its config has HuggingFace's keys, too."""
    ours = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    layout = {"qkv_concat": True, "mlp_concat": True, "use_rearrange_rope": False, "use_past": False}
    values = {**ours, **_sizes(inputs), **layout, **more}
    network = mindformers.ChatGLM2ForConditionalGeneration(mindformers.ChatGLM2Config(**values))
    for cell in cells(network):
        if hasattr(cell, "mul_mask"):  # bytes times -10000, which stay bytes on a CPU
            cell.mul_mask = lambda mask, by: mask.astype(mindspore.float32) * by
    return network


def chatglm_apart(config: Config, inputs: Inputs) -> Network:
    """Make a ChatGLM with q, k and v apart, and gate and up."""
    return chatglm(config, inputs, qkv_concat=False, mlp_concat=False)


def chatglm_rearranged(config: Config, inputs: Inputs) -> Network:
    """Make a ChatGLM that rotates halves."""
    return chatglm(config, inputs, use_rearrange_rope=True)


def _widened(network: Network) -> Network:
    """Set to float32 what a network keeps in float16 whatever its config says."""
    for cell in cells(network):
        for key, value in [*vars(cell).items()]:
            if value is mindspore.float16:
                setattr(cell, key, mindspore.float32)
    return network


def cells(network: Network) -> list[Any]:
    """Return all cells of a network."""
    return [cell for _, cell in network.cells_and_names()]


def _sizes(inputs: Inputs) -> Config:
    batch, length = inputs[-1].shape
    return {**_FLOATS, "batch_size": batch, "seq_length": length}


def _rope(config: Config) -> Config:
    scaling = config.get("rope_scaling")
    if not scaling:
        return {}
    return {"extend_method": "LLAMA3", "scaling_factor": {k: v for k, v in scaling.items() if k != "rope_type"}}


def _rms_norm(self: Any, x: Any, weight: Any) -> tuple[Any]:
    return (x * ops.rsqrt(ops.square(x).mean(-1, True) + self.epsilon) * weight,)


def _split_with_size(self: Any, x: Any, sizes: tuple[int, ...], dim: int) -> Any:
    return ops.split(x, list(sizes), dim)


def _zeros(self: Any, shape: tuple[int, ...], *dtype: Any, **named: Any) -> Any:
    """Pass `dtype` by position: MindFormers 1.6 passes it by name, which MindSpore 2.7 does not accept."""
    return _own_zeros(self, shape, *dtype, *named.values())


def _batch_mat_mul(self: Any, x: Any, y: Any) -> Any:
    """Broadcast first: the CPU's own needs as many matrices on one side as on the other."""
    many = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = (ops.broadcast_to(v, many + v.shape[-2:]).reshape(math.prod(many), *v.shape[-2:]) for v in (x, y))
    product = _cpu_batch_mat_mul(self, x, y)
    return product.reshape(*many, *product.shape[-2:])


_cpu_batch_mat_mul = ops.BatchMatMul.__call__
ops.BatchMatMul.__call__ = _batch_mat_mul
ops.auto_generate.RmsNorm.__call__ = _rms_norm
ops.auto_generate.SplitWithSize.__call__ = _split_with_size
_own_zeros = ops.Zeros.__call__
ops.Zeros.__call__ = _zeros
# MindSpore 2.7 removed a method that MindFormers 1.3 calls.
mindspore.nn.Cell.cast = ops.Cast()
