"""Encoders, models of several modalities, and older decoders: there and back, and layouts as NumPy computes them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, UnsupportedError, UsageError
from streamconv.families import registry as families
from streamconv.formats import safetensors, shards
from streamconv.tensors.dtypes import BF16, F16, F32, DType, from_safetensors
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.running import call

pytestmark = pytest.mark.slow

Tensors = dict[str, np.ndarray]
I64 = from_safetensors("I64", "I64")
Options = Mapping[str, Any]
KINDS = {kind.numpy: kind for kind in (BF16, F16, F32, I64)}


@dataclass(frozen=True)
class Sample:
    """A model to be converted.

    Attributes:
        family: its family.
        config: what its config.json says; without one there is none.
        sizes: what only shapes tell.
        ranges: holes that only names fill, and how far.
        options: those that decide which names there are.
        without: names that it lacks.
        optional: whether it has what may be absent.
        specs: its tensors, where no table lists them.
    """

    family: str
    config: Options | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    without: str = "-"
    optional: bool = True
    specs: Callable[[], Iterator[TensorSpec]] | None = None

    def model(self) -> Tensors:
        """Its tensors: random, and norms and embeddings of dtypes of their own."""
        if self.specs is not None:
            listed = list(self.specs())
        else:
            found = families.find(self.family)
            sizes = {**found.sizes, **{name: f"={size}" for name, size in self.sizes.items()}}
            found = replace(found, sizes=sizes, ranges={**found.ranges, **self.ranges})
            listed = samples.hf_specs(found, self.config or {}, self.options, optional=self.optional)
        names = [replace(s, dtype=_kind(s.name)) for s in listed if not re.search(self.without, s.name)]
        return {s.name: _values(s) for s in names}

    def store(self, folder: Path, model: Tensors, count: int = 3) -> Path:
        """Write a checkpoint, its tensors dealt one by one over so many shards."""
        folder.mkdir()
        if self.config is not None:
            (folder / "config.json").write_text(json.dumps(self.config))
        files = {shards.hf_shard_name(i + 1, count): list(model)[i::count] for i in range(count)}
        for file, names in files.items():
            some = [TensorSpec(n, KINDS[model[n].dtype.name], model[n].shape) for n in names]
            golden.write(folder / file, safetensors.lay_out(file, some, {}), {n: model[n].tobytes() for n in names})
        index = {name: file for file, names in files.items() for name in names}
        (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, index))
        return folder

    def convert(self, source: Path, dest: Path, **arguments: Any) -> Path:
        streamconv.convert(source, dest, model=self.family, max_mem="8G", workers=1, **arguments)
        return dest


def _kind(name: str) -> DType:
    if name.endswith(("position_ids", "position_index")):
        return I64
    return F32 if "norm" in name or "inv_freq" in name else F16 if "embed" in name else BF16


def _values(spec: TensorSpec) -> np.ndarray:
    """The same for the same name, and for rotary frequencies of all layers."""
    generator = np.random.default_rng(zlib.crc32(re.sub(r"\d+(?=.*inv_freq)", "#", spec.name).encode()))
    if spec.dtype == I64:
        return generator.integers(0, 1 << 40, spec.shape)
    return samples.random_values(generator, math.prod(spec.shape), spec.dtype).reshape(spec.shape)


def swin(pretrain: bool) -> Iterator[TensorSpec]:
    """Three stages of one, three and two blocks; every other block has a mask."""
    top, patch = "encoder." if pretrain else "", (5, 3, 2, 2)

    def linear(name: str, rows: int, *others: int) -> Iterator[TensorSpec]:
        yield TensorSpec(name + ".weight", BF16, (rows, *others))
        yield TensorSpec(name + ".bias", BF16, (rows,))

    yield from linear(top + "patch_embed.proj", *patch)
    yield from linear(top + "patch_embed.norm", 5)
    for stage, (blocks, width) in enumerate(((1, 5), (3, 10), (2, 20))):
        for block in range(blocks):
            name = f"{top}layers.{stage}.blocks.{block}."
            yield from (*linear(name + "norm1", width), *linear(name + "norm2", width))
            yield TensorSpec(name + "attn.relative_position_bias_table", BF16, (9, stage + 1))
            yield TensorSpec(name + "attn.relative_position_index", I64, (4, 4))
            yield from (*linear(name + "attn.qkv", 3 * width, width), *linear(name + "attn.proj", width, width))
            yield from (*linear(name + "mlp.fc1", 7, width), *linear(name + "mlp.fc2", width, 7))
            if block % 2:
                yield TensorSpec(name + "attn_mask", BF16, (6, 4, 4))
        if stage < 2:
            yield TensorSpec(f"{top}layers.{stage}.downsample.reduction.weight", BF16, (2 * width, 4 * width))
            yield from linear(f"{top}layers.{stage}.downsample.norm", 4 * width)
    yield from linear(top + "norm", 20)
    yield from linear("decoder.0", 12, 20, 1, 1) if pretrain else linear("head", 11, 20)
    if pretrain:
        yield TensorSpec("encoder.mask_token", BF16, (1, 1, 5))


BLOOM = {"model_type": "bloom", "vocab_size": 11, "hidden_size": 15, "n_layer": 2, "n_head": 5}
CODER = {"model_type": "gpt_bigcode", "vocab_size": 11, "n_embd": 21, "n_inner": 9, "n_layer": 3, "n_head": 7}
CODER |= {"n_positions": 5}
EYE = {"hidden": 9, "ffn": 7, "layers": 3, "channels": 3, "patch": 2, "tokens": 5}
MAE = {**EYE, "narrow": 5, "narrow_ffn": 11, "decoders": 2}
BLIP2 = {**EYE, "text": 6, "text_ffn": 5, "text_layers": 3, "crosses": 2, "vocab": 13, "positions": 4}
BLIP2 |= {"queries": 3, "joint": 7}
WHISPER = {"model_type": "whisper", "d_model": 9, "vocab_size": 11, "num_mel_bins": 5, "max_source_positions": 7}
WHISPER |= {"max_target_positions": 4, "encoder_layers": 3, "decoder_layers": 2}
WHISPER |= {"encoder_ffn_dim": 5, "decoder_ffn_dim": 13}
LLAMA = {"hidden_size": 12, "intermediate_size": 7, "num_hidden_layers": 2, "num_attention_heads": 6}
LLAMA |= {"num_key_value_heads": 2, "vocab_size": 13}
LLAVA = {"model_type": "llava", "text_config": LLAMA}
LLAVA |= {"vision_config": {"hidden_size": 5, "intermediate_size": 9, "num_hidden_layers": 3, "patch_size": 2}}
LLAVA["vision_config"] |= {"num_channels": 3}
COG = {"architectures": ["CogVLMForCausalLM"], "num_multi_query_heads": 3, **LLAMA}
COG |= {"vision_config": {"hidden_size": 5, "intermediate_size": 9, "num_hidden_layers": 3, "num_positions": 5}}
COG["vision_config"] |= {"in_channels": 3, "patch_size": 2}
COG_SIZES = {"width": 9, "head_dim": 5, "frequencies": 4, "adapted": 7, "window": 2}
QWENVL = {"model_type": "qwen", **LLAMA, "intermediate_size": 10, "num_key_value_heads": 6}
QWENVL |= {"visual": {"width": 15, "heads": 3, "layers": 2, "output_dim": 7, "patch_size": 2}}
QWENVL_SIZES = {"tokens": 5, "queries": 3, "wide": 11, "channels": 3}
TELE = {"model_type": "telechat", "vocab_size": 11, "hidden_size": 12, "ffn_hidden_size": 18, "n_layer": 2}
TELE |= {"n_head": 6, "num_key_value_heads": 3}
TELE7, TELE12, TELE52 = ({"telechat_type": f"telechat_{n}b"} for n in (7, 12, 52))

SAMPLES = {
    "whisper": Sample("whisper", WHISPER, optional=False),
    "whisper with proj_out": Sample("whisper", WHISPER),
    "bloom": Sample("bloom", BLOOM, without="transformer|lm_head"),
    "bloom with lm_head": Sample("bloom", BLOOM, without="transformer"),
    "bloom prefixed": Sample("bloom", BLOOM, without=r"^(?!transformer|lm_head\.weight)"),
    "wizardcoder": Sample("wizardcoder", {**CODER, "tie_word_embeddings": False}, {"width": 5}),
    "wizardcoder, a silent config": Sample("wizardcoder", CODER, {"width": 5}),
    "wizardcoder tied": Sample("wizardcoder", {**CODER, "tie_word_embeddings": True}, {"width": 5}, without="lm_head"),
    "vit": Sample("vit", None, {**EYE, "classes": 4}, without="^norm"),
    "vit without head": Sample("vit", {}, EYE, optional=False),
    "mae": Sample("mae", None, MAE),
    "mae, encoder alone": Sample("mae", None, EYE, options={"decoder": False}),
    "swin": Sample("swin", specs=lambda: swin(False)),
    "swin pretrain": Sample("swin", specs=lambda: swin(True)),
    "blip2": Sample("blip2", None, BLIP2, {"cross": "crosses"}),
    "blip2 without buffers": Sample("blip2", None, BLIP2, {"cross": "crosses"}, optional=False),
    "llava": Sample("llava", LLAVA, {"tokens": 5}),
    "llava without biases": Sample("llava", LLAVA, {"tokens": 5}, optional=False),
    "cogvlm2 video": Sample("cogvlm2", COG, COG_SIZES, options={"modal": "video"}),
    "cogvlm2 image": Sample("cogvlm2", COG, COG_SIZES, options={"modal": "image"}),
    "cogvlm2 image without frequencies": Sample("cogvlm2", COG, COG_SIZES, {}, {"modal": "image"}, optional=False),
    "qwenvl": Sample("qwenvl", QWENVL, QWENVL_SIZES),
    "telechat 7b": Sample("telechat", TELE, options=TELE7, without="lm_head"),
    "telechat 7b with lm_head": Sample("telechat", TELE, options=TELE7),
    "telechat 12b": Sample("telechat", TELE, options=TELE12),
    "telechat 52b": Sample("telechat", TELE, options=TELE52),
    "telechat2": Sample("telechat2", TELE),
    "telechat2, 1 expert": Sample("telechat2", {**TELE, "num_experts": 1}, options={"moe": True}),
    "telechat2, 17 experts": Sample("telechat2", {**TELE, "num_experts": 17}, options={"moe": True}, optional=False),
}

#: Sample, options given, and what the way back has to be told where no manifest remembers it.
CHOICES: list[tuple[str, Options, Options]] = [
    *(
        (name, {}, {})
        for name in SAMPLES
        if not name.startswith(("cogvlm2 video", "qwenvl", "telechat 12", "telechat 5"))
    ),
    *(("cogvlm2 video", {"sft": sft}, {}) for sft in ("none", "lora")),
    *(("qwenvl", {"qkv_concat": concat}, {}) for concat in (False, True)),
    *(("qwenvl", {"enable_emb_opt": True, "emb_strategy": n}, {}) for n in (1, 2)),
    ("qwenvl", {"qkv_concat": True, "enable_emb_opt": True, "emb_strategy": 3}, {"emb_strategy": 3}),
    ("telechat 12b", {}, TELE12),
    *(("telechat 52b", {"mp": n}, {"mp": n}) for n in (1, 2, 3, 6)),
]
CHOICES = [(name, options, TELE7 if name == "telechat 7b with lm_head" else told) for name, options, told in CHOICES]


def arrays(path: Path) -> Tensors:
    return {name: tensor.numpy() for name, tensor in streamconv.open(path).items()}


def named(value: object) -> str:
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("name", "options", "told"), CHOICES, ids=named)
def test_it_comes_back(tmp_path, name, options, told, count) -> None:
    """From a directory and from a `.ckpt`, with the manifest and without; names decide what no option says."""
    sample = SAMPLES[name]
    model = sample.model()
    source = sample.store(tmp_path / "hf", model, count)
    expected = golden.found(source)
    config = {} if sample.config is None else {"config": source}
    for kind in ("ms", "ms.ckpt"):
        there = sample.convert(source, tmp_path / kind, options=options)
        assert golden.found(there).keys() != expected.keys()
        assert golden.found(sample.convert(there, tmp_path / f"{kind}1", reverse=True, **config)) == expected
        (there / "streamconv.json" if kind == "ms" else there.with_name("ms.ckpt.streamconv.json")).unlink()
        back = sample.convert(there, tmp_path / f"{kind}2", reverse=True, options=told, **config)
        assert golden.found(back) == expected
    assert golden.found(tmp_path / "ms") == golden.found(tmp_path / "ms.ckpt")


def ones(value: object, key: str = "") -> object:
    """The smallest model: every number is 1, and Qwen's intermediate_size 2, for it is that of two projections."""
    if isinstance(value, Mapping):
        return {k: ones(v, k) for k, v in value.items()}
    return value if not isinstance(value, int) or isinstance(value, bool) else 1 + (key == "intermediate_size")


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.specs is None])
def test_one_of_everything(tmp_path, name) -> None:
    sample = SAMPLES[name]
    sample = dataclasses.replace(sample, config=sample.config and ones(sample.config), sizes=ones(sample.sizes))
    source = sample.store(tmp_path / "hf", sample.model(), 2)
    sample.convert(source, tmp_path / "ms")
    assert golden.found(sample.convert(tmp_path / "ms", tmp_path / "back", reverse=True)) == golden.found(source)


