"""DeepSeek-V4, for the PyNative network of MindFormers 2.1: compressed attention, hyper-connections, hashed experts.

From MindFormers' own template for this model (`models/deepseek4/utils.py`), run in both directions; names, shapes and
what is float32 are those of its network. HuggingFace's side is DeepSeek's own names; those of transformers 5 are read.

Which layers have which tensors is in the config. A layer's keys and values are compressed by 4 (then it has an indexer
too), by 128, or not at all; the first layers choose experts by a table of tokens, the others by a router with a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Deinterleave, Interleave
from ..rules.statements import Drop, Rule, Statement
from ..rules.transforms import Identity, ToInteger
from .parts.decoder import gate_and_up, head
from .parts.deepseek4_names import NAMES
from .parts.experts import WRITTEN, joined_experts
from .parts.latent_attention import BOTH

_MTP_HF, _MTP_MS = "mtp.{mtp}.", "mtp.layers.{mtp}."
_INDEXED = 4


class _Names(NamedTuple):
    """What names begin with in some layers, on both sides, and whether one of these layers may lack the tensors."""

    hf: str
    ms: str
    optional: bool


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the model, with or without the layers that predict further tokens."""
    kept = bool(options["mtp"]) and config.get("num_nextn_predict_layers") != 0
    return [
        Rule("embed.weight", "embedding.word_embeddings.weight", "vocab, hidden"),
        *_layer("layers.{layer}.", "decoder.layers.{layer}."),
        *_compressors(config),
        *_routers(config),
        Rule("norm.weight", "decoder.final_layernorm.weight", "hidden"),
        *_last_streams("", "decoder."),
        head(config, "head.weight", "output_layer.weight", "embed.weight"),
        *(_further() if kept else [_no_mtp(config)]),
        Drop("ones, not trained", ms=("{place:*}_hc.rms_weight", "{place:*}.self_attention.q_rms_gamma")),
    ]


def _no_mtp(config: Config) -> Drop:
    none = config.get("num_nextn_predict_layers") == 0
    why = "num_nextn_predict_layers of config.json is 0" if none else "mtp=false: layers that predict further tokens"
    return Drop(why, hf=("mtp.{rest:*}",), ms=("mtp.{rest:*}",))


def _further() -> list[Statement]:
    return [
        *_layer(_MTP_HF, _MTP_MS + "transformer_layer."),
        _bias(_MTP_HF, _MTP_MS + "transformer_layer."),
        Rule(_MTP_HF + "enorm.weight", _MTP_MS + "enorm.weight", "hidden"),
        Rule(_MTP_HF + "hnorm.weight", _MTP_MS + "hnorm.weight", "hidden"),
        Rule(
            (_MTP_HF + "e_proj.weight", _MTP_HF + "h_proj.weight"),
            _MTP_MS + "eh_proj.weight",
            "hidden, hidden",
            Interleave(("1", "1"), axis=1),
        ),
        Rule(_MTP_HF + "norm.weight", _MTP_MS + "final_layernorm.weight", "hidden"),
        *_last_streams(_MTP_HF, _MTP_MS),
    ]


def _last_streams(hf: str, ms: str) -> list[Statement]:
    """Return the rules of what joins the streams of the residual after the last layer."""
    table = (("base", "hc_base", "hc"), ("fn", "hc_fn.weight", "hc, hc*hidden"), ("scale", "hc_scale", "1"))
    return [Rule(f"{hf}hc_head_{name}", f"{ms}hc_head.{theirs}", shape, fp32=BOTH) for name, theirs, shape in table]


# -- what every layer has ----------------------------------------------------------------------------------------------


def _layer(hf: str, ms: str) -> list[Statement]:
    return [
        Rule(hf + "attn_norm.weight", ms + "input_layernorm.weight", "hidden"),
        Rule(hf + "ffn_norm.weight", ms + "pre_mlp_layernorm.weight", "hidden"),
        *_attention(hf + "attn.", ms + "self_attention."),
        *(statement for part in ("attn", "ffn") for statement in _streams(hf, ms, part)),
        Rule(hf + "ffn.gate.weight", ms + "mlp.router.weight", "experts, hidden"),
        *_shared_experts(hf + "ffn.shared_experts.", ms + "mlp.shared_experts."),
        *joined_experts(hf + "ffn.experts.{expert}.", ms + "mlp.experts.", Identity(), ("w1", "w3", "w2")),
    ]


