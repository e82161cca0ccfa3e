"""What is there besides weights that are read: refused, dropped and listed, or left as the model's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamconv
from streamconv.errors import SourceError, StreamconvError
from streamconv.formats import safetensors
from streamconv.planning import dequantising
from streamconv.tensors.dtypes import from_safetensors
from streamconv.tensors.refs import TensorSpec
from support import golden

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]

FP8: Shapes = {"a.weight": ("F8_E4M3", (64, 64)), "a.weight_scale_inv": ("F32", (1, 1))}
INT8: Shapes = {"a.weight": ("I8", (8, 16)), "a.weight_scale": ("F32", (8, 1))}
NVFP4: Shapes = {
    "a.weight": ("U8", (8, 16)),
    "a.weight_scale": ("F8_E4M3", (8, 2)),
    "a.weight_scale_2": ("F32", ()),
}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "int-quantized"}


def written(folder: Path, shapes: Shapes, config: Mapping[str, Any]) -> Path:
    folder.mkdir()
    specs = [TensorSpec(name, from_safetensors(dtype, name), shape) for name, (dtype, shape) in shapes.items()]
    data = {spec.name: np.ones(spec.nbytes, np.uint8).tobytes() for spec in specs}
    golden.write(folder / "model.safetensors", safetensors.lay_out("model.safetensors", specs, {}), data)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def planned(tmp_path: Path, shapes: Shapes, **entry: Any) -> streamconv.Plan:
    config = {"quantization_config": entry} if entry else {}
    source = written(tmp_path / "source", shapes, config)
    return streamconv.plan(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")


@pytest.mark.parametrize(
    ("shapes", "entry", "said"),
    [
        pytest.param(
            {**NVFP4, "experts.up_proj": ("U8", (4, 8, 16)), "experts.up_proj_weight_scale": ("F8_E4M3", (4, 8, 2))},
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            "experts.up_proj: it is U8, and quantised in a way that is not read",
            id="stacks without .weight",
        ),
        pytest.param(
            {"experts.up_proj": ("F8_E4M3", (4, 6, 32)), "experts.up_proj_scale_inv": ("F32", (4, 6))},
            {"quant_method": "fp8"},
            "experts.up_proj_scale_inv [4, 6] is no grid of scales for [4, 6, 32] codes",
            id="scales with an axis less",
        ),
        pytest.param(
            INT8,
            {**COMPRESSED, "sparsity_config": {"format": "sparse-24-bitmask"}},
            "its sparsity_config is not read",
            id="sparse",
        ),
        pytest.param(
            INT8,
            {**COMPRESSED, "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
            "its transform_config is not read",
            id="rotated",
        ),
        pytest.param(
            {**INT8, "b.weight": ("I8", (8, 16))}, {}, "b.weight: its scales b.weight_scale are missing", id="lacking"
        ),
        pytest.param(
            FP8, {"quant_method": "awq"}, "a.weight: it is F8_E4M3, and quantised in a way", id="contradiction"
        ),
        pytest.param(
            {"a.qweight": ("I32", (2, 8)), "a.scales": ("F16", (1, 8)), "a.qzeros": ("I32", (1, 1))},
            {"quant_method": "gptq", "bits": 4, "desc_act": True},
            "a.qweight: a.g_idx is missing",
            id="no order",
        ),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, shapes: Shapes, entry: Any, said: str) -> None:
    with pytest.raises(StreamconvError) as caught:
        planned(tmp_path, shapes, **entry)
    assert said in str(caught.value)
    assert str(caught.value).count("there is no quantised tensor") == 0


def test_a_second_scale_of_msmodelslim_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "source", {**INT8, "a.weight_scale_second": ("F32", (8, 2))}, {})
    described = {"a.weight": "W4A8_DYNAMIC", "a.weight_scale_second": "W4A8_DYNAMIC"}
    (source / "quant_model_description.json").write_text(json.dumps(described))
    with pytest.raises(StreamconvError, match=r"have a second scale \(a\.weight_scale_second\)"):
        streamconv.plan(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")


@pytest.mark.parametrize(
    "own",
    [
        {"num_blocks": ("U8", ()), "m.image_blocks": ("U8", (4,)), "x.weight_scale": ("F32", (4,))},
        {"y.scales": ("F32", (4,)), "mask": ("I8", (4, 4)), "hc_attn_scale": ("F32", (3,)), "z.scale": ("F32", (1,))},
    ],
    ids=["without quantisation", "with names of other methods"],
)
@pytest.mark.parametrize("quantised", [{}, FP8], ids=["plain", "FP8"])
def test_tensors_of_the_models_own_are_left(tmp_path: Path, own: Shapes, quantised: Shapes) -> None:
    if quantised and "x.weight_scale" in own:
        own = {name: one for name, one in own.items() if name != "x.weight_scale"}
    plan = planned(tmp_path, {**own, **quantised})
    assert own.keys() <= {output.name for output in plan.outputs}


def test_gptq_in_order_needs_no_index_where_the_config_says_the_rest(tmp_path: Path) -> None:
    shapes: Shapes = {"a.qweight": ("I32", (16, 8)), "a.scales": ("F16", (4, 8)), "a.qzeros": ("I32", (4, 1))}
    plan = planned(tmp_path, shapes, quant_method="gptq", bits=4, group_size=32, desc_act=False)
    assert plan.mapping.dequantised == {"GPTQ, 4 bits, groups of 32": 1}


@pytest.mark.parametrize("key", ["checkpoint_format", "format"])
def test_both_names_of_gptqs_format_count(tmp_path: Path, key: str) -> None:
    shapes: Shapes = {"a.qweight": ("I32", (16, 8)), "a.scales": ("F16", (4, 8)), "a.qzeros": ("I32", (4, 1))}
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, key: "gptq_v2"}
    (output,) = planned(tmp_path, shapes, **entry).mapping.outputs
    assert [leaf.parts.described().zeros.codes.code.kind for leaf in output.view.leaves()] == ["unsigned"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("version", "crosses"), [("0.17.1", False), ("0.18.0", True), ("0.20.1", True), (None, True)])
def test_the_version_tells_a_packing_where_the_words_do_not(tmp_path: Path, version: str | None, crosses: bool) -> None:
    """Eleven codes of 3 bits take two words either way."""
    weights = {"num_bits": 3, "type": "int", "symmetric": True, "strategy": "channel"}
    entry = {"quant_method": "compressed-tensors", "format": "pack-quantized", "version": version}
    entry["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    shapes: Shapes = {
        "a.weight_packed": ("I32", (4, 2)),
        "a.weight_scale": ("F32", (4, 1)),
        "a.weight_shape": ("I64", (2,)),
    }
    source = written(tmp_path / "source", shapes, {"quantization_config": entry})
    with streamconv.open(source) as opened:
        file, offset = opened.files[0], opened._catalog["a.weight_shape"].extents[0].offset
    with file.open("r+b") as out:
        out.seek(offset)
        out.write(np.array([4, 11], np.int64).tobytes())
    (output,) = streamconv.plan(source, tmp_path / "out", model="raw", format="hf", max_mem="8G").mapping.outputs
    assert [leaf.parts.described().codes.packing.crosses for leaf in output.view.leaves()] == [crosses]  # type: ignore[attr-defined]


def test_a_config_that_speaks_of_what_is_gone_is_mended(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "awq"}, "compression_config": {}, "quantize": "w8a8"}
    source = written(tmp_path / "source", {"a.weight": ("BF16", (4, 4))}, config)
    streamconv.convert(source, tmp_path / "out", model="raw", max_mem="8G")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {}


def _of_widths(folder: Path, columns: tuple[int, int]) -> Path:
    """Two weights of five words of eight codes a row, of which the last is not full."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}
    entry = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    entry["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    shapes: Shapes = {}
    for name in "ab":
        shapes[f"{name}.weight_packed"] = "I32", (8, 5)
        shapes[f"{name}.weight_scale"] = "F32", (8, 1)
        shapes[f"{name}.weight_shape"] = "I64", (2,)
    source = written(folder, shapes, {"quantization_config": entry})
    with streamconv.open(source) as opened:
        places = [opened._catalog[f"{name}.weight_shape"].extents[0] for name in "ab"]
    for extent, count in zip(places, columns, strict=True):
        with extent.file.path.open("r+b") as out:
            out.seek(extent.offset)
            out.write(np.array([8, count], np.int64).tobytes())
    return source


@pytest.mark.parametrize("columns", [(40, 39), (39, 40), (33, 40)])
def test_widths_that_differ_within_a_word(tmp_path: Path, columns: tuple[int, int]) -> None:
    source = _of_widths(tmp_path / "source", columns)
    streamconv.convert(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")
    with streamconv.open(tmp_path / "out") as result:
        assert [result[f"{name}.weight"].shape for name in "ab"] == [(8, count) for count in columns]


def test_the_reader_compares_shapes_of_which_there_are_too_many_to_plan_with(tmp_path: Path, monkeypatch) -> None:
    source = _of_widths(tmp_path / "source", (40, 39))
    monkeypatch.setattr(dequantising, "_FEW", 0)
    with pytest.raises(SourceError) as error:
        streamconv.convert(source, tmp_path / "out", model="raw", format="hf", max_mem="8G")
    assert "b.weight_shape states the shape [8, 39], and b.weight_packed was taken to have [8, 40]" in str(error.value)
    assert not (tmp_path / "out").exists()