@pytest.mark.parametrize("name", [name for name in SAMPLES if "silent" not in name])
def test_no_tensor_may_be_missing(tmp_path, name) -> None:
    """Whichever is: required ones from the middle of the table, its beginning and its end."""
    sample = dataclasses.replace(SAMPLES[name], optional=False)
    model = sample.model()
    required = [n for n in model if not n.endswith("attn_mask")]
    for gone in {required[0], required[len(required) // 2], required[-1]}:
        source = sample.store(tmp_path / f"without {gone}", {n: t for n, t in model.items() if n != gone})
        with pytest.raises((SourceError, UnsupportedError), match=re.escape(gone) + ": missing"):
            sample.convert(source, tmp_path / "ms", options=sample.options)
    assert not (tmp_path / "ms").exists()


def test_a_head_that_the_files_lack_although_the_config_is_silent(tmp_path) -> None:
    """GPTBigCode ties by default, and then its config does not say so: MindFormers has the head all the same."""
    sample = SAMPLES["wizardcoder, a silent config"]
    model = sample.model()
    del model["lm_head.weight"]
    source = sample.store(tmp_path / "hf", model)
    there = arrays(sample.convert(source, tmp_path / "ms"))
    assert np.array_equal(there["head.head_weight"], model["transformer.wte.weight"])
    assert golden.found(sample.convert(tmp_path / "ms", tmp_path / "back", reverse=True)) == golden.found(source)


# What layouts do, computed by NumPy -----------------------------------------------------------------------------------


def thirds(rows: np.ndarray, index: int) -> np.ndarray:
    return np.split(rows, 3)[index]


def by_head(rows: np.ndarray, heads: int, index: int) -> np.ndarray:
    """One of q, k and v where each head has its three parts side by side."""
    return rows.reshape(heads, 3, -1, *rows.shape[1:])[:, index].reshape(-1, *rows.shape[1:])


def per_device(columns: np.ndarray, heads: int, devices: int) -> np.ndarray:
    """The 52B's q, k and v: whole heads in turn, or all q, all k and all v of each device."""
    width = len(columns)
    rows = columns.T.reshape(3, heads, -1, width).transpose(1, 0, 2, 3)
    if devices > 1:
        rows = rows.reshape(devices, heads // devices, 3, -1, width).transpose(0, 2, 1, 3, 4)
    return rows.reshape(-1, width)


def gate_per_device(columns: np.ndarray, devices: int) -> np.ndarray:
    halves = [np.split(half, devices) for half in np.split(columns.T, 2)]
    return np.concatenate([part for device in zip(*halves, strict=True) for part in device])


def padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), rows.dtype)])


