"""MindFormers' side from 1.7 on: the networks that it trains, with MCore's names.

They are written for graph mode on accelerators. Executed eagerly on a CPU, they need more stand-ins: for attention, for
the grouped matrix multiplication, and for the exchange of tokens between devices, of which there is only one.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from .mindformers import Network, cells, mindspore, ops
from .tensors import Config, Inputs

_GRAPH = "mindformers.parallel_core.training_graph.transformer."
_TYPED = ("compute_dtype", "params_dtype", "layernorm_compute_dtype", "softmax_compute_dtype", "rotary_dtype")
_UNKNOWN = (
    "architectures",
    "model_type",
    "torch_dtype",
    "transformers_version",
    "rope_interleave",
    "qk_head_dim",
    "pretraining_tp",
)
_NORMS = {"normalization": "RMSNorm", "qk_layernorm": True, "gated_linear_unit": True, "add_bias_linear": False}


def qwen3(config: Config, inputs: Inputs) -> Network:
    """Make a dense Qwen3."""
    return _network("qwen3.modeling_qwen3_train", "TrainingQwen3ForCausalLM", "Qwen3Config", config, inputs)


def qwen3_moe(config: Config, inputs: Inputs) -> Network:
    """Make a Qwen3 with experts."""
    values = {**config, "moe_grouped_gemm": True, "moe_router_topk_scaling_factor": 1.0}
    module = "qwen3_moe.modeling_qwen3_moe_train"
    return _network(module, "TrainingQwen3MoeForCausalLM", "Qwen3MoeConfig", values, inputs)


def deepseek3(config: Config, inputs: Inputs) -> Network:
    """Make a DeepSeek-V3 without MTP layers, with q apart from k and v."""
    further = {"num_nextn_predict_layers": 0, "mla_qkv_concat": False, "moe_router_enable_expert_bias": True}
    values = {**config, **further, "moe_grouped_gemm": True}
    module = "deepseek3.modeling_deepseek_v3_train"
    return _network(module, "TrainingDeepseekV3ForCausalLM", "DeepseekV3Config", values, inputs)


def _network(module: str, name: str, config_name: str, config: Config, inputs: Inputs) -> Network:
    _stand_in()
    package = importlib.import_module(f"mindformers.models.{module.partition('.')[0]}")
    batch, length = inputs[0].shape
    known = {key: value for key, value in config.items() if key not in _UNKNOWN}
    sizes = {"batch_size": batch, "seq_length": length, **dict.fromkeys(_TYPED, "float32")}
    settled = getattr(package, config_name)(**{**known, **_NORMS, **sizes})
    network = getattr(importlib.import_module(f"mindformers.models.{module}"), name)(settled)
    for cell in cells(network):
        if hasattr(cell, "core_attention"):
            cell.use_flash_attention = False  # or q, k and v would be rounded to float16
            cell._repeat_kv = lambda x, times: x  # the stand-in does it
    network.construct = functools.partial(_logits, network.model)
    return network


def _logits(model: Any, tokens: Any) -> tuple[Any]:
    """Compute the logits, the step before the loss."""
    batch, length = tokens.shape
    mask = mindspore.Tensor(np.triu(np.ones((batch, 1, length, length), np.uint8), 1))
    hidden = model.language_model(tokens, None, mask, None)[0]
    tied = model.share_embeddings_and_output_weights
    weight = model.shared_embedding_or_output_weight() if tied else None
    return (model.output_layer(hidden, weight)[0].swapaxes(0, 1),)


@functools.cache
def _stand_in() -> None:
    importlib.import_module(_GRAPH + "flash_attention").FlashAttention.construct = _attend
    utils: Any = importlib.import_module(_GRAPH + "utils")
    utils.is_legacy_model = lambda: False
    shared = importlib.import_module(_GRAPH + "moe.shared_experts")
    # It expects two results, but MindFormers 1.7 returns three.
    shared.SharedExpertMLPInterleaved.construct = lambda self, x: shared.MLPInterleaved.construct(self, x)[:2]
    tokens: Any = importlib.import_module(_GRAPH + "moe.token_dispatcher")
    tokens.create_group = lambda *group: None
    tokens.MoEAlltoAllTokenDispatcher.token_permutation = _by_expert
    tokens.MoEAlltoAllTokenDispatcher.token_unpermutation = _by_token
    _stand_in_operators()


def _stand_in_operators() -> None:
    own = ops.auto_generate
    own.Embedding.__call__ = lambda self, tokens, table, *rest: ops.gather(table, tokens, 0)
    own.Outer.__call__ = lambda self, a, b: a.reshape(-1, 1) * b.reshape(1, -1)
    own.TopkExt.__call__ = lambda self, x, k, *rest: ops.topk(x, k)
    own.OneHotExt.__call__ = lambda self, x, depth, *rest: ops.one_hot(x, depth, 1, 0)
    own.GroupedMatmul.__call__ = _grouped_product
    own.Swiglu.__call__ = _swiglu
    morph = importlib.import_module("mindspore.ops.operations.debug_ops").Morph
    morph.__init__ = functools.partialmethod(_keep, morph.__init__)
    morph.__call__ = lambda self, *arguments: self.kept(*arguments)


def _keep(self: Any, construct: Any, function: Any, *rest: Any) -> None:
    """Keep the function that a Morph would call in graph mode only."""
    construct(self, function, *rest)
    self.kept = function


def _attend(self: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any) -> Any:
    """Compute attention over [tokens, batch, heads, size]; ones in the mask hide a position."""
    q, k, v = (x.transpose(1, 2, 0, 3) for x in (query, key, value))
    k, v = (ops.repeat_interleave(x, q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = ops.matmul(q, k.swapaxes(2, 3)) * q.shape[-1] ** -0.5 - 1e9 * mask.astype(mindspore.float32)
    seen = ops.matmul(ops.softmax(scores, -1), v)
    return seen.transpose(2, 0, 1, 3).reshape(*query.shape[:2], -1)


def _by_expert(self: Any, tokens: Any, weights: Any, chosen: Any) -> tuple[Any, list[int], Any]:
    """Return the tokens sorted by expert, how many each expert has, and what `_by_token` needs to undo it."""
    experts = chosen.asnumpy().reshape(-1)
    order = np.argsort(experts, kind="stable")
    counts = np.bincount(experts, minlength=experts.max() + 1).tolist()
    flat = tokens.reshape(-1, tokens.shape[-1])
    return flat[mindspore.Tensor(order // chosen.shape[-1])], counts, (order, weights)


def _by_token(self: Any, computed: Any, context: Any) -> Any:
    order, weights = context
    back = computed[mindspore.Tensor(np.argsort(order))].reshape(*weights.shape, -1)
    return (back * weights.expand_dims(-1)).sum(-2)


def _grouped_product(self: Any, tokens: Any, weights: Any, *rest: Any) -> list[Any]:
    ends = np.cumsum(rest[-1]).tolist()
    parts = zip([0, *ends], ends, weights[0], strict=False)
    return [ops.cat([ops.matmul(tokens[0][start:end], weight) for start, end, weight in parts if end > start])]


def _swiglu(self: Any, x: Any, axis: int) -> Any:
    gate, up = ops.chunk(x, 2, axis)
    return gate * ops.sigmoid(gate) * up
