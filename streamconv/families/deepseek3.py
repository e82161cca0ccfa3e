"""DeepSeek-V3, V3-0324 and R1, in the three layouts that MindFormers reads.

`classic`: MindFormers 1.5 and 1.6's training (research/deepseek3). `infer`: their inference. `mcore`: MindFormers 1.7
and later, 2.x too. Names, layouts and what is float32 are from MindFormers' own converters; where those are wrong
(shared experts above one, MTP's duplicated embedding), the model's own shapes decide.
"""

from __future__ import annotations

from ..errors import UsageError
from ..rules.family import Config, Family, Option, Options
from ..rules.interleaving import Interleave
from ..rules.statements import Copy, Drop, Rule, Side, Statement
from ..rules.transforms import Flatten, Identity, Transpose
from ..text import setting
from .parts import latent_attention as latent
from .parts.decoder import (
    INTERLEAVE_MLP,
    LAYER,
    decoder_ends,
    gate_and_up,
    head,
    layer_norms,
    rotary_buffers,
)
from .parts.experts import FUSED_EXPERTS
from .parts.latent_attention import BOTH, DENSE, MOE, MTP

_MS = (Side.MS,)
_SWAPPED = Transpose((0, 2, 1))
_GATE_THEN_UP = Interleave(("1", "1"), "1", axis=1)
_GATE_UP, _DOWN = "expert_ffn, hidden", "hidden, expert_ffn"


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the model in the chosen layout, with or without its MTP layers.

    Raises:
        UsageError: use_gmm with another layout than classic, or interleave_mlp=false with another than mcore.
    """
    layout, gmm, by_turns = options["layout"], bool(options["use_gmm"]), bool(options["interleave_mlp"])
    if gmm and layout != "classic":
        raise UsageError(
            f"use_gmm goes only with layout=classic, not with layout={layout}", f"omit {setting('options.use_gmm')}"
        )
    if not by_turns and layout != "mcore":
        raise UsageError(
            f"interleave_mlp=false goes only with layout=mcore; in layout={layout} gate and up are separate",
            f"omit {setting('options.interleave_mlp')}",
        )
    # If the config does not say how many MTP layers there are, their names do.
    kept = bool(options["mtp"]) and config.get("num_nextn_predict_layers") != 0
    table = {
        "classic": _classic(config, gmm, kept),
        "infer": _infer(config, kept),
        "mcore": _mcore(config, kept, by_turns),
    }
    rotary = rotary_buffers(*(layer + "self_attn." for layer in (LAYER, MTP)))
    return [*table[str(layout)], rotary, *([] if kept else _no_mtp(config))]


def _no_mtp(config: Config) -> list[Statement]:
    none = config.get("num_nextn_predict_layers") == 0
    why = "num_nextn_predict_layers of config.json is 0" if none else "mtp=false: layers that predict further tokens"
    layers = "model.layers.{extra+layers}.{rest:*}"
    signs = "model.layers.{extra+layers}.eh_proj.weight", "model.mtp_hidden_fusers.{extra}.dense.weight"
    return [
        Drop(why, hf=(layers,), ms=(layers,), only_with=signs),
        Drop(why, ms=("model.mtp_hidden_fusers.{rest:*}", "model.mtp_norms.{rest:*}", "mtp.{rest:*}")),
    ]


# -- classic: MindFormers 1.5 and 1.6 ----------------------------------------------------------------------------------


def _classic(config: Config, gmm: bool, mtp: bool) -> list[Statement]:
    before, after = decoder_ends(config, _MS)
    experts = _classic_gmm if gmm else _classic_bmm
    main = [
        *latent.latent_attention(LAYER, config, latent.SPLIT, _MS),
        *layer_norms(fp32=_MS),
        *latent.dense_layers(),
        *experts(MOE),
        *latent.shared_experts(MOE),
    ]
    further = [
        *latent.latent_attention(MTP, config, latent.SPLIT, _MS),
        *layer_norms(MTP, _MS),
        *experts(MTP),
        *latent.shared_experts(MTP),
        *_classic_fusers(),
        *_copies(),
    ]
    return [*before, *main, *after, *(further if mtp else [])]


def _classic_bmm(layer: str) -> list[Statement]:
    router = layer + "feed_forward.routed_experts.router."
    return [
        Rule(layer + "mlp.gate.weight", router + "dense.weight", "experts, hidden", fp32=_MS),
        _bias(layer, router + "router.topk_bias"),
        *latent.stacked_experts(layer, Identity()),
    ]


def _classic_gmm(layer: str) -> list[Statement]:
    hf, ms = layer + "mlp.experts.{expert}.", layer + "feed_forward.routed_experts."
    pair = hf + "gate_proj.weight", hf + "up_proj.weight"
    return [
        # MindFormers keeps this router in the dtype asked; its name misses the pattern that makes the other float32.
        Rule(layer + "mlp.gate.weight", ms + "router_dense.weight", "experts, hidden"),
        _bias(layer, ms + "topk_bias"),
        Rule(pair, ms + "ffn.w1", _GATE_UP, _GATE_THEN_UP >> _SWAPPED),
        Rule(hf + "down_proj.weight", ms + "ffn.w2", _DOWN, _SWAPPED),
    ]


def _classic_fusers() -> list[Statement]:
    fuser = "model.mtp_hidden_fusers.{mtp}."
    return [
        Rule(MTP + "enorm.weight", fuser + "norm_emb.weight", "hidden", fp32=_MS),
        Rule(MTP + "hnorm.weight", fuser + "norm.weight", "hidden", fp32=_MS),
        Rule(MTP + "eh_proj.weight", fuser + "dense.weight", "hidden, 2*hidden"),
        Rule(MTP + "shared_head.norm.weight", "model.mtp_norms.{mtp}.weight", "hidden", fp32=_MS),
    ]


# -- infer: the same versions' inference -------------------------------------------------------------------------------


def _infer(config: Config, mtp: bool) -> list[Statement]:
    before, after = decoder_ends(config)
    main = [
        *latent.latent_attention(LAYER, config, latent.REORDERED, ()),
        *layer_norms(),
        *latent.dense_layers(),
        *_infer_experts(MOE),
    ]
    further = [
        *latent.latent_attention(MTP, config, latent.REORDERED, ()),
        *layer_norms(MTP),
        *_infer_experts(MTP),
        Rule(MTP + "embed_tokens.weight", MTP + "tok_embeddings.weight", "vocab, hidden"),
        *(Rule(MTP + name, MTP + name, shape) for name, shape in _FURTHER),
    ]
    return [*before, *main, *after, *(further if mtp else [])]


_FURTHER = (
    ("enorm.weight", "hidden"),
    ("hnorm.weight", "hidden"),
    ("eh_proj.weight", "hidden, 2*hidden"),
    ("shared_head.norm.weight", "hidden"),
    ("shared_head.head.weight", "vocab, hidden"),
)


def _infer_experts(layer: str) -> list[Statement]:
    router = layer + "feed_forward.routed_experts.router."
    return [
        Rule(layer + "mlp.gate.weight", router + "dense.weight", "experts, hidden"),
        _bias(layer, router + "e_score_correction_bias"),
        *latent.stacked_experts(layer, _SWAPPED),
        *latent.shared_experts(layer),
    ]


# -- mcore: MindFormers 1.7 and later ----------------------------------------------------------------------------------


def _mcore(config: Config, mtp: bool, by_turns: bool) -> list[Statement]:
    layer, mtp_layer = "decoder.layers.{layer}.", "mtp.layers.{mtp}."
    embedding, gate_up = "model.embed_tokens.weight", gate_and_up(by_turns)
    further = [
        *_mcore_layer(MTP, mtp_layer + "transformer_layer.", config),
        *_mcore_experts(MTP, mtp_layer + "transformer_layer.", gate_up),
        Rule(MTP + "enorm.weight", mtp_layer + "enorm.weight", "hidden"),
        Rule(MTP + "hnorm.weight", mtp_layer + "hnorm.weight", "hidden"),
        Rule(MTP + "eh_proj.weight", mtp_layer + "eh_proj.weight", "hidden, 2*hidden"),
        Rule(MTP + "shared_head.norm.weight", mtp_layer + "final_layernorm.weight", "hidden"),
        *_copies(),
        Drop("MindFormers' second copy of the output layer", ms=("mtp.output_layer.weight",)),
    ]
    return [
        Rule(embedding, "embedding.word_embeddings.weight", "vocab, hidden"),
        *_mcore_layer(LAYER, layer, config),
        *_mcore_mlp(DENSE + "mlp.", "decoder.layers.{dense}.mlp.", "ffn", gate_up),
        *_mcore_experts(MOE, "decoder.layers.{moe}.", gate_up),
        Rule("model.norm.weight", "decoder.final_layernorm.weight", "hidden"),
        head(config, "lm_head.weight", "output_layer.weight", embedding),
        *(further if mtp else []),
    ]


def _mcore_layer(hf: str, ms: str, config: Config) -> list[Statement]:
    """Return the rules of norms and attention; no rotary row moves."""
    table = [
        ("input_layernorm", "input_layernorm", "hidden"),
        ("post_attention_layernorm", "pre_mlp_layernorm", "hidden"),
        ("self_attn.o_proj", "self_attention.linear_proj", "hidden, heads*value"),
        ("self_attn.kv_a_proj_with_mqa", "self_attention.linear_kv_down_proj", "kv_rank+rope, hidden"),
        ("self_attn.kv_a_layernorm", "self_attention.kv_layernorm", "kv_rank"),
        ("self_attn.kv_b_proj", "self_attention.linear_kv_up_proj", "heads*(nope+value), kv_rank"),
    ]
    if latent.has_q_lora(config):
        table += [
            ("self_attn.q_a_proj", "self_attention.linear_q_down_proj", "q_rank, hidden"),
            ("self_attn.q_a_layernorm", "self_attention.q_layernorm", "q_rank"),
            ("self_attn.q_b_proj", "self_attention.linear_q_up_proj", "heads*(nope+rope), q_rank"),
        ]
    else:
        table += [("self_attn.q_proj", "self_attention.linear_q_proj", "heads*(nope+rope), hidden")]
    return [Rule(f"{hf}{name}.weight", f"{ms}{theirs}.weight", shape) for name, theirs, shape in table]


def _mcore_mlp(hf: str, ms: str, ffn: str, gate_up: Interleave) -> list[Statement]:
    pair = hf + "gate_proj.weight", hf + "up_proj.weight"
    return [
        Rule(pair, ms + "linear_fc1.weight", f"{ffn}, hidden", gate_up),
        Rule(hf + "down_proj.weight", ms + "linear_fc2.weight", f"hidden, {ffn}"),
    ]


def _mcore_experts(hf: str, ms: str, gate_up: Interleave) -> list[Statement]:
    experts = hf + "mlp.experts.{expert}."
    pair = experts + "gate_proj.weight", experts + "up_proj.weight"
    flat = _SWAPPED >> Flatten(0, "experts")
    return [
        Rule(hf + "mlp.gate.weight", ms + "mlp.router.weight", "experts, hidden"),
        _bias(hf, ms + "mlp.router.expert_bias"),
        *_mcore_mlp(hf + "mlp.shared_experts.", ms + "mlp.shared_experts.", "shared*expert_ffn", gate_up),
        Rule(pair, ms + "mlp.experts.weight1", _GATE_UP, _GATE_THEN_UP >> flat),
        Rule(experts + "down_proj.weight", ms + "mlp.experts.weight2", _DOWN, flat),
    ]


# -- all ---------------------------------------------------------------------------------------------------------------


def _bias(layer: str, ms: str) -> Statement:
    return Rule(layer + "mlp.gate.e_score_correction_bias", ms, "experts", fp32=BOTH)


def _copies() -> list[Statement]:
    why = "MindFormers' MTP layers share the main model's"
    return [
        Copy(MTP + "embed_tokens.weight", "model.embed_tokens.weight", why),
        Copy(MTP + "shared_head.head.weight", "lm_head.weight", why),
    ]


FAMILY = Family(
    name="deepseek3",
    title="DeepSeek-V3, V3-0324, R1, Kimi-K2: FP8 or BF16",
    repositories=(
        "deepseek-ai/DeepSeek-V3{,-Base,-0324}",
        "deepseek-ai/DeepSeek-R1{,-Zero,-0528}",
        "moonshotai/Kimi-K2-{Base,Instruct}",
    ),
    model_types=("deepseek_v3", "kimi_k2"),
    architectures=("DeepseekV3ForCausalLM",),
    sizes=latent.SIZES,
    ranges={**latent.RANGES, "extra": ""},
    options=(
        Option(
            "layout",
            ("classic", "infer", "mcore"),
            "training with MindFormers 1.5 and 1.6, their inference, or MindFormers 1.7 and later",
        ),
        Option("use_gmm", (False, True), "layout=classic: experts for the grouped matrix product, gate and up fused"),
        Option(
            "mtp",
            (True, False),
            "keep the layers for multi-token prediction (as many as config.json says), or drop them",
            is_preference=True,
            config_updates={False: {"num_nextn_predict_layers": 0}},
        ),
        INTERLEAVE_MLP,
    ),
    fused=FUSED_EXPERTS,
    rules=rules,
    example={"q_lora_rank": 1536, "num_nextn_predict_layers": 1},
    differs_from_mindformers=(
        "models without q_lora_rank convert; MindFormers fails",
        "e_score_correction_bias stays float32 in reverse",
        "layout=infer takes FP8, and any number of dense layers; MindFormers takes BF16 and three",
        "layout=mcore stores the embedding once and never mtp.output_layer; MindFormers also writes MTP's copies",
        "layout=mcore fuses several shared experts in their true shape; MindFormers reshapes them wrongly",
    ),
)
