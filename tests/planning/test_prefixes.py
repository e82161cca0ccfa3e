"""Names with a prefix too many or too few: read as the model's, and the plan says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamconv
from streamconv import testing as samples
from streamconv.errors import SourceError, UnsupportedError
from streamconv.formats.catalog import open_catalog
from streamconv.tensors.refs import TensorSpec
from support import golden
from support.helpers import LLAMA, hf

TIED: dict[str, Any] = {**LLAMA, "tie_word_embeddings": True}
Rename = Callable[[str], str]

#: How a wrapper or a bare model spells names, and what the plan says.
KINDS: dict[str, tuple[Rename, str]] = {
    "torch.compile": (lambda n: "_orig_mod." + n, "names are read without _orig_mod. (torch.compile)"),
    "DDP": (lambda n: "module." + n, "names are read without module. (DistributedDataParallel)"),
    "both": (
        lambda n: "module._orig_mod." + n,
        "names are read without _orig_mod. (torch.compile) and module. (DistributedDataParallel)",
    ),
    "FSDP": (
        lambda n: n.replace("layers.0.", "layers.0._fsdp_wrapped_module.").replace("layers.1.", "layers.1._orig_mod."),
        "names are read without _orig_mod. (torch.compile) and _fsdp_wrapped_module. (FSDP)",
    ),
    "checkpointing": (
        lambda n: n.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
        "names are read without _checkpoint_wrapped_module. (activation checkpointing)",
    ),
    "doubled": (lambda n: n.replace("model.", "model.model."), "names are read without model."),
    "nested": (lambda n: "policy.actor." + n, "names are read without policy.actor."),
    "bare": (lambda n: n.removeprefix("model."), "names are read with model. in front"),
    "bare in a wrapper": (
        lambda n: "module." + n.removeprefix("model."),
        "names are read without module. (DistributedDataParallel), and with model. in front",
    ),
    "bare in another": (lambda n: "net." + n.removeprefix("model."), "names are read without net., and with model."),
}


def stored(folder: Path, specs: list[TensorSpec], rename: Rename, config: dict[str, Any] = TIED) -> Path:
    """The bytes of these tensors under other names."""
    samples.write_hf(folder, config, [TensorSpec(rename(s.name), s.dtype, s.shape) for s in specs], 1 << 20)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_under_other_names(tmp_path, kind) -> None:
    rename, said = KINDS[kind]
    source = stored(tmp_path / "hf", hf(TIED), rename)
    plan = streamconv.plan(source, tmp_path / "ms", max_mem="8G")
    assert f"note     {said}" in str(plan)
    assert [note for note in plan.to_json()["notes"] if note.startswith(said)]
    plan.run()
    streamconv.verify(tmp_path / "ms", source=source, max_mem="8G")
    plain = {rename(name): name for name in (spec.name for spec in hf(TIED))}
    streamconv.convert(tmp_path / "ms", tmp_path / "back", reverse=True, max_mem="8G")
    assert golden.found(tmp_path / "back") == {plain[n]: t for n, t in golden.found(source).items()}


@pytest.mark.parametrize("wrapper", ["module.", "net."])
def test_a_head_that_needs_no_prefix_gets_none(tmp_path, wrapper) -> None:
    """A model that is bare but for its head, in a wrapper: only the head has its whole name."""
    source = stored(tmp_path / "hf", hf(LLAMA), lambda name: wrapper + name.removeprefix("model."), LLAMA)
    plan = streamconv.plan(source, tmp_path / "ms", max_mem="8G")
    assert "and with model. in front" in str(plan)
    assert "lm_head.weight" in {output.name for output in plan.outputs}


def test_mindspore_s_names_in_a_cell(tmp_path) -> None:
    streamconv.convert(stored(tmp_path / "hf", hf(LLAMA), str, LLAMA), tmp_path / "ms", max_mem="8G")
    refs = open_catalog(tmp_path / "ms").values()
    specs = [TensorSpec("network." + ref.name, ref.dtype, ref.shape) for ref in refs]
    source = stored(tmp_path / "trained", specs, str, LLAMA)
    plan = streamconv.plan(source, tmp_path / "back", reverse=True, max_mem="8G")
    assert "note     names are read without network." in str(plan)
    assert {o.name for o in plan.outputs} == {spec.name for spec in hf(LLAMA)}


def test_the_model_s_own_names_are_read_as_they_are(tmp_path) -> None:
    plan = streamconv.plan(stored(tmp_path / "hf", hf(TIED), str), tmp_path / "ms", max_mem="8G")
    assert "names are read" not in str(plan)
    assert plan.to_json()["notes"] == []


def test_raw_keeps_what_wrappers_write(tmp_path) -> None:
    source = stored(tmp_path / "hf", hf(TIED), KINDS["DDP"][0])
    streamconv.convert(source, tmp_path / "raw", model="raw", max_mem="8G")
    assert golden.found(tmp_path / "raw").keys() == golden.found(source).keys()


def test_what_does_not_fit_is_listed_under_the_names_as_read(tmp_path) -> None:
    specs = [*hf(TIED)[:-2], TensorSpec("model.layers.0.strange.weight", hf(TIED)[0].dtype, (3,))]
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.strange\.weight: no rule matches") as error:
        streamconv.plan(stored(tmp_path / "hf", specs, KINDS["DDP"][0]), tmp_path / "ms", max_mem="8G")
    assert "names are read without module." in str(error.value)
    with pytest.raises(SourceError, match=r"layers\.1\.input_layernorm\.weight: missing"):
        streamconv.plan(stored(tmp_path / "less", hf(TIED)[:-5], KINDS["DDP"][0]), tmp_path / "ms", max_mem="8G")


def test_two_tensors_never_get_one_name(tmp_path) -> None:
    """A model and its moving average: which one is meant?"""
    twice = [*hf(TIED), *(TensorSpec("module." + s.name, s.dtype, s.shape) for s in hf(TIED))]
    with pytest.raises(UnsupportedError, match=r"module\.model\.\S+: no rule matches") as error:
        streamconv.plan(stored(tmp_path / "hf", twice, str), tmp_path / "ms", max_mem="8G")
    assert "names are read" not in str(error.value)


def test_a_prefix_that_few_names_have_is_none(tmp_path) -> None:
    """One tensor of something else does not stand in for one that the model lacks."""
    specs = [s if s.name != "model.norm.weight" else TensorSpec("ema.norm.weight", s.dtype, s.shape) for s in hf(TIED)]
    with pytest.raises(UnsupportedError, match=r"ema\.norm\.weight: no rule matches"):
        streamconv.plan(stored(tmp_path / "hf", specs, str), tmp_path / "ms", max_mem="8G")


def test_other_models_stay_unknown(tmp_path) -> None:
    specs = [TensorSpec(f"bert.encoder.{n}.output.weight", hf(TIED)[0].dtype, (4, 4)) for n in range(9)]
    with pytest.raises(UnsupportedError, match="no rule matches") as error:
        streamconv.plan(stored(tmp_path / "hf", specs, str), tmp_path / "ms", max_mem="8G")
    assert "names are read" not in str(error.value)


def test_an_unknown_model_is_told_which_families_have_its_names(tmp_path) -> None:
    for number, (model_type, rename) in enumerate((("strange", str), (None, str), ("strange", KINDS["bare"][0]))):
        source = stored(tmp_path / f"hf{number}", hf(TIED), rename)
        config = {key: value for key, value in TIED.items() if key != "model_type"}
        (source / "config.json").write_text(
            json.dumps({**config, **({"model_type": model_type} if model_type else {})})
        )
        with pytest.raises(
            (UnsupportedError, streamconv.UsageError), match="names of its tensors are those of"
        ) as error:
            streamconv.plan(source, tmp_path / "ms", max_mem="8G")
        assert "llama" in error.value.message
        assert 'model="NAME"' in error.value.hint


def test_an_unknown_model_of_one_family_is_told_the_flag(tmp_path) -> None:
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 2}
    source = stored(tmp_path / "hf", hf(config), str, {**config, "model_type": "strange"})
    with pytest.raises(UnsupportedError, match=r'are those of mixtral\n.*give model="mixtral"'):
        streamconv.plan(source, tmp_path / "ms", max_mem="8G")


def test_a_family_whose_layers_need_more_is_not_suggested(tmp_path) -> None:
    """qwen3 knows all of llama's names, and has norms of the heads besides."""
    source = stored(tmp_path / "hf", hf(LLAMA), str, {**LLAMA, "model_type": "strange"})
    with pytest.raises(UnsupportedError, match=r"names of its tensors are those of .*llama") as error:
        streamconv.plan(source, tmp_path / "ms", max_mem="8G")
    assert "qwen3" not in error.value.message
    config = {**LLAMA, "model_type": "qwen3", "head_dim": 4}
    source = stored(tmp_path / "hf3", hf(config), str, {**config, "model_type": "strange"})
    with pytest.raises(UnsupportedError, match=r"names of its tensors are those of .*qwen3"):
        streamconv.plan(source, tmp_path / "ms", max_mem="8G")


@pytest.mark.parametrize("model_type", [None, "kimi_k2_next"])
def test_the_architecture_tells_where_the_type_does_not(tmp_path, model_type) -> None:
    config = {key: value for key, value in LLAMA.items() if key != "model_type"}
    config |= {"architectures": ["LlamaForCausalLM"], **({"model_type": model_type} if model_type else {})}
    plan = streamconv.plan(stored(tmp_path / "hf", hf(LLAMA), str, config), tmp_path / "ms", max_mem="8G")
    assert 'model    llama (from config.json: architectures "LlamaForCausalLM")' in str(plan)
