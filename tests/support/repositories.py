"""One published model per family: its config as far as it matters, and every tensor of its repository with its shape.

Written down from the models themselves, not from the families' tables: names are patterns in which `{0-31}` stands for
each number, and shapes are plain numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Repository:
    """A published model: config.json, tensors, and options that the user gives."""

    config: dict[str, Any]
    tensors: Shapes
    options: dict[str, Any] = field(default_factory=dict)


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for."""
    match = re.search(r"\{(\d+)-(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from expand(pattern[: match.start()] + str(number) + pattern[match.end() :])


def both(name: str, rows: int, *columns: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def decoder(
    layers: int, hidden: int, ffn: int, q: int, kv: int, vocab: int, biased: tuple[str, ...] = (), tied: bool = False
) -> Shapes:
    """A Llama-like decoder; `q` and `kv` are rows, `biased` the projections of attention with a bias."""
    at = f"model.layers.{{0-{layers - 1}}}."
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        at + "self_attn.q_proj.weight": (q, hidden),
        at + "self_attn.k_proj.weight": (kv, hidden),
        at + "self_attn.v_proj.weight": (kv, hidden),
        at + "self_attn.o_proj.weight": (hidden, q),
        at + "input_layernorm.weight": (hidden,),
        at + "post_attention_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
    }
    rows = {"q": q, "k": kv, "v": kv, "o": hidden}
    shapes |= {at + f"self_attn.{p}_proj.bias": (rows[p],) for p in biased}
    if ffn:
        shapes |= gated(at + "mlp.", hidden, ffn)
    return shapes if tied else {**shapes, "lm_head.weight": (vocab, hidden)}


def gated(
    at: str, hidden: int, ffn: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Shapes:
    """A gated feed-forward network."""
    gate, up, down = (f"{at}{name}.weight" for name in names)
    return {gate: (ffn, hidden), up: (ffn, hidden), down: (hidden, ffn)}


def said(
    model_type: str, layers: int, hidden: int, ffn: int, heads: int, kv: int, vocab: int, **more: Any
) -> dict[str, Any]:
    """A config under the usual keys."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        **more,
    }


def chatglm(vocab: int, layers: int, ffn: int) -> Repository:
    at = f"transformer.encoder.layers.{{0-{layers - 1}}}."
    config = {
        "model_type": "chatglm",
        "num_layers": layers,
        "hidden_size": 4096,
        "ffn_hidden_size": ffn,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "padded_vocab_size": vocab,
    }
    tensors = {
        "transformer.embedding.word_embeddings.weight": (vocab, 4096),
        "transformer.rotary_pos_emb.inv_freq": (32,),
        at + "input_layernorm.weight": (4096,),
        **both(at + "self_attention.query_key_value", 4608, 4096),
        at + "self_attention.dense.weight": (4096, 4096),
        at + "post_attention_layernorm.weight": (4096,),
        at + "mlp.dense_h_to_4h.weight": (2 * ffn, 4096),
        at + "mlp.dense_4h_to_h.weight": (4096, ffn),
        "transformer.encoder.final_layernorm.weight": (4096,),
        "transformer.output_layer.weight": (vocab, 4096),
    }
    return Repository(config, tensors)


def qwen_layers(layers: int, hidden: int, ffn: int) -> Shapes:
    at = f"transformer.h.{{0-{layers - 1}}}."
    return {
        at + "ln_1.weight": (hidden,),
        **both(at + "attn.c_attn", 3 * hidden, hidden),
        at + "attn.c_proj.weight": (hidden, hidden),
        at + "ln_2.weight": (hidden,),
        **gated(at + "mlp.", hidden, ffn, ("w1", "w2", "c_proj")),
    }


def qwen_ends(vocab: int, hidden: int) -> Shapes:
    return {
        "transformer.wte.weight": (vocab, hidden),
        "transformer.ln_f.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }


def gpt2(layers: int, hidden: int, vocab: int, positions: int) -> Shapes:
    at = f"h.{{0-{layers - 1}}}."
    return {
        "wte.weight": (vocab, hidden),
        "wpe.weight": (positions, hidden),
        **both(at + "ln_1", hidden),
        at + "attn.bias": (1, 1, positions, positions),
        at + "attn.c_attn.weight": (hidden, 3 * hidden),
        at + "attn.c_attn.bias": (3 * hidden,),
        **both(at + "attn.c_proj", hidden, hidden),
        **both(at + "ln_2", hidden),
        at + "mlp.c_fc.weight": (hidden, 4 * hidden),
        at + "mlp.c_fc.bias": (4 * hidden,),
        at + "mlp.c_proj.weight": (4 * hidden, hidden),
        at + "mlp.c_proj.bias": (hidden,),
        **both("ln_f", hidden),
    }


def bloom(layers: int, hidden: int, vocab: int) -> Shapes:
    at = f"h.{{0-{layers - 1}}}."
    return {
        "word_embeddings.weight": (vocab, hidden),
        **both("word_embeddings_layernorm", hidden),
        **both(at + "input_layernorm", hidden),
        **both(at + "self_attention.query_key_value", 3 * hidden, hidden),
        **both(at + "self_attention.dense", hidden, hidden),
        **both(at + "post_attention_layernorm", hidden),
        **both(at + "mlp.dense_h_to_4h", 4 * hidden, hidden),
        **both(at + "mlp.dense_4h_to_h", hidden, 4 * hidden),
        **both("ln_f", hidden),
    }


def starcoder(layers: int, hidden: int, head: int, ffn: int, vocab: int, positions: int) -> Shapes:
    at = f"transformer.h.{{0-{layers - 1}}}."
    return {
        "transformer.wte.weight": (vocab, hidden),
        "transformer.wpe.weight": (positions, hidden),
        **both(at + "ln_1", hidden),
        **both(at + "attn.c_attn", hidden + 2 * head, hidden),
        **both(at + "attn.c_proj", hidden, hidden),
        **both(at + "ln_2", hidden),
        **both(at + "mlp.c_fc", ffn, hidden),
        **both(at + "mlp.c_proj", hidden, ffn),
        **both("transformer.ln_f", hidden),
        "lm_head.weight": (vocab, hidden),
    }


def telechat(layers: int, hidden: int, ffn: int, vocab: int, prefix: str, keys: int, head: bool) -> Shapes:
    at = f"{prefix}h.{{0-{layers - 1}}}."
    shapes = {
        f"{prefix}word_embeddings.weight": (vocab, hidden),
        at + "input_layernorm.weight": (hidden,),
        at + "self_attention.query.weight": (hidden, hidden),
        at + "self_attention.key_value.weight": (keys, hidden),
        **both(at + "self_attention.dense", hidden, hidden),
        at + "post_attention_layernorm.weight": (hidden,),
        at + "mlp.gate_proj.weight": (ffn, hidden),
        at + "mlp.up_proj.weight": (ffn, hidden),
        **both(at + "mlp.down_proj", hidden, ffn),
        f"{prefix}ln_f.weight": (hidden,),
    }
    return {**shapes, "lm_head.weight": (vocab, hidden)} if head else shapes


def whisper_stack(at: str, hidden: int, ffn: int, attentions: tuple[str, ...]) -> Shapes:
    shapes: Shapes = {}
    for attention in attentions:
        for name in ("q", "v", "out"):
            shapes |= both(f"{at}{attention}.{name}_proj", hidden, hidden)
        shapes[f"{at}{attention}.k_proj.weight"] = (hidden, hidden)
        shapes |= both(f"{at}{attention}_layer_norm", hidden)
    return {
        **shapes,
        **both(at + "fc1", ffn, hidden),
        **both(at + "fc2", hidden, ffn),
        **both(at + "final_layer_norm", hidden),
    }


def whisper(layers: int, hidden: int, vocab: int, mels: int) -> Shapes:
    ffn = 4 * hidden
    return {
        **both("model.encoder.conv1", hidden, mels, 3),
        **both("model.encoder.conv2", hidden, hidden, 3),
        "model.encoder.embed_positions.weight": (1500, hidden),
        **whisper_stack(f"model.encoder.layers.{{0-{layers - 1}}}.", hidden, ffn, ("self_attn",)),
        **both("model.encoder.layer_norm", hidden),
        "model.decoder.embed_tokens.weight": (vocab, hidden),
        "model.decoder.embed_positions.weight": (448, hidden),
        **whisper_stack(f"model.decoder.layers.{{0-{layers - 1}}}.", hidden, ffn, ("self_attn", "encoder_attn")),
        **both("model.decoder.layer_norm", hidden),
    }


def vit_block(at: str, hidden: int, qkv_bias: bool = True) -> Shapes:
    return {
        **both(at + "norm1", hidden),
        at + "attn.qkv.weight": (3 * hidden, hidden),
        **({at + "attn.qkv.bias": (3 * hidden,)} if qkv_bias else {}),
        **both(at + "attn.proj", hidden, hidden),
        **both(at + "norm2", hidden),
    }


def mlp(at: str, hidden: int, ffn: int) -> Shapes:
    return {**both(at + "mlp.fc1", ffn, hidden), **both(at + "mlp.fc2", hidden, ffn)}


def vit(layers: int, hidden: int, tokens: int, patch: int) -> Shapes:
    at = f"blocks.{{0-{layers - 1}}}."
    return {
        "cls_token": (1, 1, hidden),
        "pos_embed": (1, tokens, hidden),
        **both("patch_embed.proj", hidden, 3, patch, patch),
        **vit_block(at, hidden),
        **mlp(at, hidden, 4 * hidden),
    }


def swin(width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, size: int) -> Shapes:
    area = window * window
    shapes = {**both("patch_embed.proj", width, 3, 4, 4), **both("patch_embed.norm", width)}
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        hidden, side = width << stage, size // 4 >> stage
        at = f"layers.{stage}.blocks.{{0-{depth - 1}}}."
        shapes |= vit_block(at, hidden) | mlp(at, hidden, 4 * hidden)
        shapes[at + "attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, count)
        shapes[at + "attn.relative_position_index"] = (area, area)
        if side > window:  # shifted windows need a mask
            masks = {
                f"layers.{stage}.blocks.{i}.attn_mask": ((side // window) ** 2, area, area) for i in range(1, depth, 2)
            }
            shapes |= masks
        if stage < len(depths) - 1:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * hidden, 4 * hidden)
            shapes |= both(f"layers.{stage}.downsample.norm", 4 * hidden)
    last = width << len(depths) - 1
    return {**shapes, **both("norm", last), **both("head", 1000, last)}


def qformer(layers: int, hidden: int, seen: int, ffn: int, vocab: int) -> Shapes:
    def attention(at: str, keys: int) -> Shapes:
        return {
            **both(at + "self.query", hidden, hidden),
            **both(at + "self.key", hidden, keys),
            **both(at + "self.value", hidden, keys),
            **both(at + "output.dense", hidden, hidden),
            **both(at + "output.LayerNorm", hidden),
        }

    at, top = f"Qformer.bert.encoder.layer.{{0-{layers - 1}}}.", "Qformer.cls.predictions."
    shapes = {
        "Qformer.bert.embeddings.position_ids": (1, 512),
        "Qformer.bert.embeddings.word_embeddings.weight": (vocab, hidden),
        "Qformer.bert.embeddings.position_embeddings.weight": (512, hidden),
        **both("Qformer.bert.embeddings.LayerNorm", hidden),
        **attention(at + "attention.", hidden),
        **both(top + "transform.dense", hidden, hidden),
        **both(top + "transform.LayerNorm", hidden),
        top + "bias": (vocab,),
        **both(top + "decoder", vocab, hidden),
    }
    for i in range(0, layers, 2):
        shapes |= attention(f"Qformer.bert.encoder.layer.{i}.crossattention.", seen)
    for kind in ("", "_query"):
        shapes |= both(f"{at}intermediate{kind}.dense", ffn, hidden)
        shapes |= both(f"{at}output{kind}.dense", hidden, ffn)
        shapes |= both(f"{at}output{kind}.LayerNorm", hidden)
    return shapes


def blip2() -> Shapes:
    eye = {f"visual_encoder.{name}": shape for name, shape in vit(39, 1408, 257, 14).items() if "mlp" not in name}
    at = "visual_encoder.blocks.{0-38}."
    del eye[at + "attn.qkv.bias"]
    return {
        "query_tokens": (1, 32, 768),
        **eye,
        at + "attn.q_bias": (1408,),
        at + "attn.v_bias": (1408,),
        **mlp(at, 1408, 6144),
        **both("ln_vision", 1408),
        **qformer(12, 768, 1408, 3072, 30523),
        **both("vision_proj", 256, 768),
        **both("text_proj", 256, 768),
        **both("itm_head", 2, 768),
        "temp": (),
    }


def clip(at: str, layers: int, hidden: int, ffn: int, positions: int, patch: int) -> Shapes:
    layer = f"{at}encoder.layers.{{0-{layers - 1}}}."
    shapes = {
        at + "embeddings.class_embedding": (hidden,),
        at + "embeddings.patch_embedding.weight": (hidden, 3, patch, patch),
        at + "embeddings.position_embedding.weight": (positions, hidden),
        **both(at + "pre_layrnorm", hidden),
        **both(at + "post_layernorm", hidden),
    }
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
        shapes |= both(layer + name, hidden, hidden)
    for name in ("layer_norm1", "layer_norm2"):
        shapes |= both(layer + name, hidden)
    return {**shapes, **both(layer + "mlp.fc1", ffn, hidden), **both(layer + "mlp.fc2", hidden, ffn)}


def llava() -> Shapes:
    language = decoder(32, 4096, 11008, 4096, 4096, 32064)
    return {
        **{f"language_model.{name}": shape for name, shape in language.items()},
        **clip("vision_tower.vision_model.", 24, 1024, 4096, 577, 14),
        **both("multi_modal_projector.linear_1", 4096, 1024),
        **both("multi_modal_projector.linear_2", 4096, 4096),
    }


def internvl2() -> Repository:
    """The 40B: InternViT-6B and a Yi-34B."""
    eye, block = "vision_model.embeddings.", "vision_model.encoder.layers.{0-44}."
    vectors = ("norm1.weight", "norm2.weight", "attn.q_norm.weight", "attn.k_norm.weight", "ls1", "ls2")
    config = {"model_type": "internvl_chat", "llm_config": said("llama", 60, 7168, 20480, 56, 8, 64007)}
    config["vision_config"] = {"hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45}
    tensors = {
        eye + "class_embedding": (1, 1, 3200),
        eye + "position_embedding": (1, 1025, 3200),
        **both(eye + "patch_embedding", 3200, 3, 14, 14),
        **{block + name: (3200,) for name in vectors},
        block + "attn.qkv.weight": (9600, 3200),
        **both(block + "attn.proj", 3200, 3200),
        **mlp(block, 3200, 12800),
        **both("mlp1.0", 12800),
        **both("mlp1.1", 7168, 12800),
        **both("mlp1.3", 7168, 7168),
        **{f"language_model.{n}": s for n, s in decoder(60, 7168, 20480, 7168, 1024, 64007).items()},
    }
    return Repository(config, tensors)


def mllama_block(at: str) -> Shapes:
    return {
        **both(at + "input_layernorm", 1280),
        **both(at + "post_attention_layernorm", 1280),
        **{f"{at}self_attn.{name}_proj.weight": (1280, 1280) for name in "qkvo"},
        **both(at + "mlp.fc1", 5120, 1280),
        **both(at + "mlp.fc2", 1280, 5120),
    }


def mllama() -> Repository:
    """The 11B: every fifth layer attends to the image."""
    crossing, eye, text = list(range(3, 40, 5)), "vision_model.", "language_model.model."
    config: dict[str, Any] = {"model_type": "mllama", "text_config": said("", 40, 4096, 14336, 32, 8, 128256)}
    config["text_config"]["cross_attention_layers"] = crossing
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8}
    config["vision_config"] = {**vision, "max_num_tiles": 4, "vision_output_dim": 7680, "patch_size": 14}
    tensors = {
        eye + "class_embedding": (1280,),
        eye + "patch_embedding.weight": (1280, 3, 14, 14),
        eye + "gated_positional_embedding.embedding": (1601, 1280),
        eye + "gated_positional_embedding.gate": (1,),
        eye + "gated_positional_embedding.tile_embedding.weight": (9, 8197120),
        **both(eye + "layernorm_pre", 1280),
        **both(eye + "layernorm_post", 1280),
        **mllama_block(eye + "transformer.layers.{0-31}."),
        **mllama_block(eye + "global_transformer.layers.{0-7}."),
        eye + "global_transformer.layers.{0-7}.gate_attn": (1,),
        eye + "global_transformer.layers.{0-7}.gate_ffn": (1,),
        **both("multi_modal_projector", 4096, 7680),
        text + "embed_tokens.weight": (128264, 4096),
        text + "norm.weight": (4096,),
        "language_model.lm_head.weight": (128256, 4096),
        **gated(text + "layers.{0-39}.mlp.", 4096, 14336),
        text + "layers.{0-39}.input_layernorm.weight": (4096,),
        text + "layers.{0-39}.post_attention_layernorm.weight": (4096,),
    }
    for when in ("pre", "post"):
        tensors[f"{eye}{when}_tile_positional_embedding.embedding.weight"] = (9, 5120)
        tensors[f"{eye}{when}_tile_positional_embedding.gate"] = (1,)
    for layer in range(40):
        at = f"{text}layers.{layer}." + ("cross_attn." if layer in crossing else "self_attn.")
        tensors |= {f"{at}{name}_proj.weight": (1024 if name in "kv" else 4096, 4096) for name in "qkvo"}
    for layer in crossing:
        tensors |= {f"{text}layers.{layer}.cross_attn.{name}_norm.weight": (128,) for name in "qk"}
        tensors |= {f"{text}layers.{layer}.cross_attn_{part}_gate": (1,) for part in ("attn", "mlp")}
    return Repository(config, tensors)


def qwenvl() -> Shapes:
    eye, block = "transformer.visual.", "transformer.visual.transformer.resblocks.{0-47}."
    return {
        **qwen_ends(151936, 4096),
        **qwen_layers(32, 4096, 11008),
        eye + "positional_embedding": (256, 1664),
        eye + "proj": (4096, 4096),
        eye + "conv1.weight": (1664, 3, 14, 14),
        **both(eye + "ln_pre", 1664),
        **both(eye + "ln_post", 4096),
        **both(block + "ln_1", 1664),
        **both(block + "ln_2", 1664),
        **both(block + "attn.in_proj", 4992, 1664),
        **both(block + "attn.out_proj", 1664, 1664),
        **both(block + "mlp.c_fc", 8192, 1664),
        **both(block + "mlp.c_proj", 1664, 8192),
        eye + "attn_pool.query": (256, 4096),
        eye + "attn_pool.pos_embed": (256, 4096),
        eye + "attn_pool.kv_proj.weight": (4096, 1664),
        eye + "attn_pool.attn.in_proj_weight": (12288, 4096),
        eye + "attn_pool.attn.in_proj_bias": (12288,),
        **both(eye + "attn_pool.attn.out_proj", 4096, 4096),
        **both(eye + "attn_pool.ln_q", 4096),
        **both(eye + "attn_pool.ln_kv", 4096),
    }


def cogvlm2() -> Shapes:
    at, eye, block = "model.layers.{0-31}.", "model.vision.", "model.vision.transformer.layers.{0-62}."
    shapes = {
        "model.embed_tokens.weight": (128256, 4096),
        at + "self_attn.rotary_emb.inv_freq": (64,),
        at + "self_attn.vision_expert_query_key_value.bias": (6144,),
        at + "input_layernorm.weight": (4096,),
        at + "post_attention_layernorm.weight": (4096,),
        "model.norm.weight": (4096,),
        "lm_head.weight": (128256, 4096),
        eye + "boi": (1, 1, 4096),
        eye + "eoi": (1, 1, 4096),
        eye + "patch_embedding.cls_embedding": (1, 1792),
        eye + "patch_embedding.position_embedding.weight": (9217, 1792),
        **both(eye + "patch_embedding.proj", 1792, 3, 14, 14),
        **both(block + "input_layernorm", 1792),
        **both(block + "post_attention_layernorm", 1792),
        **both(block + "attention.query_key_value", 5376, 1792),
        **both(block + "attention.dense", 1792, 1792),
        **both(block + "mlp.fc1", 15360, 1792),
        **both(block + "mlp.fc2", 1792, 15360),
        **both(eye + "conv", 1792, 1792, 2, 2),
        eye + "linear_proj.linear_proj.weight": (4096, 1792),
        **both(eye + "linear_proj.norm1", 4096),
        eye + "linear_proj.dense_h_to_4h.weight": (14336, 4096),
        eye + "linear_proj.gate_proj.weight": (14336, 4096),
        eye + "linear_proj.dense_4h_to_h.weight": (4096, 14336),
    }
    for expert in ("language", "vision"):
        shapes[f"{at}self_attn.{expert}_expert_query_key_value.weight"] = (6144, 4096)
        shapes[f"{at}self_attn.{expert}_expert_dense.weight"] = (4096, 4096)
        shapes |= gated(f"{at}mlp.{expert}_mlp.", 4096, 14336)
    return shapes


def experts(at: str, router: str, count: int, hidden: int, ffn: int, names: tuple[str, str, str]) -> Shapes:
    """A router and its experts."""
    return {at + router: (count, hidden), **gated(f"{at}experts.{{0-{count - 1}}}.", hidden, ffn, names)}


_HF = ("gate_proj", "up_proj", "down_proj")
_QKV, _QKVO = ("q", "k", "v"), ("q", "k", "v", "o")


def latent(layers: int, dense: int, hidden: int, heads: int, rank: int, q_rank: int | None) -> Shapes:
    """DeepSeek's attention: 128 + 64 columns a head for q, 128 + 128 for k and v."""
    at = f"model.layers.{{0-{layers - 1}}}."
    shapes = {
        at + "self_attn.kv_a_proj_with_mqa.weight": (rank + 64, hidden),
        at + "self_attn.kv_a_layernorm.weight": (rank,),
        at + "self_attn.kv_b_proj.weight": (heads * 256, rank),
        at + "self_attn.o_proj.weight": (hidden, heads * 128),
        at + "input_layernorm.weight": (hidden,),
        at + "post_attention_layernorm.weight": (hidden,),
    }
    if q_rank is None:
        return {**shapes, at + "self_attn.q_proj.weight": (heads * 192, hidden)}
    return {
        **shapes,
        at + "self_attn.q_a_proj.weight": (q_rank, hidden),
        at + "self_attn.q_a_layernorm.weight": (q_rank,),
        at + "self_attn.q_b_proj.weight": (heads * 192, q_rank),
    }


def deepseek_v2_lite() -> Repository:
    moe = "model.layers.{1-26}.mlp."
    config = said("deepseek_v2", 27, 2048, 10944, 16, 16, 102400, moe_intermediate_size=1408, n_routed_experts=64)
    config |= {"kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    config |= {"v_head_dim": 128, "n_shared_experts": 2, "first_k_dense_replace": 1}
    tensors = {
        "model.embed_tokens.weight": (102400, 2048),
        "model.norm.weight": (2048,),
        "lm_head.weight": (102400, 2048),
        **latent(27, 1, 2048, 16, 512, None),
        **gated("model.layers.0.mlp.", 2048, 10944),
        **experts(moe, "gate.weight", 64, 2048, 1408, _HF),
        **gated(moe + "shared_experts.", 2048, 2816),
    }
    return Repository(config, tensors)


def mtp_ends(at: str, hidden: int, vocab: int) -> Shapes:
    """What a layer that predicts a further token has besides a decoder's layer."""
    return {
        at + "embed_tokens.weight": (vocab, hidden),
        at + "shared_head.head.weight": (vocab, hidden),
        at + "shared_head.norm.weight": (hidden,),
        at + "enorm.weight": (hidden,),
        at + "hnorm.weight": (hidden,),
        at + "eh_proj.weight": (hidden, 2 * hidden),
    }


def with_shared_expert(moe: str, count: int, hidden: int, ffn: int) -> Shapes:
    """A router with its bias, experts, and one for all tokens."""
    return {
        **experts(moe, "gate.weight", count, hidden, ffn, _HF),
        moe + "gate.e_score_correction_bias": (count,),
        **gated(moe + "shared_experts.", hidden, ffn),
    }


def deepseek_v3(
    model_type: str, layers: int, dense: int, hidden: int, heads: int, ffn: int, vocab: int, count: int, expert: int
) -> Repository:
    """DeepSeek-V3 or a model of its making: `dense` layers, then some with `count` experts, then one for MTP."""
    config = said(model_type, layers, hidden, ffn, heads, heads, vocab, moe_intermediate_size=expert)
    config |= {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    config |= {"v_head_dim": 128, "n_shared_experts": 1, "first_k_dense_replace": dense, "num_nextn_predict_layers": 1}
    tensors = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
        **latent(layers + 1, dense, hidden, heads, 512, 1536),
        **gated(f"model.layers.{{0-{dense - 1}}}.mlp.", hidden, ffn),
        **with_shared_expert(f"model.layers.{{{dense}-{layers}}}.mlp.", count, hidden, expert),
        **mtp_ends(f"model.layers.{layers}.", hidden, vocab),
    }
    return Repository({**config, "n_routed_experts": count}, tensors)


def deepseek_v32() -> Repository:
    model = deepseek_v3("deepseek_v32", 61, 3, 7168, 128, 18432, 129280, 256, 2048)
    at = "model.layers.{0-61}.self_attn.indexer."
    indexer = {
        at + "wq_b.weight": (8192, 1536),
        at + "wk.weight": (128, 7168),
        at + "weights_proj.weight": (64, 7168),
        **both(at + "k_norm", 128),
    }
    return Repository({**model.config, "index_n_heads": 64, "index_head_dim": 128}, {**model.tensors, **indexer})


def glm4_moe() -> Repository:
    """GLM-4.5-Air: no norms of q and k."""
    config = said("glm4_moe", 46, 4096, 10944, 96, 8, 151552, head_dim=128, moe_intermediate_size=1408)
    config |= {"n_routed_experts": 128, "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": False}
    tensors = {
        **decoder(47, 4096, 0, 12288, 1024, 151552, _QKV),
        **gated("model.layers.0.mlp.", 4096, 10944),
        **with_shared_expert("model.layers.{1-46}.mlp.", 128, 4096, 1408),
        **mtp_ends("model.layers.46.", 4096, 151552),
    }
    return Repository({**config, "num_nextn_predict_layers": 1}, tensors)


def of_layers(layers: Sequence[int], shapes: Shapes) -> Shapes:
    """Tensors of some layers that are no range."""
    return {f"layers.{layer}.{name}": shape for layer in layers for name, shape in shapes.items()}


def compressor(at: str, ratio: int, width: int, normed: int, hidden: int) -> Shapes:
    """What compresses the keys and values of DeepSeek-V4."""
    return {
        at + "ape": (ratio, width),
        at + "wkv.weight": (width, hidden),
        at + "wgate.weight": (width, hidden),
        at + "norm.weight": (normed,),
    }


def deepseek_v4_layer(at: str) -> Shapes:
    shapes: Shapes = {
        at + "attn_norm.weight": (4096,),
        at + "ffn_norm.weight": (4096,),
        at + "attn.wq_a.weight": (1024, 4096),
        at + "attn.q_norm.weight": (1024,),
        at + "attn.wq_b.weight": (64 * 512, 1024),
        at + "attn.wkv.weight": (512, 4096),
        at + "attn.kv_norm.weight": (512,),
        at + "attn.wo_a.weight": (8 * 1024, 64 * 512 // 8),
        at + "attn.wo_b.weight": (4096, 8 * 1024),
        at + "attn.attn_sink": (64,),
        **experts(at + "ffn.", "gate.weight", 256, 4096, 2048, ("w1", "w3", "w2")),
        **gated(at + "ffn.shared_experts.", 4096, 2048, ("w1", "w3", "w2")),
    }
    for part in ("attn", "ffn"):
        shapes |= {f"{at}hc_{part}_base": (24,), f"{at}hc_{part}_fn": (24, 16384), f"{at}hc_{part}_scale": (3,)}
    return shapes


def deepseek_v4() -> Repository:
    """The sizes that transformers takes for Flash where its config is silent."""
    ratios = [0, 0, *(4, 128) * 20, 4, 0]
    config = {"model_type": "deepseek_v4", "num_hidden_layers": 43, "hidden_size": 4096, "vocab_size": 129280}
    config |= {"num_attention_heads": 64, "head_dim": 512, "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024}
    config |= {"n_routed_experts": 256, "n_shared_experts": 1, "moe_intermediate_size": 2048, "hc_mult": 4}
    config |= {"index_n_heads": 64, "index_head_dim": 128, "num_experts_per_tok": 6, "num_nextn_predict_layers": 1}
    config |= {"num_hash_layers": 3, "compress_ratios": ratios, "tie_word_embeddings": False}
    indexed, wide = ([layer for layer in range(43) if ratios[layer] == ratio] for ratio in (4, 128))
    indexer = {
        "attn.indexer.wq_b.weight": (64 * 128, 1024),
        "attn.indexer.weights_proj.weight": (64, 4096),
        **compressor("attn.indexer.compressor.", 4, 256, 128, 4096),
    }
    head = {"hc_head_base": (4,), "hc_head_fn": (4, 16384), "hc_head_scale": (1,)}
    tensors = {
        "embed.weight": (129280, 4096),
        "norm.weight": (4096,),
        "head.weight": (129280, 4096),
        **head,
        **of_layers(indexed, {**compressor("attn.compressor.", 4, 1024, 512, 4096), **indexer}),
        **of_layers(wide, compressor("attn.compressor.", 128, 512, 512, 4096)),
        **of_layers(range(3), {"ffn.gate.tid2eid": (129280, 6)}),
        **of_layers(range(3, 43), {"ffn.gate.bias": (256,)}),
        **deepseek_v4_layer("layers.{0-42}."),
        **deepseek_v4_layer("mtp.0."),
        "mtp.0.ffn.gate.bias": (256,),
        "mtp.0.norm.weight": (4096,),
        **{f"mtp.0.{name}.weight": (4096,) for name in ("enorm", "hnorm")},
        **{f"mtp.0.{name}_proj.weight": (4096, 4096) for name in ("e", "h")},
        **{f"mtp.0.{name}": shape for name, shape in head.items()},
    }
    return Repository(config, tensors)


def internlm2() -> Shapes:
    at = "model.layers.{0-31}."
    return {
        "model.tok_embeddings.weight": (92544, 4096),
        at + "attention.wqkv.weight": (6144, 4096),
        at + "attention.wo.weight": (4096, 4096),
        **gated(at + "feed_forward.", 4096, 14336, ("w1", "w3", "w2")),
        at + "attention_norm.weight": (4096,),
        at + "ffn_norm.weight": (4096,),
        "model.norm.weight": (4096,),
        "output.weight": (92544, 4096),
    }


def baichuan2() -> Shapes:
    at = "model.layers.{0-31}."
    shapes = decoder(32, 4096, 11008, 4096, 4096, 125696)
    for p in _QKV:
        del shapes[f"{at}self_attn.{p}_proj.weight"]
    return {**shapes, at + "self_attn.W_pack.weight": (12288, 4096), at + "self_attn.rotary_emb.inv_freq": (64,)}


def qwen3(layers: int, hidden: int, ffn: int, q: int, kv: int, vocab: int) -> Shapes:
    at = f"model.layers.{{0-{layers - 1}}}.self_attn."
    norms = {at + "q_norm.weight": (128,), at + "k_norm.weight": (128,)}
    return {**decoder(layers, hidden, ffn, q, kv, vocab), **norms}


def mae() -> Shapes:
    at = "decoder_blocks.{0-7}."
    return {
        **vit(12, 768, 197, 16),
        **both("norm", 768),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 197, 512),
        **both("decoder_embed", 512, 768),
        **vit_block(at, 512),
        **mlp(at, 512, 2048),
        **both("decoder_norm", 512),
        **both("decoder_pred", 768, 512),
    }


def qwen2_moe() -> Shapes:
    at = "model.layers.{0-27}.mlp."
    return {
        **decoder(28, 3584, 0, 3584, 512, 151936, _QKV),
        **experts(at, "gate.weight", 64, 3584, 2560, _HF),
        **gated(at + "shared_expert.", 3584, 20480),
        at + "shared_expert_gate.weight": (1, 3584),
    }


def _cogvlm_config() -> dict[str, Any]:
    config = said("", 32, 4096, 14336, 32, 8, 128256, architectures=["CogVLMForCausalLM"], num_multi_query_heads=8)
    del config["model_type"]
    vision = {"hidden_size": 1792, "intermediate_size": 15360, "num_hidden_layers": 63, "num_heads": 16}
    return {**config, "vision_config": {**vision, "in_channels": 3, "patch_size": 14, "num_positions": 9217}}


_GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
_BLOOM = {"model_type": "bloom", "n_layer": 24, "n_embed": 1024, "num_attention_heads": 16, "vocab_size": 250880}
_STARCODER = {"model_type": "gpt_bigcode", "n_layer": 40, "n_embd": 6144, "n_head": 48, "n_inner": 24576}
_TELECHAT = {"model_type": "telechat", "n_layer": 30, "hidden_size": 4096, "n_head": 32, "ffn_hidden_size": 12288}
_WHISPER = {"model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "decoder_layers": 32, "num_mel_bins": 128}
_VISUAL = {"heads": 16, "width": 1664, "layers": 48, "output_dim": 4096, "patch_size": 14, "mlp_ratio": 4.9231}
_LLAVA = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
_LLAVA_EYE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}

#: Family → a model that it covers.
REPOSITORIES: Mapping[str, Repository] = {
    "baichuan2": Repository(said("baichuan", 32, 4096, 11008, 32, 32, 125696), baichuan2()),
    "blip2": Repository({}, blip2()),
    "bloom": Repository(_BLOOM, bloom(24, 1024, 250880)),
    "codegeex2": chatglm(65024, 28, 13696),
    "cogvlm2": Repository(_cogvlm_config(), cogvlm2()),
    "deepseek": Repository(said("llama", 32, 4096, 11008, 32, 32, 32256), decoder(32, 4096, 11008, 4096, 4096, 32256)),
    "deepseek2": deepseek_v2_lite(),
    "deepseek3": deepseek_v3("deepseek_v3", 61, 3, 7168, 128, 18432, 129280, 256, 2048),
    "deepseek32": deepseek_v32(),
    "deepseek4": deepseek_v4(),
    "glm-n": chatglm(151552, 40, 13696),
    "glm4_moe": glm4_moe(),
    "gpt": Repository(_GPT2, gpt2(12, 768, 50257, 1024)),
    "internlm": Repository(
        said("internlm", 32, 4096, 11008, 32, 32, 103168, bias=True),
        decoder(32, 4096, 11008, 4096, 4096, 103168, _QKVO),
    ),
    "internlm2": Repository(said("internlm2", 32, 4096, 14336, 32, 8, 92544), internlm2()),
    "internvl2": internvl2(),
    "knowlm": Repository(said("llama", 40, 5120, 13824, 40, 40, 32000), decoder(40, 5120, 13824, 5120, 5120, 32000)),
    "llama": Repository(said("llama", 32, 4096, 14336, 32, 8, 128256), decoder(32, 4096, 14336, 4096, 1024, 128256)),
    "llava": Repository({**_LLAVA, "vision_config": _LLAVA_EYE}, llava()),
    "mae": Repository({}, mae()),
    "mixtral": Repository(
        said("mixtral", 32, 4096, 14336, 32, 8, 32000, num_local_experts=8),
        decoder(32, 4096, 0, 4096, 1024, 32000)
        | experts("model.layers.{0-31}.block_sparse_moe.", "gate.weight", 8, 4096, 14336, ("w1", "w3", "w2")),
    ),
    "mllama": mllama(),
    "qwen": Repository(
        said("qwen", 32, 4096, 22016, 32, 32, 151936, kv_channels=128),
        qwen_ends(151936, 4096) | qwen_layers(32, 4096, 11008),
    ),
    "qwen1_5": Repository(
        said("qwen2", 32, 4096, 11008, 32, 32, 151936), decoder(32, 4096, 11008, 4096, 4096, 151936, _QKV)
    ),
    "qwen2": Repository(
        said("qwen2", 24, 896, 4864, 14, 2, 151936, tie_word_embeddings=True),
        decoder(24, 896, 4864, 896, 128, 151936, _QKV, tied=True),
    ),
    "qwen2_5": Repository(
        said("qwen2", 28, 3584, 18944, 28, 4, 152064), decoder(28, 3584, 18944, 3584, 512, 152064, _QKV)
    ),
    "qwen2_moe": Repository(
        said(
            "qwen2_moe",
            28,
            3584,
            18944,
            28,
            4,
            151936,
            num_experts=64,
            moe_intermediate_size=2560,
            shared_expert_intermediate_size=20480,
        ),
        qwen2_moe(),
    ),
    "qwen3": Repository(
        said("qwen3", 36, 4096, 12288, 32, 8, 151936, head_dim=128), qwen3(36, 4096, 12288, 4096, 1024, 151936)
    ),
    "qwen3_moe": Repository(
        said("qwen3_moe", 48, 2048, 6144, 32, 4, 151936, head_dim=128, num_experts=128, moe_intermediate_size=768),
        qwen3(48, 2048, 0, 4096, 512, 151936) | experts("model.layers.{0-47}.mlp.", "gate.weight", 128, 2048, 768, _HF),
    ),
    "qwenvl": Repository(said("qwen", 32, 4096, 22016, 32, 32, 151936, kv_channels=128, visual=_VISUAL), qwenvl()),
    "skywork": Repository(said("llama", 52, 4608, 12288, 36, 36, 65519), decoder(52, 4608, 12288, 4608, 4608, 65519)),
    "swin": Repository({}, swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 224)),
    "telechat": Repository({**_TELECHAT, "vocab_size": 160256}, telechat(30, 4096, 12288, 160256, "", 8192, False)),
    "telechat2": Repository(
        {**_TELECHAT, "vocab_size": 131072}, telechat(30, 4096, 12288, 131072, "transformer.", 8192, True)
    ),
    "telechat3": Repository(
        said("telechat3", 64, 6144, 24576, 48, 8, 131072, head_dim=128),
        decoder(64, 6144, 24576, 6144, 1024, 131072),
    ),
    "telechat3_moe": deepseek_v3("telechat3_moe", 45, 1, 2560, 32, 7680, 131072, 192, 1536),
    "vit": Repository({}, vit(12, 768, 197, 16) | both("fc_norm", 768) | both("head", 1000, 768)),
    "whisper": Repository({**_WHISPER, "vocab_size": 51866}, whisper(32, 1280, 51866, 128)),
    "wizardcoder": Repository({**_STARCODER, "vocab_size": 49153}, starcoder(40, 6144, 128, 24576, 49153, 8192)),
    "yi": Repository(said("llama", 32, 4096, 11008, 32, 4, 64000), decoder(32, 4096, 11008, 4096, 512, 64000)),
    "yizhao": chatglm(151552, 54, 13696),
}
