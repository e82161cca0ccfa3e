"""How PEFT scales an adapter, and what MindFormers has to be told, or cannot do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.configs.peft_scale import unsupported, warnings
from streamconv.errors import UnsupportedError
from streamconv.tensors.dtypes import F32
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.helpers import LLAMA

BASE: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
HEADS, KV = 6 * 4, 3 * 4


def specs(rank: int = 16, odd: int = 16) -> list[TensorSpec]:
    """An adapter of q and v in two layers; `odd` is the rank of the last."""
    found = []
    for layer in range(2):
        for module, rows in (("q_proj", HEADS), ("v_proj", KV)):
            here = odd if (layer, module) == (1, "v_proj") else rank
            at = f"base_model.model.model.layers.{layer}.self_attn.{module}."
            found += [
                TensorSpec(at + "lora_A.weight", F32, (here, 20)),
                TensorSpec(at + "lora_B.weight", F32, (rows, here)),
            ]
    return found


def adapter(folder: Path, tensors: list[TensorSpec] | None = None, **more: Any) -> Path:
    samples.write_hf(folder, {}, tensors or specs(), 1 << 20)
    for file in folder.iterdir():
        file.unlink() if file.suffix == ".json" else file.rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**BASE, **more}))
    (folder.parent / "base.json").write_text(json.dumps(LLAMA))
    return folder


def plan(source: Path, **more: Any) -> streamconv.Plan:
    arguments = {"model": "llama", "config": source.parent / "base.json", "max_mem": "8G", **more}
    return streamconv.plan(source, source.parent / "out", **arguments)


def test_the_scale_that_both_have_needs_no_word() -> None:
    assert list(warnings(BASE, specs())) == []
    assert list(warnings({**BASE, "alpha_pattern": {"q_proj": 16}, "rank_pattern": {}}, specs())) == []


@pytest.mark.parametrize(
    ("more", "alpha"),
    [
        ({"use_rslora": True}, "64"),
        ({"use_rslora": True, "lora_alpha": 8}, "32"),
        ({"alpha_pattern": {"q_proj": 32, "v_proj": 32}}, "32"),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.[qv]_proj": 4}}, "4"),
    ],
)
def test_another_scale_is_said_with_the_number_for_mindformers(tmp_path, more, alpha) -> None:
    planned = plan(adapter(tmp_path / "peft", **more))
    (said,) = planned.warnings
    assert f"set lora_alpha to {alpha}, with lora_rank 16" in said
    assert said in str(planned)
    assert planned.to_json()["warnings"] == [said]
    report = planned.run()
    assert f"warning: {said}" in str(report)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 64}}, r"layers\.1\.self_attn\.q_proj by 4 .*alpha_pattern"),
        ({"alpha_pattern": {"v_proj": 1}, "use_rslora": True}, "alpha_pattern"),
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "ADALORA"}, "peft_type = ADALORA"),
        ({"bias": "lora_only"}, "bias = lora_only"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": "16"}}, "alpha_pattern"),
        ({"alpha_pattern": {"no_such": None}}, "alpha_pattern"),
        ({"r": 8}, "r = 8, but the adapter's tensors have rank 16"),
        ({"r": "16"}, "r = 16"),
        ({"alpha_pattern": {"(a+)+": 3}}, "no pattern"),
        ({"alpha_pattern": {"[": 3}}, "no pattern"),
        ({"alpha_pattern": {"x" * 101: 3}}, "no pattern"),
    ],
)
def test_what_mindformers_cannot_do_is_refused_by_name(tmp_path, more, said) -> None:
    with pytest.raises(UnsupportedError, match=said) as error:
        plan(adapter(tmp_path / "peft", **more))
    assert error.value.hint


def test_what_tensors_tell_first_is_refused_by_the_config_s_name(tmp_path) -> None:
    """Magnitudes, several ranks and whole modules have tensors that no rule knows: the config says what they are."""
    magnitude = TensorSpec("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", F32, (HEADS,))
    head = TensorSpec("base_model.model.lm_head.weight", F32, (11, 20))
    with pytest.raises(UnsupportedError, match="use_dora"):
        plan(adapter(tmp_path / "dora", [*specs(), magnitude], use_dora=True))
    with pytest.raises(UnsupportedError, match="modules_to_save"):
        plan(adapter(tmp_path / "whole", [*specs(), head], modules_to_save=["lm_head"]))
    with pytest.raises(UnsupportedError, match="rank_pattern"):
        plan(adapter(tmp_path / "ranks", specs(odd=8), rank_pattern={"layers.1.self_attn.v_proj": 8}))


def test_what_changes_nothing_or_the_base_is_said() -> None:
    assert "fan_in_fan_out is ignored" in next(warnings({**BASE, "fan_in_fan_out": True}, specs()))
    assert "PiSSA changed the base" in next(warnings({**BASE, "init_lora_weights": "pissa_niter_4"}, specs()))
    assert list(warnings({**BASE, "init_lora_weights": "gaussian"}, specs())) == []
    assert list(warnings({**BASE, "init_lora_weights": True}, specs())) == []


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 16}}], ids=repr)
@pytest.mark.parametrize("value", ["x", None, True, [], 1e999, 1 << 40])
def test_an_alpha_that_is_no_number_is_said(value, more) -> None:
    (said,) = warnings({**BASE, **more, "lora_alpha": value}, specs())
    assert "nothing tells lora_alpha" in said
    assert said == next(warnings({k: v for k, v in BASE.items() if k != "lora_alpha"}, specs())) or "no number" in said
    assert unsupported({**BASE, "lora_alpha": value}) == ""


def test_the_way_back_keeps_peft_s_scale_or_takes_mindformers(tmp_path) -> None:
    source = adapter(tmp_path / "peft", use_rslora=True)
    plan(source).run()
    back = {"model": "llama", "config": tmp_path / "base.json", "reverse": True, "max_mem": "8G"}
    streamconv.convert(tmp_path / "out", tmp_path / "back", **back)
    said = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (said["use_rslora"], said["lora_alpha"]) == (True, 16)
    streamconv.convert(tmp_path / "out", tmp_path / "told", **back, options={"lora_alpha": 64})
    said = json.loads((tmp_path / "told" / "adapter_config.json").read_text())
    assert ("use_rslora" in said, said["lora_alpha"]) == (False, 64)
    assert golden.found(tmp_path / "back") == golden.found(source)
