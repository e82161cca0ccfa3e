"""CogVLM2: an EVA image encoder, an adapter, and a Llama, which for images has separate experts for image tokens.

From MindFormers 1.5's `models/cogvlm2/convert_weight.py`, whose 4096 and 5120 are the first rows of k and v. Every
layer has the same rotary frequencies; MindFormers stores them once.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Copy, Rule, Statement
from ..rules.transforms import Unsqueeze
from .parts.decoder import LAYER, norm
from .parts.encoder import unchanged

_VISION, _VISION_MS, _ADAPTER = "model.vision.", "vision_encoder.", "mlp_adapter."
_LAYER, _LAYER_MS = _VISION + "transformer.layers.{block}.", _VISION_MS + "blocks.{block}."
_QKV, _DENSE = (
    "self_attn.{kind:language|vision}_expert_query_key_value.",
    "self_attn.{kind:language|vision}_expert_dense.",
)
_FREQUENCIES = ".self_attn.rotary_emb.inv_freq"
_PROJECTIONS = (("gate_proj", "w1", "ffn, width"), ("up_proj", "w3", "ffn, width"), ("down_proj", "w2", "width, ffn"))


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the language model (of the chosen modality), the image encoder and the adapter between them."""
    video = options["modal"] == "video"
    top = "llm_model.pet_model.lora_model." if video and options["sft"] == "lora" else "llm_model."
    first = "model.layers.0" + _FREQUENCIES
    return [
        Rule("model.embed_tokens.weight", top + "model.tok_embeddings.embedding_weight", "vocab, width"),
        Rule(first, top + "model.freqs_mgr.freqs", "frequencies", optional=True),
        Copy("model.layers.{later}" + _FREQUENCIES, first, "the same in every layer"),
        *(_video_layer(top + LAYER) if video else _image_layer(top + LAYER)),
        Rule("model.norm.weight", top + "model.norm_out.weight", "width"),
        Rule("lm_head.weight", top + "lm_head.weight", "vocab, width"),
        *_vision(),
        *_adapter(),
    ]


def _video_layer(ms: str) -> list[Statement]:
    """Return the rules of a Llama's layer: q, k and v separate, MindFormers' names."""
    language, parts = LAYER + "self_attn.language_expert_", tuple(f"{ms}attention.w{p}.weight" for p in "qkv")
    return [
        Rule(
            language + "query_key_value.weight",
            parts,
            "(heads+2*kv)*head_dim, width",
            Deinterleave(Interleave(("heads", "kv", "kv"))),
        ),
        Rule(language + "dense.weight", ms + "attention.wo.weight", "width, heads*head_dim"),
        *(
            Rule(f"{LAYER}mlp.language_mlp.{hf}.weight", f"{ms}feed_forward.{w}.weight", shape)
            for hf, w, shape in _PROJECTIONS
        ),
        Rule(LAYER + "input_layernorm.weight", ms + "attention_norm.weight", "width"),
        Rule(LAYER + "post_attention_layernorm.weight", ms + "ffn_norm.weight", "width"),
    ]


def _image_layer(ms: str) -> list[Statement]:
    """Return the rules of a layer with two experts: HuggingFace's names, except for the networks' projections."""
    kinds = "mlp.{kind:language|vision}_mlp."
    bias = "self_attn.vision_expert_query_key_value.bias"
    return [
        Rule(LAYER + _QKV + "weight", ms + _QKV + "weight", "(heads+2*kv)*head_dim, width"),
        Rule(LAYER + bias, ms + bias, "(heads+2*kv)*head_dim"),
        Rule(LAYER + _DENSE + "weight", ms + _DENSE + "weight", "width, heads*head_dim"),
        *(Rule(f"{LAYER}{kinds}{hf}.weight", f"{ms}{kinds}{w}.weight", shape) for hf, w, shape in _PROJECTIONS),
        *(
            Rule(f"{LAYER}{n}.weight", f"{ms}{n}.weight", "width")
            for n in ("input_layernorm", "post_attention_layernorm")
        ),
    ]


def _vision() -> list[Statement]:
    hf = _VISION + "patch_embedding."
    return [
        Rule(hf + "cls_embedding", _VISION_MS + "cls_token", "1, vision", Unsqueeze(0)),
        Rule(hf + "position_embedding.weight", _VISION_MS + "pos_embed", "positions, vision", Unsqueeze(0)),
        *unchanged(hf + "proj", _VISION_MS + "patch_embed.proj", "vision", "channels, patch, patch"),
        *norm(_LAYER + "input_layernorm", _LAYER_MS + "norm1", "vision"),
        *unchanged(_LAYER + "attention.query_key_value", _LAYER_MS + "attn.qkv", "3*vision", "vision"),
        *unchanged(_LAYER + "attention.dense", _LAYER_MS + "attn.proj", "vision", "vision"),
        *norm(_LAYER + "post_attention_layernorm", _LAYER_MS + "norm2", "vision"),
        *unchanged(_LAYER + "mlp.fc1", _LAYER_MS + "mlp.fc1", "vision_ffn", "vision"),
        *unchanged(_LAYER + "mlp.fc2", _LAYER_MS + "mlp.fc2", "vision", "vision_ffn"),
    ]


def _adapter() -> list[Statement]:
    line = "linear_proj."
    shapes = {"linear_proj": "width, vision", "gate_proj": "adapted, width", "dense_h_to_4h": "adapted, width"}
    linears = {**shapes, "dense_4h_to_h": "width, adapted"}
    return [
        *(Rule(_VISION + name, _ADAPTER + name, "1, 1, width") for name in ("boi", "eoi")),
        *unchanged(_VISION + "conv", _ADAPTER + "conv", "vision", "vision, window, window"),
        *norm(_VISION + line + "norm1", _ADAPTER + line + "norm1", "width"),
        *(Rule(f"{_VISION}{line}{n}.weight", f"{_ADAPTER}{line}{n}.weight", shape) for n, shape in linears.items()),
    ]


FAMILY = Family(
    name="cogvlm2",
    title="CogVLM2, for video and for images",
    repositories=("THUDM/cogvlm2-llama3-chat-19B", "THUDM/cogvlm2-video-llama3-chat", "THUDM/cogvlm2-llama3-caption"),
    architectures=("CogVLMForCausalLM", "CogVLMVideoForCausalLM"),
    sizes={
        "vocab": "vocab_size",
        "ffn": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv": "num_multi_query_heads",
        "vision": "vision_config.hidden_size",
        "vision_ffn": "vision_config.intermediate_size",
        "blocks": "vision_config.num_hidden_layers",
        "positions": "vision_config.num_positions",
        "channels": "vision_config.in_channels",
        "patch": "vision_config.patch_size",
    },
    ranges={"layer": "layers", "later": "1..layers", "block": "blocks"},
    options=(
        Option("modal", ("video", "image"), "the model's input: video, or images", infer_from_names=True),
        Option("sft", ("none", "lora"), "use the names for LoRA fine-tuning; only with modal=video"),
    ),
    rules=rules,
    differs_from_mindformers=(
        "q, k and v have as many rows as the config says; MindFormers cuts at the 8B's",
        "layer 0's rotary frequencies are kept; MindFormers keeps the first that it reads",
        "the reverse direction exists",
    ),
)