def stacked(model: Tensors, name: str, count: int = 17) -> np.ndarray:
    return np.stack([model[f"transformer.h.1.mlp.local_experts.{e}.{name}"] for e in range(count)])


BLOOM_QKV = "h.1.self_attention.query_key_value."
EYE_BLOCK, QWEN_BLOCK = "vision_tower.vision_model.encoder.layers.2.", "transformer.resblocks.1."
COG_QKV = "model.layers.1.self_attn.language_expert_query_key_value.weight"
SFT, OPT, MP1, MP2 = {"sft": "lora"}, {"enable_emb_opt": True, "emb_strategy": 3}, {"mp": 1}, {"mp": 2}

COMPUTED: list[tuple[str, Options, str, Callable[[Tensors], np.ndarray]]] = [
    ("whisper", {}, "model.encoder.conv1.weight", lambda t: t["model.encoder.conv1.weight"][:, :, None, :]),
    ("bloom", {}, "blocks.1.attention.dense2.weight", lambda t: by_head(t[BLOOM_QKV + "weight"], 5, 1)),
    ("bloom", {}, "blocks.1.attention.dense3.bias", lambda t: by_head(t[BLOOM_QKV + "bias"], 5, 2)),
    ("bloom", {}, "blocks.1.output.mapping.weight", lambda t: t["h.1.mlp.dense_h_to_4h.weight"].T),
    (
        "wizardcoder",
        {},
        "backbone.blocks.2.attention.dense2.weight",
        lambda t: t["transformer.h.2.attn.c_attn.weight"][21:24],
    ),
    (
        "wizardcoder",
        {},
        "backbone.blocks.2.attention.projection.weight",
        lambda t: t["transformer.h.2.attn.c_proj.weight"].T,
    ),
    ("swin", {}, "encoder.layers.1.blocks.2.attn.k.weight", lambda t: t["layers.1.blocks.2.attn.qkv.weight"][10:20]),
    ("swin", {}, "encoder.layers.1.blocks.2.attn.v.bias", lambda t: t["layers.1.blocks.2.attn.qkv.bias"][20:]),
    ("swin", {}, "encoder.layers.2.blocks.1.attn_mask", lambda t: t["layers.2.blocks.1.attn_mask"]),
    ("swin pretrain", {}, "decoder.weight", lambda t: t["decoder.0.weight"]),
    ("vit", {}, "vit.blocks.2.attention.dense3.weight", lambda t: thirds(t["blocks.2.attn.qkv.weight"], 2)),
    ("vit", {}, "vit.blocks.2.attention.projection.weight", lambda t: t["blocks.2.attn.proj.weight"].T),
    (
        "mae",
        {},
        "vit.decoder_blocks.1.output.projection.weight",
        lambda t: t["decoder_blocks.1.mlp.fc2.weight"].T,
    ),
    (
        "mae",
        {},
        "vit.decoder_blocks.1.attention.dense1.bias",
        lambda t: thirds(t["decoder_blocks.1.attn.qkv.bias"], 0),
    ),
    (
        "blip2",
        {},
        "visual_encoder.blocks.1.attention.dense2.bias",
        lambda t: np.zeros_like(t["visual_encoder.blocks.1.attn.q_bias"]),
    ),
    (
        "blip2",
        {},
        "visual_encoder.blocks.1.output.mapping.weight",
        lambda t: t["visual_encoder.blocks.1.mlp.fc1.weight"].T,
    ),
    (
        "blip2",
        {},
        "qformer.bert.encoder.layer.1.crossattention.self_att.key.weight",
        lambda t: t["Qformer.bert.encoder.layer.1.crossattention.self.key.weight"],
    ),
    (
        "llava",
        {},
        "vision_encoder.transformer.resblocks.2.attn.in_proj.weight",
        lambda t: np.concatenate([t[f"{EYE_BLOCK}self_attn.{p}_proj.weight"] for p in "qkv"]),
    ),
    ("cogvlm2 video", {}, "llm_model.model.layers.1.attention.wq.weight", lambda t: t[COG_QKV][:30]),
    ("cogvlm2 video", {}, "llm_model.model.layers.1.attention.wk.weight", lambda t: t[COG_QKV][30:45]),
    (
        "cogvlm2 video",
        SFT,
        "llm_model.pet_model.lora_model.model.layers.1.attention.wv.weight",
        lambda t: t[COG_QKV][45:],
    ),
    (
        "qwenvl",
        {},
        f"vision_encoder.{QWEN_BLOCK}attn.dense2.weight",
        lambda t: by_head(t[f"transformer.visual.{QWEN_BLOCK}attn.in_proj.weight"], 3, 1),
    ),
    (
        "qwenvl",
        {},
        "vision_encoder.attn_pool.attn.dense2.bias",
        lambda t: thirds(t["transformer.visual.attn_pool.attn.in_proj_bias"], 1),
    ),
    ("qwenvl", OPT, "llm_model.lm_head.weight", lambda t: padded(t["lm_head.weight"], 1536)),
    (
        "telechat 52b",
        MP1,
        "model.layers.1.attention.w_qkv.weight",
        lambda t: per_device(t["transformer.h.1.attn.c_attn.weight"], 6, 1),
    ),
    (
        "telechat 52b",
        MP2,
        "model.layers.1.attention.w_qkv.weight",
        lambda t: per_device(t["transformer.h.1.attn.c_attn.weight"], 6, 2),
    ),
    (
        "telechat 52b",
        MP2,
        "model.layers.1.feed_forward.w_gate_hidden.weight",
        lambda t: gate_per_device(t["transformer.h.1.mlp.c_fc.weight"], 2),
    ),
    (
        "telechat2, 1 expert",
        {},
        "model.layers.1.feed_forward.ffn.w2.bias",
        lambda t: stacked(t, "down_proj.bias", 1)[None, :, None],
    ),
    (
        "telechat2, 17 experts",
        {},
        "model.layers.1.feed_forward.ffn.w3.weight",
        lambda t: stacked(t, "up_proj.weight"),
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "tensor", "expected"), COMPUTED, ids=lambda v: "" if callable(v) else named(v)
)
def test_a_layout_is_what_numpy_computes(tmp_path, name, options, tensor, expected) -> None:
    sample = SAMPLES[name]
    model = sample.model()
    there = sample.convert(sample.store(tmp_path / "hf", model), tmp_path / "ms", options=options)
    found, wanted = arrays(there)[tensor], expected(model)
    assert (found.dtype.name, found.shape) == (wanted.dtype.name, wanted.shape)
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes()


