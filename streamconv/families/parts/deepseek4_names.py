"""What transformers 5 calls DeepSeek-V4's tensors: names of its own in memory, and a mixture of both in what it saves.

From transformers 5.24, which loads DeepSeek's own names and renames them; what `save_pretrained` writes by default is
not the inverse of that.
"""

from __future__ import annotations

from ...rules.fused import Fused
from .experts import fused_experts

_THEIRS, _OURS = "model.layers.{layer}.", "layers.{layer}."

#: In a layer: transformers' name -> DeepSeek's, of weights.
_WEIGHTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_norm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.kv_proj": "attn.wkv",
    "self_attn.kv_norm": "attn.kv_norm",
    "self_attn.o_a_proj": "attn.wo_a",
    "self_attn.o_b_proj": "attn.wo_b",
    "self_attn.compressor.kv_proj": "attn.compressor.wkv",
    "self_attn.compressor.gate_proj": "attn.compressor.wgate",
    "self_attn.compressor.kv_norm": "attn.compressor.norm",
    "self_attn.compressor.indexer.q_b_proj": "attn.indexer.wq_b",
    "self_attn.compressor.indexer.scorer.weights_proj": "attn.indexer.weights_proj",
    "self_attn.compressor.indexer.kv_proj": "attn.indexer.compressor.wkv",
    "self_attn.compressor.indexer.gate_proj": "attn.indexer.compressor.wgate",
    "self_attn.compressor.indexer.kv_norm": "attn.indexer.compressor.norm",
    "mlp.gate": "ffn.gate",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1",
    "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
}
#: ... and of what is no `.weight`.
_OTHERS = {
    "self_attn.sinks": "attn.attn_sink",
    "self_attn.compressor.position_bias": "attn.compressor.ape",
    "self_attn.compressor.indexer.position_bias": "attn.indexer.compressor.ape",
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.gate.tid2eid": "ffn.gate.tid2eid",
    "{part:attn|ffn}_hc.{what:base|fn|scale}": "hc_{part:attn|ffn}_{what:base|fn|scale}",
}
_ENDS = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "model.hc_head.hc_{what:base|fn|scale}": "hc_head_{what:base|fn|scale}",
}

#: The names in memory first: in reverse the first that fits is written.
NAMES = (
    *(Fused(theirs, (ours,)) for theirs, ours in _ENDS.items()),
    *(Fused(f"{_THEIRS}{theirs}.weight", (f"{_OURS}{ours}.weight",)) for theirs, ours in _WEIGHTS.items()),
    *(Fused(_THEIRS + theirs, (_OURS + ours,)) for theirs, ours in _OTHERS.items()),
    *fused_experts(_THEIRS + "mlp.experts.", _OURS + "ffn.experts.{expert}.", ("w1", "w3", "w2")),
    Fused(_THEIRS + "attn.norm.weight", (_OURS + "attn.kv_norm.weight",)),
    Fused(_THEIRS + "{rest:*}", (_OURS + "{rest:*}",)),
)
