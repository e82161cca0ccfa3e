"""The tensor mapping: outputs, dtypes, ties, drops, digest, and options inferred on the way back."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, UnsupportedError, UsageError
from streamconv.families import Family
from streamconv.families import registry as families
from streamconv.rules.interleaving import Interleave
from streamconv.rules.statements import Drop, Rule, Tied
from streamconv.tensors.dtypes import BF16, F32, from_safetensors
from streamconv.tensors.refs import TensorSpec
from support.helpers import LLAMA, MIXTRAL, catalog, hf, ms, planned

TIED = {**LLAMA, "tie_word_embeddings": True}
EMBEDDING, HEAD, MS_EMBEDDING = "model.embed_tokens.weight", "lm_head.weight", "model.tok_embeddings.embedding_weight"
RAW = families.find("raw")


def retyped(specs, part: str, dtype: str):
    changed = [replace(s, dtype=from_safetensors(dtype, "")) if part in s.name else s for s in specs]
    assert changed != specs
    return changed


def reshaped(specs, name: str, *shape: int):
    changed = [replace(s, shape=shape) if s.name == name else s for s in specs]
    assert changed != specs
    return changed


def table(*statements, **arguments) -> Family:
    return Family("own", "a family of this test", lambda config, options: statements, **arguments)


# What is written ------------------------------------------------------------------------------------------------------


def test_every_source_is_used_once_and_every_output_has_its_sources() -> None:
    specs = hf(MIXTRAL)
    plan = planned(specs, MIXTRAL)
    used = [name for output in plan.outputs for name in output.sources]
    assert sorted(used) == sorted(s.name for s in specs)
    for output in plan.outputs:
        assert {r.name for leaf in output.view.leaves() for r in leaf.refs()} == set(output.sources)


def test_the_table_decides_the_order_and_layer_10_comes_after_layer_9() -> None:
    names = [s.name for s in ms({**LLAMA, "num_hidden_layers": 12}, qkv_concat=True)]
    layer = [
        "attention.w_qkv.weight",
        "attention.wo.weight",
        "feed_forward.w_gate_hidden.weight",
        "feed_forward.w2.weight",
        "attention_norm.weight",
        "ffn_norm.weight",
    ]
    assert names == [
        MS_EMBEDDING,
        *(f"model.layers.{i}.{part}" for i in range(12) for part in layer),
        "model.norm_out.weight",
        HEAD,
    ]


def test_unstacked_experts_are_in_natural_order() -> None:
    config = {**MIXTRAL, "num_local_experts": 11, "num_hidden_layers": 1}
    back = planned(ms(config), config, reverse=True)
    names = [o.name for o in back.outputs if ".experts." in o.name and "w1" in o.name]
    assert names == [f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight" for i in range(11)]


def test_raw_keeps_every_name_in_natural_order() -> None:
    names = ["a.10.x", "a.9.x", "a.9", "b", "A", "a." + "9" * 5000, "", "½.²"]
    plan = planned([TensorSpec(n, F32, (1,)) for n in names], {}, RAW)
    assert sorted(o.name for o in plan.outputs) == sorted(names)
    assert [o.name for o in plan.outputs].index("a.9.x") < [o.name for o in plan.outputs].index("a.10.x")


@settings(deadline=None)
@given(st.sets(st.lists(st.sampled_from(["a", "b", "", "0", "7", "07", "10", "²"]), min_size=1).map(".".join)))
def test_natural_order_is_that_of_numbers_between_dots(names: set[str]) -> None:
    def key(name: str) -> list[tuple[int, int, str]]:
        parts = name.split(".")
        return [(0, len(part), part) if part.isascii() and part.isdecimal() else (1, 0, part) for part in parts]

    assume(names)
    mapping = planned([TensorSpec(name, F32, (1,)) for name in names], {}, RAW)
    assert [output.name for output in mapping.outputs] == sorted(names, key=key)


def test_rules_with_one_shared_number_and_with_two_live_in_one_table() -> None:
    family = table(
        Rule("l.{layer}.norm", "m.{layer}.norm"), Rule("l.{layer}.e.{expert}", "m.{layer}.e.{expert}"), Rule("z", "z")
    )
    experts = [f"{layer}.e.{expert}" for layer in range(2) for expert in range(11)]
    names = ["z", *(f"l.{one}" for one in reversed(experts)), "l.1.norm", "l.0.norm"]
    plan = planned([TensorSpec(n, F32, (1,)) for n in names], {"layers": 2}, family)
    expected = ["0.norm", *experts[:11], "1.norm", *experts[11:]]
    assert [o.name for o in plan.outputs] == [*(f"m.{one}" for one in expected), "z"]
    with pytest.raises(SourceError, match=r"l\.1\.e\.3: missing"):
        planned([TensorSpec(n, F32, (1,)) for n in names if n != "l.1.e.3"], {"layers": 2}, family)


def test_holes_of_unknown_range_are_filled_as_elsewhere() -> None:
    """A prefix, or the blocks of a stage: what one rule has, every other has."""
    family = table(
        Rule("{prefix:|p.}x", "{prefix:|p.}y"),
        Rule("{prefix:|p.}z", "{prefix:|p.}w"),
        Rule("s.{stage}.b.{block}.q", "s.{stage}.b.{block}.wq"),
        Rule("s.{stage}.b.{block}.k", "s.{stage}.b.{block}.wk"),
        Rule("s.{stage}.b.{block}.mask", "s.{stage}.b.{block}.mask", optional=True),
        ranges={"stage": "stages"},
    )
    complete = [
        "p.x",
        "p.z",
        *(f"s.{at}.{part}" for at in ("0.b.0", "0.b.1", "1.b.0") for part in "qk"),
        "s.0.b.1.mask",
    ]
    assert planned([TensorSpec(n, F32, (1,)) for n in complete], {}, family)
    for name in complete[:-1]:
        with pytest.raises(SourceError, match=re.escape(f"{name}: missing")):
            planned([TensorSpec(n, F32, (1,)) for n in complete if n != name], {}, family)


def test_two_tensors_under_one_name_are_refused() -> None:
    family = table(Rule("a", "x"), Rule("b", "x"))
    with pytest.raises(UnsupportedError, match=r"x would be written twice: from \('a',\) and \('b',\)"):
        planned([TensorSpec(n, F32, (1,)) for n in "ab"], {}, family)


# Shapes ---------------------------------------------------------------------------------------------------------------


def test_misshapen_tensors_are_named_all_at_once_with_the_config_key() -> None:
    q, norm = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.input_layernorm.weight"
    specs = reshaped(reshaped(hf(LLAMA), q, 28, 20), norm, 19)
    with pytest.raises(UnsupportedError) as caught:
        planned(specs, LLAMA)
    first, second = str(caught.value).splitlines()[1:-1]
    assert first.strip().startswith(f"{q}: shape [28, 20] does not fit [heads*head_dim, hidden]: heads*head_dim is 24")
    assert "config: num_attention_heads" in first
    assert second.strip().endswith(f"{norm}: shape [19] does not fit [hidden]: hidden is 20 "
                                   "(config: hidden_size), not 19")  # fmt: skip


@pytest.mark.parametrize("shape", [(), (24,), (24, 20, 1), (24, 0), (0, 0)])
def test_a_tensor_of_other_axes_is_refused(shape) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(UnsupportedError, match=name):
        planned(reshaped(hf(LLAMA), name, *shape), LLAMA, qkv_concat=True)


@pytest.mark.parametrize("shape", [(), (48,), (47, 20), (49, 20), (32, 20), (96, 20), (48, 19), (48, 20, 1), (0, 20)])
@pytest.mark.parametrize("option", [True, "blocks"])
def test_a_fused_tensor_of_other_axes_is_refused_on_the_way_back(shape, option) -> None:
    name = "model.layers.0.attention.w_qkv.weight"
    specs = reshaped(ms(LLAMA, qkv_concat=option), name, *shape)
    with pytest.raises(UnsupportedError, match=name):
        planned(specs, LLAMA, reverse=True, qkv_concat=option)


@pytest.mark.parametrize("shape", [(), (3,), (2, 14, 20), (4, 14, 20), (3, 14), (3, 20, 14), (3, 14, 20, 1), (0, 0, 0)])
@pytest.mark.parametrize("use_gmm", [False, True])
def test_a_stack_of_other_axes_is_refused_on_the_way_back(shape, use_gmm) -> None:
    name = "model.layers.1.feed_forward.ffn.w1.weight"
    if use_gmm and len(shape) == 3:
        shape = (shape[0], shape[2], shape[1])
    specs = reshaped(ms(MIXTRAL, use_gmm=use_gmm), name, *shape)
    with pytest.raises(UnsupportedError, match=name):
        planned(specs, MIXTRAL, reverse=True, use_gmm=use_gmm)


def test_a_stack_of_ever_so_many_empty_experts_is_not_taken_apart() -> None:
    specs = [TensorSpec("stack", BF16, (10**12, 0, 5))]
    family = replace(table(Rule("e.{expert}", "stack")), ranges={"expert": "experts"})
    with pytest.raises(UnsupportedError, match="empty"):
        planned(specs, {}, family, reverse=True)


def test_a_number_that_is_needed_and_nowhere_told_is_asked_for() -> None:
    family = families.find("llama")
    with pytest.raises(UsageError, match=r"needs num_attention_heads,(.|\n)*config="):
        planned(ms(LLAMA, qkv_concat=True), {}, family, reverse=True, qkv_concat=True)
    with pytest.raises(UsageError, match=r"needs num_attention_heads,(.|\n)*config="):
        planned(hf(LLAMA), {}, family, qkv_concat=True)
    assert len(planned(hf(LLAMA), {}, family).outputs) == len(hf(LLAMA))  # nothing is needed where nothing moves


# Dtypes ---------------------------------------------------------------------------------------------------------------


def test_without_a_dtype_everything_stays_as_it_is() -> None:
    specs = retyped(retyped(hf(LLAMA), "norm", "F32"), "mlp", "F16")
    plan = planned(specs, LLAMA)
    kinds = {s.name: s.dtype for s in specs}
    assert all(o.dtype == kinds[o.sources[0]] for o in plan.outputs)
    assert {o.dtype.name for o in plan.outputs} == {"BF16", "F32", "F16"}


def test_every_float_is_cast_and_nothing_else() -> None:
    names = {"f64": "F64", "f16": "F16", "i8": "I8", "u64": "U64", "flag": "BOOL", "f32": "F32"}
    specs = [TensorSpec(n, from_safetensors(d, n), (2,)) for n, d in names.items()]
    plan = planned(specs, {}, RAW, dtype=BF16)
    assert {o.name: o.dtype.name for o in plan.outputs} == {
        **dict.fromkeys(("f64", "f16", "f32"), "BF16"),
        **{"i8": "I8", "u64": "U64", "flag": "BOOL"},
    }


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "C64"])
def test_what_cannot_be_cast_is_refused_and_kept_where_no_dtype_is_asked(dtype) -> None:
    specs = retyped(hf(LLAMA), "layers.1.mlp.up_proj", dtype)
    with pytest.raises(UnsupportedError, match=rf"layers\.1\.mlp\.up_proj\.weight: {dtype} cannot be cast to BF16"):
        planned(specs, LLAMA, dtype=BF16)
    assert dtype in {o.dtype.name for o in planned(specs, LLAMA).outputs}


@pytest.mark.parametrize(
    ("config", "part", "options"),
    [
        (LLAMA, "layers.1.self_attn.k_proj", {"qkv_concat": True}),
        (LLAMA, "layers.1.mlp.up_proj", {"qkv_concat": "blocks"}),
        (MIXTRAL, "layers.1.block_sparse_moe.experts.2.w3", {}),
    ],
)
def test_tensors_of_two_dtypes_are_joined_only_after_a_cast(config, part, options) -> None:
    specs = retyped(hf(config), part, "F32")
    with pytest.raises(UnsupportedError, match=r"layers\.1\.(.|\n)*give one dtype with dtype"):
        planned(specs, config, **options)
    plan = planned(specs, config, dtype=BF16, **options)
    assert {o.dtype for o in plan.outputs} == {BF16}


# Tied heads -----------------------------------------------------------------------------------------------------------


def test_a_tied_head_is_written_from_the_embedding() -> None:
    plan = planned(hf(TIED), TIED)
    head = plan.outputs[-1]
    assert (head.name, head.sources, head.spec.shape) == (HEAD, (EMBEDDING,), (11, 20))
    assert HEAD not in {s.name for s in hf(TIED)}
    assert plan.checks == ()


def test_a_tied_head_that_is_there_too_is_checked() -> None:
    plan = planned(hf(LLAMA), TIED, dtype=F32)
    assert [o.name for o in plan.outputs].count(HEAD) == 1
    assert (plan.outputs[-1].sources, plan.outputs[-1].dtype) == ((EMBEDDING, HEAD), F32)
    (check,) = plan.checks
    assert (check.kept.name, check.other.name) == (EMBEDDING, HEAD)


def test_on_the_way_back_a_tied_head_is_left_out_and_listed() -> None:
    plan = planned(ms(TIED), TIED, reverse=True)
    assert HEAD not in {o.name for o in plan.outputs}
    assert plan.dropped == {HEAD: f"tied: the same bytes as {MS_EMBEDDING}"}
    (check,) = plan.checks
    assert (check.kept.name, check.other.name) == (MS_EMBEDDING, HEAD)
    absent = planned([s for s in ms(TIED) if s.name != HEAD], TIED, reverse=True)
    assert (absent.dropped, absent.checks) == ({}, ())


@pytest.mark.parametrize("tie", [False, None])
def test_an_untied_head_has_to_be_there(tie) -> None:
    with pytest.raises(SourceError, match=r"lm_head\.weight: missing"):
        planned(hf(TIED), {**TIED, "tie_word_embeddings": tie})


def test_a_tie_in_a_table_of_ones_own() -> None:
    family = table(Tied("b", "b", "a"), Rule("a", "a"))
    plan = planned([TensorSpec("a", F32, (1,))], {}, family)
    assert [o.name for o in plan.outputs] == ["b", "a"]


# Drops ----------------------------------------------------------------------------------------------------------------


def test_training_state_is_dropped_on_the_way_back_and_listed() -> None:
    state = ["adam_m.model.norm_out.weight", "adam_v.x", "global_step", "learning_rate", "loss_scale", "epoch_num"]
    plan = planned([*ms(LLAMA), *(TensorSpec(n, F32, ()) for n in state)], LLAMA, reverse=True)
    assert sorted(plan.dropped) == sorted(state)
    assert {s.name for s in hf(LLAMA)} == {o.name for o in plan.outputs}
    assert all(plan.dropped.values())


#: What MindFormers' callbacks append, and what its networks hold besides parameters, by layer.
STATE_OF_A_RUN = [
    *("global_step", "epoch_num", "step_num", "global_batch_size", "learning_rate", "loss_scale", "scale_sense"),
    *("current_iterator_step", "last_overflow_iterator_step", "muon_m.decoder.layers.0.x", "accu_grads.model.x"),
    *("_device_local_norm", "_device_local_loss.0", "zeros_k_pe", "fi_parameter.0"),
]
BUFFERS = ["mlp.router.fi_accu", "mlp.router.expert_load", "mlp.tokens_per_expert", "attention.key_cache"]
BUFFERS += ["mlp.router.global_tokens_per_expert", "mlp.router.ga_steps", "core_attention.max_logits_val"]


@pytest.mark.parametrize("place", ["decoder.layers.1.", "mtp.layers.0.transformer_layer.", "model.layers.0."])
def test_what_training_adds_never_stops_the_way_back(place) -> None:
    state = [*STATE_OF_A_RUN, *(place + name for name in BUFFERS)]
    plan = planned([*ms(LLAMA), *(TensorSpec(n, F32, (3,)) for n in state)], LLAMA, reverse=True)
    assert sorted(plan.dropped) == sorted(state)
    assert {s.name for s in hf(LLAMA)} == {o.name for o in plan.outputs}


def test_a_name_that_only_begins_like_a_buffer_is_unknown() -> None:
    with pytest.raises(UnsupportedError, match=r"expert_loader: no rule matches"):
        planned([*ms(LLAMA), TensorSpec("model.layers.0.expert_loader", F32, (3,))], LLAMA, reverse=True)


def test_raw_keeps_training_state() -> None:
    plan = planned([TensorSpec("global_step", F32, ())], {}, RAW, reverse=True)
    assert [o.name for o in plan.outputs] == ["global_step"]
    assert plan.dropped == {}


def test_a_family_s_own_rule_for_training_state_comes_first() -> None:
    plan = planned([TensorSpec("global_step", F32, (1,))], {}, table(Rule("step", "global_step")), reverse=True)
    assert [o.name for o in plan.outputs] == ["step"]


def test_training_state_is_unknown_on_the_way_there() -> None:
    with pytest.raises(UnsupportedError, match="global_step: no rule matches"):
        planned([*hf(LLAMA), TensorSpec("global_step", F32, ())], LLAMA)


def test_rotary_buffers_are_dropped_with_the_reason() -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    plan = planned([*hf(LLAMA), TensorSpec(name, F32, (2,))], LLAMA)
    assert plan.dropped == {name: "computed from rope_theta"}


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL])
def test_reverse_forgotten_or_one_too_many_is_said(config) -> None:
    with pytest.raises(UsageError, match=r"MindSpore's names(.|\n)*add reverse=True"):
        planned(ms(config), config)
    with pytest.raises(UsageError, match=r"HuggingFace's names(.|\n)*omit reverse=True"):
        planned(hf(config), config, reverse=True)


def test_one_strange_name_is_not_the_other_direction() -> None:
    with pytest.raises(UnsupportedError, match="inv_freq: no rule matches"):
        strange = TensorSpec("model.layers.1.self_attn.rotary_emb.inv_freq", F32, (2,))
        planned([*ms(LLAMA), strange], LLAMA, reverse=True)


# The digest -----------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_know_how_the_source_is_sharded() -> None:
    specs = hf(MIXTRAL)
    plan = planned(catalog(specs), MIXTRAL)
    for source in (catalog(specs, 5), catalog(reversed(specs)), catalog(sorted(specs, key=lambda s: s.name), 3)):
        other = planned(source, MIXTRAL)
        assert other.digest == plan.digest
        assert [o.spec for o in other.outputs] == [o.spec for o in plan.outputs]


def test_the_digest_changes_with_everything_that_decides_the_output() -> None:
    specs = hf(LLAMA)
    taller = {**LLAMA, "vocab_size": 12}
    regrouped = {**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12}
    assert {s.shape for s in hf(regrouped)} == {s.shape for s in specs}  # same shapes, other rows
    plans = [
        planned(specs, LLAMA),
        planned(specs, LLAMA, dtype=F32),
        planned(specs, LLAMA, dtype=BF16),
        planned(specs, LLAMA, qkv_concat=True),
        planned(specs, LLAMA, qkv_concat="blocks"),
        planned(specs, regrouped, qkv_concat=True),
        planned(hf(taller), taller),
        planned(retyped(specs, "norm", "F32"), LLAMA),
        planned(specs, LLAMA, RAW),
        planned(specs, LLAMA, RAW, reverse=True),
        planned([*specs, TensorSpec("model.layers.0.self_attn.rotary_emb.inv_freq", F32, (2,))], LLAMA),
        planned([TensorSpec(s.name + "x", s.dtype, s.shape) for s in specs], LLAMA, RAW),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)


@pytest.mark.parametrize("name", ["a", 'quoted"', "back\\slash", "ü", "line\nbreak", "\ud800"])
def test_the_digest_is_that_of_the_json_of_each_part(name: str) -> None:
    """Whatever way it is written: journals and manifests of earlier versions have it."""
    mapping = planned([TensorSpec(name, F32, (2, 3)), *(TensorSpec(f"x.{n}", F32, (1,)) for n in range(1500))], {}, RAW)
    parts: list[object] = [["raw", "forward", None], [["quantised", "dequantise"]], []]
    for output in mapping.outputs:
        shape = output.view.shape
        leaf = ["Stored", shape, "F32", [output.name, "F32", shape]]
        parts.append([output.name, "F32", shape, [output.name], leaf])
    text = "".join(json.dumps(part, separators=(",", ":")) for part in parts)
    assert mapping.digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_covers_the_layout_itself() -> None:
    specs = [TensorSpec(n, F32, (4, 2)) for n in "ab"]
    transforms = [Interleave(("1", "1")), Interleave(("1", "1"), None), Interleave(("1", "1"), "2")]
    plans = [planned(specs, {}, table(Rule(("a", "b"), "c", transform=transform))) for transform in transforms]
    assert {plan.outputs[0].spec.shape for plan in plans} == {(8, 2)}
    assert len({plan.digest for plan in plans}) == 3


def test_dropping_for_another_reason_is_another_plan() -> None:
    specs = [TensorSpec(n, F32, (1,)) for n in "ab"]
    digests = {planned(specs, {}, table(Rule("a", "a"), Drop(why, hf=("b",)))).digest for why in ("old", "unused")}
    assert len(digests) == 2


# Options on the way back ----------------------------------------------------------------------------------------------


@pytest.fixture
def mindspore(tmp_path):
    """A MindSpore checkpoint as somebody else would have made it: no manifest; the config only where it is asked."""

    def make(config, with_config: bool = True, **options):
        samples.write_hf(tmp_path / "hf", config, hf(config), 1 << 20)
        folder = tmp_path / "ms"
        streamconv.convert(tmp_path / "hf", folder, options=options, max_mem="8G")
        (folder / "streamconv.json").unlink()
        if not with_config:
            (folder / "config.json").unlink()
        return folder

    return make


def back(folder, **arguments):
    return streamconv.plan(folder, folder.parent / "back", reverse=True, max_mem="8G", **arguments)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("use_gmm", [False, True])
def test_shapes_tell_whether_experts_are_transposed(mindspore, use_gmm, with_config) -> None:
    folder = mindspore(MIXTRAL, with_config, use_gmm=use_gmm)
    conversion = back(folder, model="mixtral")
    assert conversion.mapping.options["use_gmm"] is use_gmm
    assert {o.name: o.spec.shape for o in conversion.mapping.outputs} == {s.name: s.shape for s in hf(MIXTRAL)}


def test_square_experts_do_not_tell(mindspore) -> None:
    folder = mindspore({**MIXTRAL, "intermediate_size": 20})
    with pytest.raises(UsageError, match=r'say which: options={"use_gmm": "false"} or options={"use_gmm": "true"} \('):
        back(folder)
    assert back(folder, options={"use_gmm": True}).mapping.options["use_gmm"] is True
    assert back(folder, options={"use_gmm": "false"}).mapping.options["use_gmm"] is False


def test_names_tell_that_nothing_is_fused(mindspore) -> None:
    assert back(mindspore(LLAMA)).mapping.options["qkv_concat"] is False


@pytest.mark.parametrize("config", [LLAMA, {**LLAMA, "num_key_value_heads": 6}, {**LLAMA, "num_key_value_heads": 1}])
def test_fused_tensors_may_be_grouped_or_in_blocks(mindspore, config) -> None:
    folder = mindspore(config, qkv_concat=True)
    with pytest.raises(UsageError, match=r'options={"qkv_concat": "true"} or options={"qkv_concat": "blocks"} \('):
        back(folder)
    assert back(folder, options={"qkv_concat": "blocks"}).mapping.options["qkv_concat"] == "blocks"


def test_fused_tensors_need_the_config(mindspore, tmp_path) -> None:
    folder = mindspore(LLAMA, with_config=False, qkv_concat=True)
    with pytest.raises(UsageError, match=r'num_attention_heads(.|\n)*config="FILE"'):
        back(folder, model="llama")
    with pytest.raises(UsageError, match=r'num_attention_heads(.|\n)*config="FILE"'):
        back(folder, model="llama", options={"qkv_concat": True})
    with pytest.raises(UsageError, match='config="FILE"'):
        back(folder)
    conversion = back(folder, config=tmp_path / "hf", options={"qkv_concat": True})
    assert len(conversion.mapping.outputs) == len(hf(LLAMA))


def test_the_manifest_tells_every_option(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    streamconv.convert(tmp_path / "hf", tmp_path / "ms.ckpt", options={"qkv_concat": "blocks"}, max_mem="8G")
    again = back(tmp_path / "ms.ckpt", config=tmp_path / "hf")
    assert again.mapping.options["qkv_concat"] == "blocks"
    shutil.move(tmp_path / "ms.ckpt.streamconv.json", tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match=r'options={"qkv_concat": "true"} or options={"qkv_concat": "blocks"} \('):
        back(tmp_path / "ms.ckpt", config=tmp_path / "hf")


def test_where_no_value_fits_the_nearest_one_says_why(mindspore) -> None:
    folder = mindspore(LLAMA)
    other = folder.parent / "other.json"
    other.write_text(json.dumps({**LLAMA, "intermediate_size": 15}))
    with pytest.raises(UnsupportedError, match=r"6 tensors do not fit.*\n.*feed_forward\.w1") as caught:
        back(folder, config=other)
    assert "w_qkv" not in str(caught.value)