# What is refused, asked and dropped -----------------------------------------------------------------------------------


def written(tmp_path: Path, name: str, options: Options | None = None) -> tuple[Sample, Path, Path]:
    """A sample, its source, and what is made of it, without a manifest."""
    sample = SAMPLES[name]
    source = sample.store(tmp_path / "hf", sample.model())
    there = sample.convert(source, tmp_path / "ms", options=options or {})
    (there / "streamconv.json").unlink()
    return sample, source, there


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("telechat 12b", {}, "-o telechat_type=telechat_7b or -o telechat_type=telechat_12b"),
        ("telechat 52b", MP2, "-o mp=1 or -o mp=2"),
    ],
)
def test_what_nothing_tells_is_asked(tmp_path, capsys, name, options, said) -> None:
    sample, _, there = written(tmp_path, name, options)
    ended = call(capsys, "convert", there, tmp_path / "back", "--reverse", "--model", sample.family)
    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("bloom", {"n_head": 3}, r'"n_head": 3} contradicts the model: heads is 5 \(config: n_head\)'),
        ("bloom", {"hidden_size": 30}, '"hidden_size": 30} contradicts'),
        ("wizardcoder", {"layers": 2}, '"layers": 2} contradicts the model: layers is 3'),
        ("qwenvl", {"vit_num_head": 5}, '"vit_num_head": 5} contradicts the model'),
        ("qwenvl", {"emb_strategy": 0}, "whole number from 1 up"),
        ("telechat 52b", {"mp": "all"}, "whole number from 1 up"),
    ],
)
def test_numbers_given_by_hand_have_to_be_the_model_s(tmp_path, name, options, said) -> None:
    sample = SAMPLES[name]
    source = sample.store(tmp_path / "hf", sample.model())
    with pytest.raises(UsageError, match=said):
        sample.convert(source, tmp_path / "ms", options=options)


