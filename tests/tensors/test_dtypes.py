"""The table of dtypes, by the words of those who name them."""

from __future__ import annotations

import pytest

from streamconv.errors import UnsupportedError, UsageError
from streamconv.tensors import dtypes
from streamconv.tensors.dtypes import BF16, F16, F32


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("fp32", F32),
        ("fp16", F16),
        ("bf16", BF16),
        ("float32", F32),
        ("float16", F16),
        ("bfloat16", BF16),
        (None, None),
    ],
)
def test_what_tensors_are_cast_to_may_be_named_as_in_config_json(word: str | None, dtype: object) -> None:
    assert dtypes.target(word) is dtype


@pytest.mark.parametrize("word", ["", "fp64", "float64", "BF16", "F32", "\x1b[31m"])
def test_other_words_are_refused_with_those_that_are_known(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        dtypes.target(word)
    assert caught.value.hint == "choose one of fp32, fp16, bf16, float32, float16, bfloat16"
    assert str(caught.value).startswith("unknown value for dtype: ")
    assert "\x1b" not in str(caught.value)


def test_names_are_not_guessed() -> None:
    assert dtypes.from_safetensors("BF16", "x") is dtypes.from_mindspore("BFloat16", "x") is BF16
    for name in ("bf16", "BFloat16", "str"):
        with pytest.raises(
            UnsupportedError, match=f"^x has dtype {name}, which streamconv cannot read; it can read BOOL"
        ):
            dtypes.from_safetensors(name, "x")
    with pytest.raises(UnsupportedError, match=r"^x has type Float8E4M3FN, which MindSpore itself refuses to load"):
        dtypes.from_mindspore("Float8E4M3FN", "x")
