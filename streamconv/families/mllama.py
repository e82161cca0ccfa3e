"""Llama 3.2 Vision: a tiled image encoder, and a Llama some of whose layers attend to the image.

From MindFormers 1.5's `models/mllama/convert_weight.py`; the sizes of tiles are those of transformers' own model.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ..rules.family import Config, Family, Option, Options
from ..rules.sizes import look_up
from ..rules.statements import Rule, Statement
from .parts.decoder import feed_forward, layer_norms, nested_sizes, norm, same_name
from .parts.encoder import kept

_TEXT, _VISION = "language_model.model.", "vision_model."
_SHAPES = {"q": "heads*head_dim, hidden", "k": "kv*head_dim, hidden", "v": "kv*head_dim, hidden"}
_PROJECTIONS = {**_SHAPES, "o": "hidden, heads*head_dim"}

#: What transformers takes where the config does not say: the 11B's.
_LAYERS, _CROSS_LAYERS = 40, range(3, 40, 5)
#: More layers than any model has; a config with more of them fits no source.
_MOST = 1000


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the language model, the image encoder and the projector under either of HuggingFace's spellings."""
    table = [*_language(config), *_vision(), *kept("multi_modal_projector", "hidden", "seen")]
    if options["hf_names"] == "published":
        return [*table]
    return [replace(rule, hf=_in_memory(str(rule.hf))) for rule in table if isinstance(rule, Rule)]


def _in_memory(name: str) -> str:
    """Return what transformers 4.52 and later call a tensor of the published files."""
    if name.startswith(_TEXT):
        return "model.language_model." + name.removeprefix(_TEXT)
    return name.removeprefix("language_model.") if name.startswith("language_model.") else "model." + name


def _language(config: Config) -> list[Statement]:
    head = "language_model.lm_head.weight"
    inner = [rule for rule in (*feed_forward(), *layer_norms()) if isinstance(rule, Rule) and not rule.optional]
    return [
        Rule(_TEXT + "embed_tokens.weight", _TEXT + "tok_embeddings.embedding_weight", "vocab+8, hidden"),
        *_attentions(config),
        *(replace(rule, hf=f"language_model.{rule.hf}", ms=f"language_model.{rule.ms}") for rule in inner),
        Rule(_TEXT + "norm.weight", _TEXT + "norm_out.weight", "hidden"),
        same_name(head, "vocab, hidden"),
    ]


def _attentions(config: Config) -> list[Statement]:
    """Return the rules of attention: some layers see the image, all others the text."""
    count, cross = (look_up(config, f"text_config.{key}") for key in ("num_hidden_layers", "cross_attention_layers"))
    layers = range(min(count, _MOST) if isinstance(count, int) else _LAYERS)
    crossing = [number for number in layers if number in (cross if isinstance(cross, list) else _CROSS_LAYERS)]
    seeing, plain = _these(crossing), _these([n for n in layers if n not in crossing])
    return [
        *(rule for at in plain for rule in _projections(at, "self_attn.")),
        *(rule for at in seeing for rule in _cross(at)),
    ]


def _these(layers: Sequence[int]) -> list[str]:
    """Return what the names of these layers begin with, in one pattern; nothing if there are none."""
    return [f"{_TEXT}layers.{{layer:{'|'.join(map(str, layers))}}}."] if layers else []


def _projections(at: str, attention: str) -> list[Statement]:
    return [
        Rule(f"{at}{attention}{name}_proj.weight", f"{at}attention.w{name}.weight", shape)
        for name, shape in _PROJECTIONS.items()
    ]


def _cross(at: str) -> list[Statement]:
    hf = "cross_attn."
    return [
        *_projections(at, hf),
        *(Rule(f"{at}{hf}{n}_norm.weight", f"{at}attention.w{n}_norm.weight", "head_dim") for n in "qk"),
        same_name(at + "cross_attn_attn_gate", "1"),
        Rule(at + "cross_attn_mlp_gate", at + "cross_attn_ff_gate", "1"),
    ]


def _vision() -> list[Statement]:
    layers, last = _VISION + "transformer.layers.{block}.", _VISION + "global_transformer.layers.{last}."
    gated, tile = _VISION + "gated_positional_embedding.", "_tile_positional_embedding."
    return [
        same_name(_VISION + "class_embedding", "width"),
        same_name(_VISION + "patch_embedding.weight", "width, channels, patch, patch"),
        same_name(gated + "embedding", "tokens, width"),
        same_name(gated + "gate", "1"),
        _table(gated + "tile_embedding.", "ratios, tiles*tokens*width"),
        *(_table(f"{_VISION}{when}{tile}embedding.", "ratios, tiles*width") for when in ("pre", "post")),
        *(same_name(f"{_VISION}{when}{tile}gate", "1") for when in ("pre", "post")),
        *(rule for when in ("pre", "post") for rule in _norm(f"{_VISION}layernorm_{when}")),
        *_block(layers),
        *_block(last),
        *(same_name(f"{last}gate_{part}", "1") for part in ("attn", "ffn")),
    ]


def _table(at: str, shape: str) -> Rule:
    return Rule(at + "weight", at + "embedding_table", shape)


def _norm(name: str) -> list[Statement]:
    return norm(name, name, "width")


def _block(at: str) -> list[Statement]:
    return [
        *(rule for name in ("input", "post_attention") for rule in _norm(f"{at}{name}_layernorm")),
        *(same_name(f"{at}self_attn.{name}_proj.weight", "width, width") for name in "qkvo"),
        *kept(at + "mlp.fc1", "wide", "width"),
        *kept(at + "mlp.fc2", "width", "wide"),
    ]


FAMILY = Family(
    name="mllama",
    title="Llama 3.2 Vision",
    repositories=("meta-llama/Llama-3.2-{11B,90B}-Vision{,-Instruct}",),
    model_types=("mllama",),
    architectures=("MllamaForConditionalGeneration",),
    sizes={
        **nested_sizes("text_config"),
        "width": "vision_config.hidden_size",
        "wide": "vision_config.intermediate_size",
        "blocks": "vision_config.num_hidden_layers",
        "last_blocks": "vision_config.num_global_layers",
        "seen": "vision_config.vision_output_dim",
        "tiles": "vision_config.max_num_tiles",
        "patch": "vision_config.patch_size",
        "channels": "vision_config.num_channels",
    },
    ranges={"layer": "layers", "block": "blocks", "last": "last_blocks"},
    options=(
        Option(
            "hf_names",
            ("published", "in_memory"),
            "HuggingFace's names: as published, or as in the memory of transformers 4.52 and later",
            is_preference=True,
            infer_from_names=True,
        ),
    ),
    rules=rules,
    example={"text_config": {"num_hidden_layers": 5, "cross_attention_layers": [3]}},
    differs_from_mindformers=(
        "hf_names=in_memory gives the names of its network; MindFormers, run with such a transformers, gives others",
        "the reverse direction exists; MindFormers has none",
    ),
)