def _attention(hf: str, ms: str) -> list[Statement]:
    table = (
        ("wq_a", "linear_q_down_proj", "q_rank, hidden"),
        ("q_norm", "q_layernorm", "q_rank"),
        ("wq_b", "linear_q_up_proj", "heads*head_dim, q_rank"),
        ("wkv", "linear_kv_proj", "head_dim, hidden"),
        ("kv_norm", "kv_layernorm", "head_dim"),
        ("wo_b", "linear_proj", "hidden, groups*o_rank"),
    )
    return [
        *(Rule(f"{hf}{name}.weight", f"{ms}{theirs}.weight", shape) for name, theirs, shape in table),
        # A parameter of the attention itself, not of a linear: its name has no `.weight`.
        Rule(hf + "wo_a.weight", ms + "linear_o_group_proj", "groups*o_rank, heads*head_dim//groups"),
        Rule(hf + "attn_sink", ms + "core_attention.attn_sink", "heads", fp32=BOTH),
    ]


def _streams(hf: str, ms: str, part: str) -> list[Statement]:
    """Return the rules of the hyper-connections of a part: how streams are read for it, written after it, and mixed."""
    theirs, ours = f"{hf}hc_{part}_", f"{ms}{part}_hc."
    alphas = tuple(f"{ours}alpha_{name}" for name in ("pre", "post", "res"))
    return [
        Rule(theirs + "base", ours + "bias", "(2+hc)*hc", fp32=BOTH),
        Rule(theirs + "fn", ours + "mapping_proj.weight", "(2+hc)*hc, hc*hidden", fp32=BOTH),
        Rule(theirs + "scale", alphas, "3", Deinterleave(Interleave(("1", "1", "1"))), fp32=BOTH),
    ]


def _shared_experts(hf: str, ms: str) -> list[Statement]:
    pair = hf + "w1.weight", hf + "w3.weight"
    return [
        Rule(pair, ms + "linear_fc1.weight", "shared*expert_ffn, hidden", gate_and_up(by_turns=True)),
        Rule(hf + "w2.weight", ms + "linear_fc2.weight", "hidden, shared*expert_ffn"),
    ]


# -- what some layers have ---------------------------------------------------------------------------------------------


def _compressors(config: Config) -> list[Statement]:
    """Return the rules of what compresses keys and values; if the config does not say in which layers, in any."""
    ratios = _ratios(config)
    if ratios is None:
        return [*_compressor(None, None), *_indexer(None)]
    layers = {ratio: [n for n, one in enumerate(ratios) if one == ratio] for ratio in sorted({*ratios} - {0})}
    found = [statement for ratio, some in layers.items() for statement in _compressor(ratio, some)]
    return [*found, *(_indexer(layers[_INDEXED]) if _INDEXED in layers else [])]


def _ratios(config: Config) -> list[int] | None:
    """Return by how much each layer compresses, 0 for not at all; `None` where the config does not say."""
    given, kinds, rates = (config.get(key) for key in ("compress_ratios", "layer_types", "compress_rates"))
    if not isinstance(given, list) and isinstance(kinds, list) and isinstance(rates, dict):
        given = [rates.get(kind, 0) if isinstance(kind, str) else None for kind in kinds]
    if not isinstance(given, list) or not all(isinstance(one, int) for one in given):
        return None
    layers = config.get("num_hidden_layers")
    # DeepSeek's list goes on with the layers that predict further tokens.
    return given[:layers] if isinstance(layers, int) else given


def _compressor(ratio: int | None, layers: Sequence[int] | None) -> list[Statement]:
    # Where there is an indexer, blocks overlap: each token is in two of them.
    width = "2*head_dim" if ratio == _INDEXED else "head_dim"
    return _compressing("attn.compressor.", "compressor.", ratio, width, "head_dim", layers)


def _indexer(layers: Sequence[int] | None) -> list[Statement]:
    hf, ms, optional = _in(layers)
    hf, ms = hf + "attn.indexer.", ms + "self_attention.core_attention.indexer."
    table = (
        ("wq_b", "linear_wq_b", "index_heads*index_dim, q_rank"),
        ("weights_proj", "linear_weights_proj", "index_heads, hidden"),
    )
    return [
        *(
            Rule(f"{hf}{name}.weight", f"{ms}{theirs}.weight", shape, optional=optional, any_layer=optional)
            for name, theirs, shape in table
        ),
        *_compressing("attn.indexer.compressor.", "indexer.compressor.", _INDEXED, "2*index_dim", "index_dim", layers),
    ]


