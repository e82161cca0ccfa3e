"""`models check`: what a family's author is told of a real checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.api import check
from streamconv.errors import UsageError
from streamconv.families import find
from streamconv.tensors.dtypes import BF16
from streamconv.tensors.refs import TensorSpec
from support import hostile, running
from support.helpers import LLAMA, hf
from support.running import run

HEAD = "from streamconv.families import *\n"
TABLE = """
def rules(config, options):
    return [{rules}]

FAMILY = Family("own", "a family of this test", rules{more})
"""


def checked(folder: Path, rules: str, names: dict[str, tuple[int, ...]], more: str = "") -> list[str]:
    (folder / "own.py").write_text(HEAD + TABLE.format(rules=rules, more=more))
    samples.write_hf(folder / "hf", {"layers": 2}, [TensorSpec(n, BF16, s) for n, s in names.items()], 1 << 20)
    return [("! " if f.is_error else "") + f.text.strip() for f in check(folder / "own.py", folder / "hf")]


def test_a_table_that_fits(tmp_path) -> None:
    said = checked(tmp_path, 'Rule("a", "x"), Rule("b", "y", None, Transpose())', {"a": (2,), "b": (2, 3)})
    assert said == ["no options:", "2 tensors -> 2 tensors; all come back"]


def test_what_no_rule_takes_and_what_is_missing(tmp_path) -> None:
    *_, last = checked(tmp_path, 'Rule("a", "x"), Rule("c", "y")', {"a": (2,), "b": (2, 3)})
    assert last.startswith("! 2 tensors do not fit the model:")
    assert "b: no rule matches" in last
    assert "c: missing" in last


def test_what_two_rules_take(tmp_path) -> None:
    rules = 'Rule("l.{i}.{k:a|b}", "m.{i}.{k:a|b}"), Rule("l.{i}.b", "n.{i}", optional=True)'
    said = checked(tmp_path, rules, {f"l.{i}.{k}": (2,) for i in range(2) for k in "ab"}, ', ranges={"i": "layers"}')
    assert "! ambiguous: l.0.b is matched by l.{i}.{k:a|b} and by l.{i}.b; l.1.b is matched by" in said[1]
    assert said[1].endswith("; the first rule of the table applies")


def test_what_does_not_come_back(tmp_path) -> None:
    """A word of the algebra whose inverse is none."""
    rules = 'Rule("a", "x", None, Wrong())'
    wrong = "class Wrong(Transform):\n    def apply(self, parts, sizes): return parts\n    inverse = Transpose()\n\n"
    (tmp_path / "own.py").write_text(HEAD + wrong + TABLE.format(rules=rules, more=""))
    samples.write_hf(tmp_path / "hf", {}, [TensorSpec("a", BF16, (2, 3))], 1 << 20)
    findings = list(check(tmp_path / "own.py", tmp_path / "hf"))
    assert [f.text for f in findings if f.is_error] == ["  not invertible: a comes back as [3, 2], and was [2, 3]"]


def test_what_is_dropped_and_what_the_way_back_has_to_be_told(tmp_path) -> None:
    rules = (
        'Rule("a", "x", None, Transpose() if options["turned"] else Identity()), '
        'Drop("computed from the config", hf=("inv_freq",))'
    )
    more = ', options=(Option("turned", (False, True), "a on its side"),)'
    said = checked(tmp_path, rules, {"a": (3, 2), "inv_freq": (4,)}, more)
    assert said[0] == "turned=false:"
    assert said[1] == "dropped: inv_freq (computed from the config)"
    assert said[2].startswith("in reverse, without a manifest: neither names nor shapes tell how the source is ")
    assert 'options={"turned": "false"} or options={"turned": "true"} (a on its side)' in said[2]
    assert said[3] == "2 tensors -> 1 tensor; all but 1 come back"
    assert said[4] == "turned=true:"


def test_a_known_family_by_its_name(tmp_path) -> None:
    samples.write_hf(tmp_path / "hf", LLAMA, hf(LLAMA), 1 << 20)
    said = list(check("llama", tmp_path / "hf"))
    assert not [finding for finding in said if finding.is_error]
    assert [f.text for f in said if f.text.endswith(":")] == [
        f"qkv_concat={value}, is_lora=false, lora_names=lora_a:" for value in ("false", "true", "blocks")
    ]
    with pytest.raises(UsageError, match="unknown model 'lama'\nhint: did you mean llama"):
        check("lama", tmp_path / "hf")


def errors(family: str, source: Path) -> list[str]:
    return [finding.text for finding in check(family, source) if finding.is_error]


def test_names_in_a_wrapper_fit_as_they_do_in_a_conversion(tmp_path) -> None:
    specs = [TensorSpec(f"module.{s.name}", s.dtype, s.shape) for s in hf(LLAMA)]
    samples.write_hf(tmp_path / "hf", LLAMA, specs, 1 << 20)
    assert errors("llama", tmp_path / "hf") == []
    assert any("names are read without module." in f.text for f in check("llama", tmp_path / "hf"))


def test_fused_experts_fit_as_they_do_in_a_conversion(tmp_path) -> None:
    config = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 3, "moe_intermediate_size": 6}
    experts = ".mlp.experts."
    specs = [s for s in samples.hf_specs(find("qwen3_moe"), config, {}) if experts not in s.name]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}{experts}"
        specs += [TensorSpec(at + "gate_up_proj", BF16, (3, 12, 20)), TensorSpec(at + "down_proj", BF16, (3, 20, 6))]
    samples.write_hf(tmp_path / "hf", config, specs, 1 << 20)
    assert errors("qwen3_moe", tmp_path / "hf") == []


def test_scales_of_fp8_do_not_come_back_on_purpose(tmp_path) -> None:
    config = {**LLAMA, "quantization_config": {"weight_block_size": [128, 128]}}
    samples.write_hf(tmp_path / "hf", config, samples.fp8_specs(hf(LLAMA)), 1 << 20)
    assert errors("llama", tmp_path / "hf") == []
    assert any(
        "weights dequantised, FP8 (E4M3), blocks of 128 x 128" in finding.text
        for finding in check("llama", tmp_path / "hf")
    )


@pytest.mark.slow
def test_the_command_and_its_exit_code(tmp_path) -> None:
    running.tiny(tmp_path / "hf")
    fits = run("models", "check", "llama", "hf", cwd=tmp_path)
    assert fits.code == 0
    assert "all come back" in fits.out
    wrong = run("models", "check", "mixtral", "hf", cwd=tmp_path)
    assert wrong.code == 4
    assert "no rule matches" in wrong.out
    assert "the family does not fit hf: 2 findings" in wrong.err
    assert run("models", "check", "llama", cwd=tmp_path).code == 2
    assert run("models", "one", "two", cwd=tmp_path).code == 2
    for words, said in (
        (("--config", "x"), "--config has no effect without check\nhint: omit --config\n"),
        (("--max-mem", "1G"), "--max-mem has no effect without check\nhint: omit --max-mem\n"),
        (("check", "llama", "hf", "--json"), "models check does not take --json\nhint: omit --json\n"),
    ):
        refused = run("models", *words, cwd=tmp_path)
        assert refused.code == 2
        assert said in refused.err
    (tmp_path / "long.safetensors").write_bytes(hostile.encode({f"x{n}": {} for n in range(500_000)}))
    little = run("models", "check", "raw", "long.safetensors", "--max-mem", "96M", cwd=tmp_path)
    assert little.code == 6
    assert "hint: give --max-mem " in little.err
    assert streamconv.open(tmp_path / "hf")
