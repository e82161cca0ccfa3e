"""Mistakes of those who write or copy quantised repositories: each is an error that names the tensor, and no output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamconv
from streamconv.errors import StreamconvError
from support import decoders
from support.decoders import METHODS, MODULE, Dice, Raw, Sample, Size

Change = Callable[[Raw], Raw]

SIZE = Size(72, 96, 32, (64, 64))
#: Parts that not every weight has.
OPTIONAL = ("weight_zero_point", "weight_g_idx", "weight_offset", "pre_quant_scale")
#: Codes may have any number of rows that goes with their scales: those are what does not fit then.
CODES = ("weight", "weight_packed", "gate_up_proj", "gate_up_proj_blocks")

QUICK = ("fp8-F32", "deepseek-fp4", "ct-pack-4", "modelopt-nvfp4", "gptq-4", "slim-W8A16")
A_FEW_QUICKLY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]


def samples(method: str, seed: int = 0) -> list[Sample]:
    """A weight to break, and one of the same kind that is left as it is."""
    modules = MODULE, "model.layers.1.mlp.up_proj"
    return [METHODS[method](Dice(np.random.default_rng(seed), module=module), SIZE) for module in modules]


def without(sample: Sample, name: str) -> Sample:
    return replace(sample, tensors={key: raw for key, raw in sample.tensors.items() if key != name})


def with_raw(sample: Sample, name: str, raw: Raw) -> Sample:
    return replace(sample, tensors={**sample.tensors, name: raw})


def with_change(made: list[Sample], part: str, change: Change) -> list[Sample]:
    first, *others = made
    name = next(name for name in first.tensors if name.endswith(part))
    return [with_raw(first, name, change(first.tensors[name])), *others]


def saved(folder: Path, made: list[Sample]) -> Path:
    folder.mkdir()
    decoders.save(folder, made, np.random.default_rng(1), files=2)
    return folder


def refusal(source: Path) -> str:
    """What is said when a source is converted: one error, and nothing is written."""
    out = source.parent / "out"
    with pytest.raises(StreamconvError) as caught:
        streamconv.convert(source, out, model="raw", format="hf", max_mem="8G")
    assert not out.exists()
    assert "internal error" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- any part of any method


def wider(raw: Raw) -> Raw:
    return Raw(raw.dtype, np.concatenate([raw.bits, raw.bits[:1]]) if raw.bits.ndim else np.stack([raw.bits] * 2))


def of_another_dtype(raw: Raw) -> Raw:
    return Raw("I16", np.zeros(raw.bits.shape, np.uint16))


@pytest.mark.parametrize("method", A_FEW_QUICKLY)
def test_any_part_may_be_missing_misshapen_or_of_another_dtype(method: str, tmp_path: Path) -> None:
    first, *others = samples(method)
    made: dict[str, Sample] = {}
    for name, raw in first.tensors.items():
        part = name.removeprefix(f"{MODULE}.")
        if part not in OPTIONAL:
            made[f"{part} missing"] = without(first, name)
        if part not in CODES:
            made[f"{part} wider"] = with_raw(first, name, wider(raw))
        made[f"{part} of another dtype"] = with_raw(first, name, of_another_dtype(raw))
    for what, broken in made.items():
        assert MODULE in refusal(saved(tmp_path / what, [broken, *others])), what


@pytest.mark.parametrize("method", A_FEW_QUICKLY)
def test_cut_files(method: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", samples(method))
    for file in sorted(source.glob("*.safetensors")):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        assert file.name in refusal(source)
        file.write_bytes(whole)


# ---------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("fp8-F32", "q_proj.weight_scale_inv"),
        ("fp8-scale", "q_proj.scale"),
        ("ct-pack-4", "q_proj.weight_zero_point"),
        ("modelopt-nvfp4", "q_proj.weight_scale_2"),
        ("gptq-4", "q_proj.g_idx"),
        ("awq", "q_proj.qzeros"),
        ("slim-W8A16", "q_proj.weight_scale"),
    ],
)
def test_a_part_without_codes(method: str, name: str, tmp_path: Path) -> None:
    first, *others = samples(method)
    scale = Raw("F8_E8M0" if method == "fp8-scale" else "F32", np.zeros((3, 3), np.uint32))
    assert f"{name}: there is no quantised tensor" in refusal(
        saved(tmp_path / "source", [with_raw(first, name, scale), *others])
    )


def last(value: int, dtype: str | None = None) -> Change:
    """The last element is that."""

    def change(raw: Raw) -> Raw:
        bits = raw.bits.copy()
        bits.reshape(-1)[-1] = value
        return Raw(dtype or raw.dtype, bits)

    return change


@pytest.mark.parametrize("method", ["gptq-4", "gptq_v2-3", "ct-pack-4"])
def test_a_group_that_there_is_not(method: str, tmp_path: Path) -> None:
    every = (samples(method, seed) for seed in range(99))
    made = next(made for made in every if any(name.endswith("g_idx") for name in made[0].tensors))
    said = refusal(saved(tmp_path / "source", with_change(made, "g_idx", last(1 << 20))))
    assert f"{MODULE}." in said and f"names group {1 << 20}" in said


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ("fp8-F8_E8M0", "weight_scale_inv"),
        ("fp8-scale", "scale"),
        ("fp8-mxfp8", "weight_scale_inv"),
        ("deepseek-fp4", "scale"),
        ("gpt-oss", "_scales"),
        ("modelopt-mxfp4", "weight_scale"),
        ("modelopt-mxfp8", "weight_scale"),
        ("ct-mxfp4", "weight_scale"),
        ("ct-mxfp8", "weight_scale"),
        ("slim-W8A8_MXFP8", "weight_scale"),
        ("slim-W4A4_MXFP4", "weight_scale"),
    ],
)
def test_an_exponent_that_is_no_number(method: str, part: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", with_change(samples(method), part, last(255)))
    said = refusal(source)
    assert f"{part}, is 255" in said and MODULE in said
    file, byte = place_of_255(source, said)
    assert file.read_bytes()[byte] == 255


def place_of_255(source: Path, said: str) -> tuple[Path, int]:
    """The file and the byte that a message names."""
    name, _, rest = said.partition(": byte ")
    return source / Path(name).name, int(rest.partition(",")[0])


@pytest.mark.parametrize("shape", [(72, 97), (71, 96), (96, 72), (0, 0), (-72, -96), (72, 1 << 30)], ids=str)
def test_a_shape_that_contradicts(shape: tuple[int, int], tmp_path: Path) -> None:
    stated = Raw("I64", np.array(shape, np.int64).view(np.uint64))
    made = with_change(samples("ct-pack-8"), "weight_shape", lambda raw: stated)
    assert f"{MODULE}.weight_packed" in refusal(saved(tmp_path / "source", made))


@pytest.mark.parametrize("columns", [(97, 100), (100, 97), (96, 93), (93, 96)], ids=str)
def test_words_that_have_room_for_other_columns(columns: tuple[int, int], tmp_path: Path) -> None:
    """All other shapes are the same: each weight has the columns that it states, or is refused."""
    made = [
        METHODS["ct-pack-4"](
            Dice(np.random.default_rng(1), module=f"model.layers.{i}.mlp.up_proj"), SIZE._replace(columns=n)
        )
        for i, n in enumerate(columns)
    ]
    source = saved(tmp_path / "source", made)
    if 96 in columns:
        try:
            streamconv.convert(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")
        except StreamconvError as error:
            assert "states the shape" in str(error)
            return
    else:
        streamconv.convert(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")
    with streamconv.open(tmp_path / "out") as found:
        assert [found[one.weight].shape for one in made] == [(72, n) for n in columns]


# ---------------------------------------------------------------- what the config says


def with_entry(made: list[Sample], **values: Any) -> list[Sample]:
    return [replace(one, entry={**one.entry, **values}) for one in made]


def test_a_type_that_is_not_known(tmp_path: Path) -> None:
    made = with_entry(samples("slim-W8A16"), **{f"{MODULE}.weight": "W3A3_NEW"})
    assert "W3A3_NEW" in refusal(saved(tmp_path / "source", made))


@pytest.mark.parametrize(
    ("method", "kind"),
    [("slim-W8A16", "FLOAT"), ("slim-W8A16", "W4A8_DYNAMIC"), ("slim-W4A8_DYNAMIC", "W8A8_DYNAMIC")],
)
def test_a_type_that_contradicts(method: str, kind: str, tmp_path: Path) -> None:
    made = with_entry(samples(method), **{f"{MODULE}.weight": kind})
    assert f"{MODULE}.weight" in refusal(saved(tmp_path / "source", made))


def test_a_block_that_contradicts(tmp_path: Path) -> None:
    """The default is for configs that state none."""
    made = with_entry([METHODS["fp8-F32"](Dice(np.random.default_rng(0)), Size(200, 200, 1, (128, 128)))])
    assert f"{MODULE}.weight" in refusal(saved(tmp_path / "source", with_entry(made, weight_block_size=[64, 64])))


@pytest.mark.parametrize("value", [[128], [128, 128, 128], "128", 128, [128.0, 128.0], [0, 0], [-1, 128], [True, None]])
def test_a_block_that_is_none(value: object, tmp_path: Path) -> None:
    made = with_entry([METHODS["fp8-F32"](Dice(np.random.default_rng(0)), Size(200, 200, 1, (64, 64)))])
    refusal(saved(tmp_path / "source", with_entry(made, weight_block_size=value)))


@pytest.mark.parametrize("groups", [{}, None, [], {"group_0": None}, {"group_0": {"targets": ["Linear"]}}], ids=str)
def test_a_config_without_groups_of_codes(groups: object, tmp_path: Path) -> None:
    """With 100 columns in 3 groups, the shapes do not say where a group ends."""
    made = [METHODS["ct-I8-group"](Dice(np.random.default_rng(0)), Size(72, 100, 48, (64, 64)))]
    assert f"{MODULE}.weight" in refusal(saved(tmp_path / "source", with_entry(made, config_groups=groups)))


@pytest.mark.parametrize("method", ["awq", "gptq-4"])
def test_a_config_without_the_size_of_groups(method: str, tmp_path: Path) -> None:
    made = [METHODS[method](Dice(np.random.default_rng(1)), Size(72, 160, 64, (64, 64)))]
    entry: Mapping[str, Any] = {key: value for key, value in made[0].entry.items() if key != "group_size"}
    made = [replace(one, entry=entry) for one in made]
    assert f"{MODULE}." in refusal(saved(tmp_path / "source", made))


@pytest.mark.parametrize("bits", [None, 0, -4, 16, "4", 3.5], ids=str)
def test_a_config_without_bits(bits: object, tmp_path: Path) -> None:
    """One word holds 10 codes of 3 bits, of 2 bits or of any in between."""
    made = [METHODS["ct-pack-3"](Dice(np.random.default_rng(0)), Size(72, 10, 10, (64, 64)))]
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "group_size": 10}}}
    assert f"{MODULE}." in refusal(saved(tmp_path / "source", with_entry(made, config_groups=groups)))


@pytest.mark.parametrize(
    ("method", "part", "values"),
    [
        ("ct-I8-channel", "weight_zero_point", {"symmetric": False}),
        ("ct-pack-4", "weight_zero_point", {"symmetric": False}),
        ("slim-W8A16", "weight_offset", None),
    ],
)
def test_zero_points_that_have_to_be_there(
    method: str, part: str, values: dict[str, Any] | None, tmp_path: Path
) -> None:
    every = (samples(method, seed) for seed in range(99))
    first, *_ = next(made for made in every if f"{MODULE}.{part}" in made[0].tensors)
    if values is not None:
        group = first.entry["config_groups"]["group_0"]
        groups = {"group_0": {**group, "weights": {**group["weights"], **values}}}
        first = replace(first, entry={**first.entry, "config_groups": groups})
    said = refusal(saved(tmp_path / "source", [without(first, f"{MODULE}.{part}")]))
    assert f"its zero points {MODULE}.{part} are missing" in said


@pytest.mark.parametrize("method", ["ct-pack-4", "gptq-4", "awq", "gpt-oss"])
def test_a_weight_that_is_there_twice(method: str, tmp_path: Path) -> None:
    first, *others = samples(method)
    plain = Raw("BF16", first.expected)
    said = refusal(saved(tmp_path / "source", [with_raw(first, first.weight, plain), *others]))
    assert f"the source has its weight {first.weight} as well" in said


@pytest.mark.parametrize("value", [[], {}, 3, "new"], ids=str)
def test_a_format_that_is_none(value: object, tmp_path: Path) -> None:
    assert "is not read" in refusal(saved(tmp_path / "source", with_entry(samples("ct-pack-4"), format=value)))


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", samples("slim-W8A16"))
    description = source / "quant_model_description.json"
    for text in ("", "[]", "{", json.dumps({f"{MODULE}.weight": 3})[:-1]):
        description.write_text(text)
        assert description.name in refusal(source)