@pytest.mark.parametrize(("heads", "error"), [(None, UsageError), (4, UnsupportedError)])
def test_heads_that_no_config_tells(tmp_path, heads, error) -> None:
    """Without them nothing is written, nor with a number that does not divide; with the right one, all is well."""
    bare = dataclasses.replace(SAMPLES["bloom"], config=None)
    model = SAMPLES["bloom"].model()
    source = bare.store(tmp_path / "hf", model)
    with pytest.raises(error):
        bare.convert(source, tmp_path / "ms", options={"n_head": heads} if heads else {})
    there = arrays(bare.convert(source, tmp_path / "ms", options={"n_head": 5}))
    assert np.array_equal(there["blocks.1.attention.dense2.bias"], by_head(model[BLOOM_QKV + "bias"], 5, 1))


def test_devices_share_whole_heads(tmp_path) -> None:
    sample = SAMPLES["telechat 52b"]
    source = sample.store(tmp_path / "hf", sample.model())
    with pytest.raises(UnsupportedError, match="c_attn"):
        sample.convert(source, tmp_path / "ms", options={"mp": 4})


def test_a_bias_that_blip2_does_not_have_must_be_zero(tmp_path) -> None:
    sample, _, there = written(tmp_path, "blip2")
    model = arrays(there)
    model["visual_encoder.blocks.2.attention.dense2.bias"][-1] = 1
    changed = sample.store(tmp_path / "changed", model, 1)
    with pytest.raises(UnsupportedError, match=r"visual_encoder\.blocks\.2\.attention\.dense2\.bias"):
        sample.convert(changed, tmp_path / "back", reverse=True)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("name", "extra", "said"),
    [
        (
            "telechat2, 17 experts",
            "transformer.h.1.mlp.local_experts.17.up_proj.weight",
            "no expert 17; the model has 17",
        ),
        ("swin", "layers.2.downsample.norm.weight", "no merging 2; the model has 2"),
        ("bloom", "h.2.input_layernorm.weight", "no layer 2; the model has 2"),
        ("cogvlm2 video", "model.layers.1.mlp.vision_mlp.up_proj.weight", "no rule matches"),
        ("blip2", "visual_encoder.blocks.1.attn.k_bias", "no rule matches"),
        ("whisper", "model.encoder.layers.1.self_attn.k_proj.bias", "no rule matches"),
    ],
)
def test_a_tensor_too_many(tmp_path, name, extra, said) -> None:
    sample = SAMPLES[name]
    model = sample.model()
    model[extra] = np.zeros((3,), np.float32)
    with pytest.raises(UnsupportedError, match=f"{re.escape(extra)}.*{said}"):
        sample.convert(sample.store(tmp_path / "hf", model), tmp_path / "ms", options=sample.options)


