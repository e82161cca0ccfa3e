"""Whisper: one-dimensional convolutions get an axis of size 1; norms and embeddings are renamed.

From MindFormers' `models/whisper/convert_weight.py`, which reads one torch file of a `WhisperForConditionalGeneration`.
"""

from __future__ import annotations

from ..rules.family import Config, Family, Options
from ..rules.statements import Rule, Statement
from ..rules.transforms import Unsqueeze
from .parts.decoder import norm, same_name

_ENCODER, _DECODER = "model.encoder.", "model.decoder."
_DEEP = _ENCODER + "layers.{encoder}.", _DECODER + "layers.{decoder}."


def rules(config: Config, options: Options) -> list[Statement]:
    """Map encoder, decoder and their embeddings."""
    tokens, head = _DECODER + "embed_tokens", "proj_out.weight"
    return [
        *_convolution("conv1", "mels"),
        *_convolution("conv2", "hidden"),
        _embedding(_ENCODER + "embed_positions", "frames"),
        *_layer(_DEEP[0], "encoder_ffn", "self_attn"),
        *norm(_ENCODER + "layer_norm", _ENCODER + "layer_norm", "hidden"),
        _embedding(tokens, "vocab"),
        _embedding(_DECODER + "embed_positions", "positions"),
        *_layer(_DEEP[1], "decoder_ffn", "self_attn", "encoder_attn"),
        *norm(_DECODER + "layer_norm", _DECODER + "layer_norm", "hidden"),
        Rule(head, head, "vocab, hidden", optional=True),
    ]


def _convolution(name: str, inputs: str) -> list[Statement]:
    weight = same_name(f"{_ENCODER}{name}.weight", f"hidden, {inputs}, kernel", Unsqueeze(2))
    return [weight, same_name(f"{_ENCODER}{name}.bias", "hidden")]


def _embedding(name: str, rows: str) -> Rule:
    return Rule(name + ".weight", name + ".embedding_weight", f"{rows}, hidden")


def _layer(layer: str, ffn: str, *attentions: str) -> list[Statement]:
    result: list[Statement] = []
    for attention in (layer + name for name in attentions):
        result += [same_name(f"{attention}.{p}_proj.weight", "hidden, hidden") for p in ("q", "k", "v", "out")]
        result += [same_name(f"{attention}.{p}_proj.bias", "hidden") for p in ("q", "v", "out")]
        result += norm(attention + "_layer_norm", attention + "_layer_norm", "hidden")
    for name, rows, columns in (("fc1", ffn, "hidden"), ("fc2", "hidden", ffn)):
        result += [same_name(f"{layer}{name}.weight", f"{rows}, {columns}"), same_name(f"{layer}{name}.bias", rows)]
    return [*result, *norm(layer + "final_layer_norm", layer + "final_layer_norm", "hidden")]


FAMILY = Family(
    name="whisper",
    title="Whisper, all sizes",
    repositories=("openai/whisper-{tiny,base,small,medium,large,large-v2,large-v3}",),
    model_types=("whisper",),
    architectures=("WhisperForConditionalGeneration",),
    sizes={
        "vocab": "vocab_size",
        "hidden": "d_model",
        "mels": "num_mel_bins",
        "frames": "max_source_positions",
        "positions": "max_target_positions",
        "encoders": "encoder_layers",
        "decoders": "decoder_layers",
        "encoder_ffn": "encoder_ffn_dim",
        "decoder_ffn": "decoder_ffn_dim",
        "kernel": "=3",
    },
    ranges={"encoder": "encoders", "decoder": "decoders"},
    rules=rules,
    differs_from_mindformers=("safetensors, shards and BF16 are read; MindFormers reads one torch file, and no BF16",),
)