def _compressing(
    hf: str, ms: str, ratio: int | None, width: str, normed: str, layers: Sequence[int] | None
) -> list[Statement]:
    """Return the rules of a compressor; without a ratio, the shapes of its projections are not known."""
    layer, ms_layer, optional = _in(layers)
    hf, ms = layer + hf, f"{ms_layer}self_attention.core_attention.{ms}"
    table = (
        ("ape", "ape", f"{ratio}, {width}"),
        ("wkv.weight", "linear_wkv.weight", f"{width}, hidden"),
        ("wgate.weight", "linear_wgate.weight", f"{width}, hidden"),
        ("norm.weight", "norm.weight", normed),
    )
    return [
        Rule(
            hf + name,
            ms + theirs,
            shape if ratio is not None or name.startswith("norm") else None,
            optional=optional,
            any_layer=optional,
        )
        for name, theirs, shape in table
    ]


def _routers(config: Config) -> list[Statement]:
    """Return the rules of what chooses experts: a table of tokens in some layers, a bias in the others."""
    hashed, balanced = _hashed(config)
    return [*([_table(*hashed)] if hashed else []), *([_bias(*balanced)] if balanced else [])]


def _hashed(config: Config) -> tuple[_Names | None, _Names | None]:
    """Return what names begin with in layers with a table of tokens and in those with a bias, `None` without such."""
    kinds = config.get("mlp_layer_types")
    if isinstance(config.get("num_hash_layers"), int):
        return _under("{hashed}"), _under("{balanced}")
    if not isinstance(kinds, list):
        return _in(None), _in(None)
    hashed = [layer for layer, kind in enumerate(kinds) if kind == "hash_moe"]
    balanced = [layer for layer, kind in enumerate(kinds) if kind != "hash_moe"]
    return _in(hashed) if hashed else None, _in(balanced) if balanced else None


def _table(hf: str, ms: str, optional: bool) -> Rule:
    names = hf + "ffn.gate.tid2eid", ms + "mlp.router.tid2eid"
    width = ToInteger("I32", "I64")
    return Rule(*names, "vocab, top_k", width, optional=optional, any_layer=optional)


def _bias(hf: str, ms: str, optional: bool = False) -> Rule:
    names = hf + "ffn.gate.bias", ms + "mlp.expert_bias"
    return Rule(*names, "experts", fp32=BOTH, optional=optional, any_layer=optional)


def _in(layers: Sequence[int] | None) -> _Names:
    if layers is None:
        return _under("{layer}")._replace(optional=True)
    return _under(f"{{layer:{'|'.join(map(str, layers))}}}")


def _under(hole: str) -> _Names:
    return _Names(f"layers.{hole}.", f"decoder.layers.{hole}.", False)


FAMILY = Family(
    name="deepseek4",
    title="DeepSeek-V4 Flash and Pro: FP8 and FP4, or BF16",
    repositories=("deepseek-ai/DeepSeek-V4-{Flash,Pro}{,-Base}",),
    model_types=("deepseek_v4",),
    architectures=("DeepseekV4ForCausalLM",),
    sizes={
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "head_dim": "head_dim",
        "q_rank": "q_lora_rank",
        "o_rank": "o_lora_rank",
        "groups": "o_groups",
        "experts": "n_routed_experts",
        "shared": "n_shared_experts | =1",
        "expert_ffn": "moe_intermediate_size",
        "top_k": "num_experts_per_tok",
        "index_heads": "index_n_heads",
        "index_dim": "index_head_dim",
        "hc": "hc_mult",
        "hashed": "num_hash_layers | =0",
        # transformers' config has no compress_ratios; it announces these layers and saves none of them.
        "mtp": "num_nextn_predict_layers if compress_ratios",
    },
    ranges={"layer": "layers", "hashed": "hashed", "balanced": "hashed..layers", "mtp": "mtp", "expert": "experts"},
    options=(
        Option(
            "mtp",
            (True, False),
            "keep the layers for multi-token prediction (as many as config.json says), or drop them",
            is_preference=True,
            config_updates={False: {"num_nextn_predict_layers": 0}},
        ),
        WRITTEN,
    ),
    fused=NAMES,
    rules=rules,
    example={
        **{"num_hidden_layers": 4, "num_nextn_predict_layers": 1},
        **{"compress_ratios": [0, 4, 128, 4, 0], "num_hash_layers": 1},
    },
    differs_from_mindformers=(
        "hyper-connections, attention sinks and expert_bias stay float32 in both directions, as the network has them; "
        "MindFormers' template does not cast float32 tensors at all",
        "tid2eid comes back as I64, as transformers has it; MindFormers writes int32",
    ),
)