def test_a_half_of_a_bloom_under_another_prefix(tmp_path) -> None:
    sample = SAMPLES["bloom"]
    model = {n.replace("h.1.", "transformer.h.1."): tensor for n, tensor in sample.model().items()}
    with pytest.raises((SourceError, UnsupportedError), match=r"h\.1\.input_layernorm\.weight: missing"):
        sample.convert(sample.store(tmp_path / "hf", model), tmp_path / "ms")


def test_masks_and_second_copies_are_dropped_with_a_reason(tmp_path) -> None:
    sample = SAMPLES["telechat 52b"]
    model = sample.model()
    mask = "transformer.h.1.attn.masked_bias"
    model[mask] = np.zeros((1,), np.float32)
    plan = streamconv.plan(sample.store(tmp_path / "hf", model), tmp_path / "ms", max_mem="8G").mapping
    assert plan.options["telechat_type"] == "telechat_52b"
    assert plan.dropped == {mask: "the causal mask, which is computed"}
    cog = SAMPLES["cogvlm2 video"]
    plan = streamconv.plan(cog.store(tmp_path / "cog", cog.model()), tmp_path / "ms", max_mem="8G").mapping
    assert plan.options == {"modal": "video", "sft": "none"}
    assert plan.dropped == {"model.layers.1.self_attn.rotary_emb.inv_freq": "the same in every layer"}


