"""DeepSeek-V3, V3-0324, V3.1, R1 and Kimi-K2, in the layouts that MindFormers reads.

`classic`: MindFormers 1.5 and 1.6's training (research/deepseek3). `infer`: their inference. `mcore`: training with the
graph network of MindFormers 1.7 and later. Names, layouts and what is float32 of these are from MindFormers' own
converters; where those are wrong (shared experts above one, MTP's duplicated embedding), the model's own shapes decide.

`pynative`: the network of MindFormers 2.x that is not a graph. `graph_concat`: the graph with `mla_qkv_concat`. Neither
has a converter: names and shapes are those of the networks, and pynative's values are proven by a forward pass.
"""

from __future__ import annotations

from ..errors import UsageError
from ..rules.family import Config, Family, Option, Options
from ..rules.statements import Drop, Rule, Side, Statement
from ..rules.transforms import Identity
from ..text import setting
from .parts import deepseek_mcore as mcore
from .parts import latent_attention as latent
from .parts.decoder import INTERLEAVE_MLP, LAYER, decoder_ends, layer_norms, rotary_buffers
from .parts.experts import FUSED_EXPERTS, GATE_THEN_UP, SWAPPED, WRITTEN
from .parts.latent_attention import MOE, MTP

#: A layer beyond those that the config says, if MTP layers are dropped, is `extra`.
RANGES = {**latent.RANGES, "extra": ""}

_MS = (Side.MS,)
_MCORE = {"mcore": mcore.GRAPH, "graph_concat": mcore.GRAPH_CONCAT, "pynative": mcore.PYNATIVE}


def rules(config: Config, options: Options) -> list[Statement]:
    """Map the model in the chosen layout, with or without its MTP layers.

    Raises:
        UsageError: use_gmm with another layout than classic, or interleave_mlp=false with one that has no such choice.
    """
    layout, gmm, by_turns = str(options["layout"]), bool(options["use_gmm"]), bool(options["interleave_mlp"])
    _check(layout, gmm, by_turns)
    # If the config does not say how many MTP layers there are, their names do.
    kept = bool(options["mtp"]) and config.get("num_nextn_predict_layers") != 0
    if layout in _MCORE:
        table = mcore.rules(config, _MCORE[layout], kept, by_turns)
    else:
        table = _infer(config, kept) if layout == "infer" else _classic(config, gmm, kept)
    rotary = rotary_buffers(*(layer + "self_attn." for layer in (LAYER, MTP)))
    return [*table, rotary, *([] if kept else no_mtp(config))]


def _check(layout: str, gmm: bool, by_turns: bool) -> None:
    if gmm and layout != "classic":
        raise UsageError(
            f"use_gmm goes only with layout=classic, not with layout={layout}", f"omit {setting('options.use_gmm')}"
        )
    if not by_turns and layout not in ("mcore", "graph_concat"):
        why = "their rows always alternate" if layout == "pynative" else "gate and up are separate"
        raise UsageError(
            f"interleave_mlp=false goes only with layout=mcore and layout=graph_concat; in layout={layout} {why}",
            f"omit {setting('options.interleave_mlp')}",
        )


def no_mtp(config: Config) -> list[Statement]:
    """Return what drops the MTP layers of either side."""
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
        *latent.mtp_copies(),
    ]
    return [*before, *main, *after, *(further if mtp else [])]


def _classic_bmm(layer: str) -> list[Statement]:
    router = layer + "feed_forward.routed_experts.router."
    return [
        Rule(layer + "mlp.gate.weight", router + "dense.weight", "experts, hidden", fp32=_MS),
        latent.router_bias(layer, router + "router.topk_bias"),
        *latent.stacked_experts(layer, Identity()),
    ]


def _classic_gmm(layer: str) -> list[Statement]:
    hf, ms = layer + "mlp.experts.{expert}.", layer + "feed_forward.routed_experts."
    pair = hf + "gate_proj.weight", hf + "up_proj.weight"
    return [
        # MindFormers keeps this router in the dtype asked; its name misses the pattern that makes the other float32.
        Rule(layer + "mlp.gate.weight", ms + "router_dense.weight", "experts, hidden"),
        latent.router_bias(layer, ms + "topk_bias"),
        Rule(pair, ms + "ffn.w1", "expert_ffn, hidden", GATE_THEN_UP >> SWAPPED),
        Rule(hf + "down_proj.weight", ms + "ffn.w2", "hidden, expert_ffn", SWAPPED),
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
        latent.router_bias(layer, router + "e_score_correction_bias"),
        *latent.stacked_experts(layer, SWAPPED),
        *latent.shared_experts(layer),
    ]


FAMILY = Family(
    name="deepseek3",
    title="DeepSeek-V3, V3-0324, V3.1, R1, Kimi-K2: FP8 or BF16",
    repositories=(
        "deepseek-ai/DeepSeek-V3{,-Base,-0324}",
        "deepseek-ai/DeepSeek-V3.1{,-Base,-Terminus}",
        "deepseek-ai/DeepSeek-R1{,-Zero,-0528}",
        "moonshotai/Kimi-K2-{Base,Instruct}",
    ),
    model_types=("deepseek_v3", "kimi_k2"),
    architectures=("DeepseekV3ForCausalLM",),
    sizes=latent.SIZES,
    ranges=RANGES,
    options=(
        Option(
            "layout",
            ("classic", "infer", "mcore", "pynative", "graph_concat"),
            "training with MindFormers 1.5 and 1.6, their inference, training with the graph of 1.7 and later, "
            "with PyNative of 2.x, or with a graph that has mla_qkv_concat",
        ),
        Option("use_gmm", (False, True), "layout=classic: experts for the grouped matrix product, gate and up fused"),
        latent.KEEP_MTP,
        INTERLEAVE_MLP,
        WRITTEN,
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
        "layouts pynative and graph_concat exist; MindFormers has no converter for them",
    ),
)
