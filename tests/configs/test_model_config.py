"""config.json and what goes along with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamconv.configs import model_config as configs
from streamconv.configs.model_config import ModelConfig, load, updated
from streamconv.errors import SourceError, UsageError
from streamconv.tensors.dtypes import BF16, F16, F32


def test_beside_the_weights_given_or_none(tmp_path) -> None:
    beside, elsewhere = tmp_path / "a", tmp_path / "b"
    beside.mkdir()
    elsewhere.mkdir()
    assert load(beside, None) == ModelConfig()
    (beside / "config.json").write_text('{"hidden_size": 1}')
    (elsewhere / "config.json").write_text('{"hidden_size": 2}')
    (elsewhere / "other.json").write_text('{"hidden_size": 3}')
    assert load(beside, None).values == {"hidden_size": 1}
    assert load(beside, elsewhere).values == {"hidden_size": 2}
    assert load(beside, elsewhere / "other.json").values == {"hidden_size": 3}


def test_one_that_is_given_has_to_be_there(tmp_path) -> None:
    for given in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(UsageError, match=r'config="/.*": no such file or directory'):
            load(tmp_path, given)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"1", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=lambda text: text[:8].hex(),
)
def test_what_is_no_json_object_is_refused(tmp_path, text) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(SourceError, match=r"config\.json"):
        load(tmp_path, None)


def test_a_pointer_of_git_lfs_is_no_config(tmp_path) -> None:
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(SourceError, match=r"git-lfs pointer.*\n.*git lfs pull"):
        load(tmp_path, None)


def test_one_that_is_too_large_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(configs, "LIMIT", 100)
    (tmp_path / "config.json").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(SourceError, match="larger than 100 bytes"):
        load(tmp_path, None)


def test_one_that_cannot_be_read_is_refused(tmp_path) -> None:
    """Byte 0 of a process's memory is nobody's to read, not even root's."""
    with pytest.raises(SourceError, match="cannot read /proc/self/mem: "):
        load(tmp_path, Path("/proc/self/mem"))


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ({"torch_dtype": "float32", "a": 1}, BF16, {"torch_dtype": "bfloat16", "a": 1}),
        ({"dtype": "float32", "a": 1}, F16, {"dtype": "float16", "a": 1}),
        ({"torch_dtype": "a", "dtype": "b"}, F32, {"torch_dtype": "float32", "dtype": "float32"}),
        ({"a": 1}, F32, {"a": 1, "torch_dtype": "float32"}),
        ({"torch_dtype": "float16"}, None, {"torch_dtype": "float16"}),
        ({"a": None, "ü": [1.5, {"b": True}]}, None, {"a": None, "ü": [1.5, {"b": True}]}),
        ({"half": "\ud800"}, None, {"half": "\ud800"}),
    ],
)
def test_the_copy_says_the_dtype_that_was_asked(values, dtype, expected) -> None:
    before = dict(values)
    data = updated(ModelConfig(None, values), dtype, False, {})
    assert json.loads(data) == expected
    assert list(json.loads(data)) == list(expected)
    assert values == before


def test_only_a_section_s_float_dtype_is_that_of_its_weights() -> None:
    """A cache's is its own, and one that says nothing is left to say nothing; on top the weights' is always said."""
    sections = {
        "text_config": {"dtype": "float32"},
        "vision_config": {"torch_dtype": "torch.float16"},
        "kv_cache_config": {"dtype": "int8"},
        "generation_config": {"dtype": None},
        "audio_config": {"dtype": "auto"},
        "odd_config": {"dtype": ["float32"]},
    }
    said = json.loads(updated(ModelConfig(None, {**sections, "dtype": None}), BF16, False, {}))
    assert said == {
        **sections,
        "text_config": {"dtype": "bfloat16"},
        "vision_config": {"torch_dtype": "bfloat16"},
        "dtype": "bfloat16",
    }
    cache = {"kv_cache_config": {"dtype": "int8"}}
    said = json.loads(updated(ModelConfig(None, cache), BF16, False, {}))
    assert said == {**cache, "torch_dtype": "bfloat16"}


def test_the_copy_says_what_became_true_of_the_model() -> None:
    values = {"quantization_config": {"quant_method": "fp8"}, "num_nextn_predict_layers": 1, "a": 1}
    settled = {"num_nextn_predict_layers": 0, "unheard_of": 2}
    assert json.loads(updated(ModelConfig(None, values), None, True, settled)) == {
        "num_nextn_predict_layers": 0,
        "a": 1,
    }
    assert json.loads(updated(ModelConfig(None, values), None, False, {})) == values