@pytest.mark.parametrize(
    ("config", "family"),
    [(QWENVL, "qwenvl"), (COG, "cogvlm2"), (TELE, "telechat"), ({**TELE, "num_experts": 4}, "telechat2")],
)
def test_configs_that_look_like_another_s(config, family) -> None:
    assert families.recognise(config)[0].name == family


def test_integers_are_not_cast(tmp_path) -> None:
    """An index of 17 bits does not survive FP16."""
    sample = SAMPLES["swin"]
    model = sample.model()
    there = arrays(sample.convert(sample.store(tmp_path / "hf", model), tmp_path / "ms", dtype="fp16"))
    index = "encoder.layers.1.blocks.2.attn.relative_position_bias.relative_position_index"
    assert np.array_equal(there[index], model["layers.1.blocks.2.attn.relative_position_index"])
    assert there["head.weight"].dtype == np.float16


# What one side has twice, or not at all -------------------------------------------------------------------------------

SMALL = {"hidden_size": 12, "intermediate_size": 7, "num_hidden_layers": 2, "num_attention_heads": 6}
SMALL |= {"num_key_value_heads": 3, "head_dim": 2, "vocab_size": 11}
#: Family → where MindSpore would have the head of a tied model, which it is not written a second time for.
UNTIED = {"qwen1_5": "lm_head.weight", "internlm2": "lm_head.weight", "qwen3": "output_layer.weight"}


