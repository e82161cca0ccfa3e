"""Every source tensor to its rule; what is unknown, one too many, or missing."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from streamconv.errors import SourceError, UnsupportedError
from streamconv.families import registry as families
from streamconv.planning import matching
from streamconv.rules.sizes import Ranges, Sizes
from streamconv.rules.statements import Rule, Side
from streamconv.rules.table import Table
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support.helpers import LLAMA, MIXTRAL, catalog, hf, ms, planned


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, dtypes.BF16, shape)


def without(specs, *names: str):
    kept = [s for s in specs if s.name not in names]
    assert len(kept) == len(specs) - len(names)
    return kept


def findings(kind, specs, config, **arguments) -> list[str]:
    """The lines of the one error that planning raises."""
    with pytest.raises(kind) as caught:
        planned(specs, config, **arguments)
    lines = str(caught.value).splitlines()
    assert lines[0] == ("1 tensor does" if len(lines) == 3 else f"{len(lines) - 2} tensors do") + " not fit the model:"
    return [line.strip() for line in lines[1:-1]]


def test_members_of_a_rule_come_together_whatever_their_order() -> None:
    names = [f"l.{layer}.e.{expert}.{w}" for expert in (2, 0, 1) for w in "ba" for layer in (1, 0)]
    rule = Rule(("l.{layer}.e.{expert}.a", "l.{layer}.e.{expert}.b"), "l.{layer}.ab")
    table = Table([rule], Side.HF, Ranges({}, Sizes({}, {})))
    matches = matching.match_names(catalog(spec(n, 1) for n in names), table)
    assert [a.values for a in matches.applications] == [(1,), (0,)]
    for application in matches.applications:
        (layer,) = application.values
        expected = [f"l.{layer}.e.{expert}.{w}" for w in "ab" for expert in range(3)]
        assert [ref.name for ref in application.refs()] == expected


def test_counts_come_from_names_where_the_config_says_nothing() -> None:
    names = ["l.0.e.0.a", "l.10.e.4.a", "l.9.e.1.a"]
    sizes = Sizes({"layers": "n_layers", "experts": "n_experts"}, {"n_experts": 8})
    ranges = Ranges({"layer": "layers", "expert": "experts"}, sizes)
    rule = Rule("l.{layer}.e.{expert}.a", "l.{layer}.x")
    table = Table([rule], Side.HF, ranges)
    matches = matching.match_names(catalog(spec(n, 1) for n in names), table)
    matching.learn_counts(matches, table)
    assert (sizes.get("layers"), sizes.get("experts")) == (11, 8)


def test_unknown_tensors_are_listed_all_at_once_each_with_the_closest_pattern() -> None:
    strange = [
        spec("model.layers.0.self_attn.q_pruj.weight", 24, 20),
        spec("model.layer.1.mlp.up_proj.weight", 14, 20),
        spec("\x1b[31mzzz\x1b[0m"),
    ]
    lines = findings(UnsupportedError, [*hf(LLAMA), *strange], LLAMA)
    assert lines == [
        "model.layers.0.self_attn.q_pruj.weight: no rule matches; closest: "
        "model.layers.{layer}.self_attn.q_proj.weight",
        "model.layer.1.mlp.up_proj.weight: no rule matches; closest: model.layers.{layer}.mlp.up_proj.weight",
        r"\x1b[31mzzz\x1b[0m: no rule matches",
    ]


def test_missing_tensors_are_listed_all_at_once() -> None:
    gone = ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"]
    lines = findings(SourceError, without(hf(LLAMA), *gone), LLAMA)
    assert sorted(lines) == sorted(f"{name}: missing" for name in gone)


def test_unknown_and_missing_come_in_one_error() -> None:
    specs = [replace(s, name=s.name.replace("lm_head", "lm_haed")) for s in hf(LLAMA)]
    lines = findings(UnsupportedError, specs, LLAMA)
    assert lines == [
        "lm_haed.weight: no rule matches; closest: lm_head.weight",
        "lm_head.weight: missing",
    ]


def test_a_layer_in_the_middle_is_missed_even_without_a_config() -> None:
    specs = [s for s in hf({**LLAMA, "num_hidden_layers": 4}) if ".layers.2." not in s.name]
    lines = findings(SourceError, specs, {}, family=families.find("llama"))
    assert len(lines) == 9
    assert all(line.startswith("model.layers.2.") for line in lines)


def test_the_config_says_how_many_layers_there_have_to_be() -> None:
    lines = findings(SourceError, hf(LLAMA), {**LLAMA, "num_hidden_layers": 3})
    assert len(lines) == 9
    assert all(line.startswith("model.layers.2.") and line.endswith(": missing") for line in lines)


@pytest.mark.parametrize("options", [{}, {"qkv_concat": True}])
def test_layers_beyond_the_last_are_listed_every_tensor_of_them(options) -> None:
    extra = [s for s in hf({**LLAMA, "num_hidden_layers": 4}) if ".layers.3." in s.name]
    lines = findings(UnsupportedError, [*hf(LLAMA), *extra], LLAMA, **options)
    wrong = [line for line in lines if "no layer 3; the model has 2 (config: num_hidden_layers)" in line]
    assert sorted(line.split(":")[0] for line in wrong) == sorted(s.name for s in extra)


def test_experts_beyond_the_last_are_listed_every_one() -> None:
    more = {**MIXTRAL, "num_local_experts": 5}
    specs = [s for s in hf(more) if not s.name.endswith("gate.weight")]
    router = [s for s in hf(MIXTRAL) if s.name.endswith("gate.weight")]
    lines = findings(UnsupportedError, [*specs, *router], MIXTRAL)
    assert len(lines) == 2 * 2 * 3  # layers, experts too many, projections
    assert all(".experts.3." in line or ".experts.4." in line for line in lines)
    assert "no expert 4; the model has 3 (config: num_local_experts)" in lines[-1] + lines[0] + lines[1]


def test_one_expert_missing_in_the_middle() -> None:
    gone = "model.layers.1.block_sparse_moe.experts.1.w2.weight"
    assert findings(SourceError, without(hf(MIXTRAL), gone), MIXTRAL) == [f"{gone}: missing"]


def test_all_experts_missing_from_one_layer() -> None:
    specs = [s for s in hf(MIXTRAL) if ".layers.0.block_sparse_moe.experts" not in s.name]
    assert len(findings(SourceError, specs, MIXTRAL)) == 9


def test_the_names_tell_the_number_of_experts_but_the_router_has_to_agree() -> None:
    config = {k: v for k, v in MIXTRAL.items() if k != "num_local_experts"}
    specs = [s for s in hf(MIXTRAL) if ".experts.2." not in s.name]
    (first, second) = findings(UnsupportedError, specs, config)
    for layer, line in enumerate((first, second)):
        assert line.startswith(f"model.layers.{layer}.block_sparse_moe.gate.weight: shape [3, 20] does not fit")
        assert "experts is 2 (the tensors' names), not 3" in line


def test_biases_are_in_all_layers_or_in_none() -> None:
    specs = hf(LLAMA, optional=True)
    assert len(planned(specs, LLAMA).outputs) == len(specs)
    gone = "model.layers.1.self_attn.k_proj.bias"
    assert findings(SourceError, without(specs, gone), LLAMA) == [f"{gone}: missing"]
    assert findings(SourceError, without(specs, gone), LLAMA, qkv_concat=True) == [f"{gone}: missing"]


def test_a_bias_of_q_alone_may_be_there_but_cannot_be_fused() -> None:
    names = ("q_proj.bias",)
    specs = [s for s in hf(LLAMA, optional=True) if not s.name.endswith("bias") or s.name.endswith(names)]
    assert len(planned(specs, LLAMA).outputs) == len(specs)
    lines = findings(SourceError, specs, LLAMA, qkv_concat=True)
    assert sorted(lines) == [f"model.layers.{i}.self_attn.{p}_proj.bias: missing" for i in (0, 1) for p in "kv"]


def test_both_ways_miss_what_is_missing() -> None:
    gone = "model.layers.1.attention.w_qkv.weight"
    lines = findings(SourceError, without(ms(LLAMA, qkv_concat=True), gone), LLAMA, reverse=True, qkv_concat=True)
    assert lines == [f"{gone}: missing"]


def test_very_many_findings_are_counted_and_not_all_shown() -> None:
    with pytest.raises(SourceError, match="and 700 more") as caught:
        planned(hf(LLAMA), {**LLAMA, "num_hidden_layers": 102})
    assert len(str(caught.value).splitlines()) == 203
    assert str(caught.value).startswith("900 tensors do not fit")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_a_config_that_claims_a_billion_does_not_cost_a_billion(key) -> None:
    specs = [s for s in hf(MIXTRAL) if not s.name.endswith("gate.weight")]
    with pytest.raises(SourceError, match="at least 100000 tensors do not fit"):
        planned(specs, {**MIXTRAL, key: 10**9})


def test_a_name_that_claims_a_billion_does_not_cost_a_billion() -> None:
    config = {k: v for k, v in LLAMA.items() if k != "num_hidden_layers"}
    far = spec("model.layers.999999999.input_layernorm.weight", 20)
    with pytest.raises(SourceError, match="at least 100000 tensors do not fit"):
        planned([*hf(LLAMA), far], config)
