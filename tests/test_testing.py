"""Samples: the checkpoints that tests and demo make are what transformers itself would write."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import streamconv
from streamconv import testing as samples
from streamconv.families import registry as families
from streamconv.formats.catalog import open_catalog
from streamconv.planning.mapping import Request, map_tensors
from streamconv.rules.statements import Direction
from streamconv.tensors import dtypes
from streamconv.tensors.dtypes import BF16, F16, F32, F64
from support import golden
from support.helpers import LLAMA, MIXTRAL, hf


@pytest.fixture
def saved(tmp_path):
    """A tiny model as transformers writes it: name → (shape, dtype) of what is on disk."""

    def save(config, shard="5GB"):
        transformers = pytest.importorskip("transformers")
        kind = {"llama": "Llama", "mixtral": "Mixtral"}[config["model_type"]]
        arguments = {k: v for k, v in config.items() if k not in ("model_type", "torch_dtype")}
        own = getattr(transformers, kind + "Config")(**arguments)
        model = getattr(transformers, kind + "ForCausalLM")(own)
        model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
        return tmp_path / "saved"

    return save


#: transformers wants hidden to be a multiple of heads, though nothing else does.
DIVISIBLE = {**LLAMA, "hidden_size": 18}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "optional"),
    [
        (DIVISIBLE, False),
        ({**DIVISIBLE, "attention_bias": True, "mlp_bias": True}, True),
        ({**DIVISIBLE, "tie_word_embeddings": True}, False),
        ({**DIVISIBLE, "head_dim": 8, "num_key_value_heads": 1}, False),
        (MIXTRAL, False),
        ({**MIXTRAL, "num_local_experts": 7, "num_key_value_heads": 6}, False),
    ],
    ids=["llama", "biases", "tied", "one group", "mixtral", "seven experts"],
)
def test_names_and_shapes_are_those_of_transformers(saved, config, optional) -> None:
    catalog = open_catalog(saved(config))
    assert {s.name: s.shape for s in hf(config, optional=optional)} == {n: r.shape for n, r in catalog.items()}


@pytest.mark.slow
def test_what_transformers_saves_converts_there_and_back(saved, tmp_path) -> None:
    source = saved(MIXTRAL, "5KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    streamconv.convert(source, tmp_path / "ms", options={"use_gmm": True}, max_mem="8G")
    streamconv.convert(tmp_path / "ms", tmp_path / "back", reverse=True, max_mem="8G")
    assert golden.found(tmp_path / "back") == golden.found(source)


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL], ids=["llama", "mixtral"])
def test_a_sample_is_planned_without_a_word_of_complaint(tmp_path, config) -> None:
    family = families.find(config["model_type"])
    samples.write_hf(tmp_path / "hf", config, hf(config), 1000)
    options = {option.name: option.default for option in family.options}
    catalog = open_catalog(tmp_path / "hf")
    assert map_tensors(Request(catalog, family, config, Direction.FORWARD), options).dropped == {}
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == config


def test_the_optional_tensors_are_there_when_asked_for() -> None:
    plain, biased = ({s.name for s in hf(LLAMA, optional=o)} for o in (False, True))
    assert plain < biased
    assert all(name.endswith(".bias") for name in biased - plain)
    assert len(biased - plain) == 2 * 7


def test_options_choose_the_table_but_not_the_hf_side() -> None:
    for value in (False, True, "blocks"):
        assert {s.name: s.shape for s in hf(LLAMA, options={"qkv_concat": value})} == {
            s.name: s.shape for s in hf(LLAMA)
        }


def test_one_shard_or_several(tmp_path) -> None:
    samples.write_hf(tmp_path / "one", LLAMA, hf(LLAMA), 1 << 20)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {"config.json", "model.safetensors"}
    with safe_open(tmp_path / "one" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    samples.write_hf(tmp_path / "many", LLAMA, hf(LLAMA), 2000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {s.name for s in hf(LLAMA)}
    assert len(open_catalog(tmp_path / "many").files) == len(set(index["weight_map"].values())) > 1


def test_the_same_seed_gives_the_same_bytes(tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        samples.write_hf(tmp_path / name, LLAMA, hf(LLAMA), 1 << 20, seed)
    a, b, c = (golden.found(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a)
    assert len({digest for _, _, digest in a.values()}) == len(a)


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64])
def test_values_are_of_the_size_of_weights(dtype: dtypes.DType) -> None:
    values = samples.random_values(np.random.default_rng(0), 10_000, dtype)
    assert values.dtype == (ml_dtypes.bfloat16 if dtype == BF16 else np.dtype(dtype.numpy))
    assert 0.015 < values.astype(np.float64).std() < 0.025