@pytest.mark.parametrize("apart", [False, True, None], ids=["the embedding", "another one", "none"])
@pytest.mark.parametrize("family", UNTIED)
def test_a_head_beside_a_tied_embedding_on_the_way_back(tmp_path, family, apart) -> None:
    config = {**SMALL, "tie_word_embeddings": True}
    sample = Sample(family, config, optional=False)
    hf = sample.model()
    streamconv.convert(sample.store(tmp_path / "hf", hf, 1), tmp_path / "ms", model=family, max_mem="8G")
    ms = arrays(tmp_path / "ms")
    assert UNTIED[family] not in ms
    embedding = ms[next(name for name in ms if "embedding" in name)]
    if apart is not None:
        ms[UNTIED[family]] = embedding + embedding if apart else embedding
    trained = sample.store(tmp_path / "trained", ms, 1)
    layout = {"interleave_mlp": True, "contiguous_qkv": False} if family == "qwen3" else {}
    streamconv.convert(trained, tmp_path / "back", model=family, reverse=True, options=layout, max_mem="8G")
    back = arrays(tmp_path / "back")
    heads = back.keys() - hf.keys()
    assert len(heads) == bool(apart)
    assert all(np.array_equal(back[name], embedding + embedding) for name in heads)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is not apart


def test_internlm_without_stored_frequencies_drops_them_both_ways(tmp_path) -> None:
    config = {**SMALL, "model_type": "internlm", "rotary": {"type": "origin"}}
    stray = "model.layers.1.self_attn.rotary_emb.inv_freq"
    sample = Sample("internlm", config, optional=False)
    model = {**sample.model(), stray: np.ones(3, np.float32)}
    source = sample.store(tmp_path / "hf", model, 1)
    streamconv.convert(source, tmp_path / "ms", max_mem="8G")
    ms = arrays(tmp_path / "ms")
    assert stray not in ms
    back = streamconv.plan(
        sample.store(tmp_path / "trained", {**ms, stray: np.ones(3, np.float32)}, 1),
        tmp_path / "back",
        reverse=True,
        max_mem="8G",
    ).mapping
    assert back.dropped.keys() == {stray}
    assert {output.name for output in back.outputs} == model.keys() - {stray}


@pytest.mark.parametrize("family", ["internlm2", "qwen3", "deepseek2"])
def test_rotary_frequencies_of_old_repositories_are_dropped(tmp_path, family) -> None:
    at = "attention" if family == "internlm2" else "self_attn"
    config = {**SMALL, "q_lora_rank": None, "kv_lora_rank": 5, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2}
    config |= {"v_head_dim": 4, "n_routed_experts": 2, "n_shared_experts": 1, "moe_intermediate_size": 5}
    sample = Sample(family, config, optional=False)
    strays = {f"model.layers.{layer}.{at}.rotary_emb.inv_freq": np.ones(3, np.float32) for layer in range(2)}
    source = sample.store(tmp_path / "hf", {**sample.model(), **strays}, 1)
    plan = streamconv.plan(source, tmp_path / "ms", model=family, max_mem="8G").mapping
    assert plan.dropped == dict.fromkeys(strays, "computed from rope_theta")


def test_a_copy_that_is_none_is_said_to_be_lost(tmp_path) -> None:
    sample = SAMPLES["cogvlm2 video"]
    model = sample.model()
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in (0, 1)]
    model[names[1]] = model[names[0]] + 1
    plan = streamconv.plan(sample.store(tmp_path / "hf", model), tmp_path / "ms", model="cogvlm2", max_mem="8G").mapping
    assert plan.dropped == {names[1]: f"the same in every layer; it differs from {names[0]}, and is lost"}


def test_wizardcoder_and_telechat_take_numbers_by_hand(tmp_path) -> None:
    """As MindFormers' scripts do, for a model without a config."""
    for name, family, given in (
        ("wizardcoder", "wizardcoder", {"n_head": 7, "hidden_size": 21}),
        ("telechat 52b", "telechat", {"num_heads": 6, "hidden_size": 12, "mp": 2}),
    ):
        sample = dataclasses.replace(SAMPLES[name], config=None)
        model = SAMPLES[name].model()
        folder = tmp_path / family
        folder.mkdir()
        source = sample.store(folder / "hf", model, 1)
        with pytest.raises(UsageError, match="needs n"):
            streamconv.plan(source, folder / "ms", model=family, max_mem="8G")
        streamconv.convert(source, folder / "ms", model=family, options=given, max_mem="8G")
        streamconv.convert(folder / "ms", folder / "back", reverse=True, max_mem="8G")
        assert golden.found(folder / "back") == golden.found(source)
