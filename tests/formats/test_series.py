"""streamconv.formats.series: numbered files in every spelling, and what is missing of them."""

from __future__ import annotations

import pytest

from streamconv.errors import SourceError
from streamconv.formats.series import Missing, is_one_series, is_variant, missing, numbered, part_of
from support.helpers import text_of

SPELLINGS = [
    ("model-{:05}-of-00004.safetensors", 1),
    ("model-{:05}-of-000004.safetensors", 1),  # DeepSeek
    ("model-{}-of-4.safetensors", 1),  # Kimi
    ("pytorch_model_{:05}-of-00004.bin", 1),  # TeleChat
    ("model-{:05}-of-00004.bf16.safetensors", 1),
    ("model.{}-of-4.safetensors", 1),
    ("model_{:03}_of_004.pt", 1),
    ("part-{:05}-OF-00004.pth", 1),
    ("model-{:02}.of.04.ckpt", 1),
    ("{:05}-of-00004.safetensors", 1),
    ("shard{}-of-4.safetensors", 1),
    ("model-{:05}-of-00004.safetensors", 0),
    ("model-{}-of-4.safetensors", 0),
    ("model {} of 4.safetensors", 1),
    ("model-{:05}of00004.safetensors", 1),
    ("model({}of4).safetensors", 1),
    ("model ({} of 4).safetensors", 0),
    ("model[{}-of-4] bf16.ckpt", 1),
    ("llama-{}of4.bin", 1),
]


@pytest.mark.parametrize(("pattern", "first"), SPELLINGS)
@pytest.mark.parametrize("gone", [1, 2])
def test_what_is_missing_is_spelled_as_the_others_are(pattern: str, first: int, gone: int) -> None:
    names = [pattern.format(first + i) for i in range(4)]
    assert numbered(names) == names
    assert is_one_series(names)
    assert missing(names) == Missing(0, ())
    lost = names.pop(gone)
    assert missing(names) == Missing(1, [lost])


def test_numbers_of_two_digits_without_zeros() -> None:
    assert missing({f"model-{i}-of-12.safetensors" for i in range(1, 12)}) == Missing(1, ["model-12-of-12.safetensors"])
    assert missing({f"model-{i}-of-12.safetensors" for i in range(2, 13)}) == Missing(1, ["model-1-of-12.safetensors"])
    assert missing({f"m-{i:02}-of-12.bin" for i in range(1, 13) if i != 3}) == Missing(1, ["m-03-of-12.bin"])


@pytest.mark.parametrize("first", [0, 1])
def test_the_last_of_a_series(first: int) -> None:
    names = [f"m-{first + i:05}-of-00004.bin" for i in range(3)]
    assert missing(names) == Missing(1, [f"m-{first + 3:05}-of-00004.bin"])


def test_more_than_the_series_has() -> None:
    assert missing([f"m-{i}-of-2.bin" for i in range(3)]) == Missing(0, ())
    with pytest.raises(SourceError) as caught:
        missing(["m-00001-of-00002.bin", "m-00003-of-00002.bin"])
    assert "m-00003-of-00002.bin is numbered 00003 of 00002" in text_of(caught.value)


def test_of_two_series_the_incomplete_one_is_found() -> None:
    whole = ["a-1-of-2.bin", "a-2-of-2.bin"]
    assert missing([*whole, "b-2-of-2.bin"]) == Missing(1, ["b-1-of-2.bin"])
    assert missing([*whole, "a-1-of-2.pt"]) == Missing(1, ["a-2-of-2.pt"])
    assert missing([*whole, "a-00001-of-00001.bin"]) == Missing(0, ())


def test_a_count_beyond_all_files_costs_nothing() -> None:
    found = missing([f"m-1-of-{10**200}.bin"])
    assert found.count == 10**200 - 1
    assert found.names[0] == "m-2-of-" + f"{10**200}.bin"


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "Sparse-Llama-3.1-8B-2of4.safetensors",
        "Llama-4of8.pt",
        "8of16.bin",
        "model.2OF4.safetensors",
        "model-1_3.safetensors",
        "model-00001-of-00002 (1).safetensors",
        "proof3offline.bin",
        "consolidated.00.pth",
        "model-00001-of-00002.gguf",
        "model-00001-of-.safetensors",
        "out-of-memory.pt",
        "llama_rank_0-5_1.safetensors",
    ],
)
def test_what_is_no_member_of_a_series(name: str) -> None:
    assert numbered([name]) == []
    assert part_of(name) is None
    assert missing([name]) == Missing(0, ())


@pytest.mark.parametrize("number", [1, 3, 4])
def test_a_pattern_of_sparsity_is_one_of_a_series_if_another_is_there(number: int) -> None:
    names = ["Llama-2of4.bin", f"Llama-{number}of4.bin"]
    assert numbered([*names, "Llama-2of4.pt", "other.bin"]) == names
    assert missing(names).count == 2


def test_padded_it_is_one_of_a_series() -> None:
    assert part_of("m-00002of00004.bin") == (2, 4)
    assert missing(["m-00002of00004.bin"]).count == 3


def test_which_of_how_many() -> None:
    assert part_of("model-00007-of-000163.safetensors") == (7, 163)
    assert part_of("m.3-of-12.pt") == (3, 12)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("model.fp16.safetensors", True),
        ("model.fp32-00001-of-00002.safetensors", True),
        ("model-00001-of-00002.bf16.safetensors", True),
        ("pytorch_model.fp32-00001-of-00002.bin", True),
        ("pytorch_model.non_ema.bin", True),
        ("model.fp32-1-of-2.safetensors", True),
        ("model.2of4.safetensors", True),
        ("model.safetensors", False),
        ("model-00001-of-00002.safetensors", False),
        ("model.1-of-3.safetensors", False),
        ("pytorch_model.bin", False),
        ("ms-model-00001-of-00002.safetensors", False),
        ("my.fp16.safetensors", False),
    ],
)
def test_which_names_are_variants(name: str, is_one: bool) -> None:
    assert is_variant(name) == is_one
