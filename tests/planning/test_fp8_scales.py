"""Scales: which FP8 weight goes with which, what is missing and what is one too many."""

from __future__ import annotations

import pytest

from streamconv.errors import UnsupportedError
from streamconv.planning.fp8_scales import Scales, pair
from streamconv.tensors.dtypes import BF16, F8_E4M3, F16, F32, DType
from streamconv.tensors.refs import TensorSpec
from support.helpers import catalog

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def tensors(shards: int = 1, **dtypes: DType):
    """A catalog of tensors of these names, a dot for every two underscores."""
    return catalog([TensorSpec(name.replace("__", "."), dtype, (2, 2)) for name, dtype in dtypes.items()], shards)


def found(scales: Scales) -> dict[str, str]:
    return {name: ref.name for name, ref in scales.of.items()}


@pytest.mark.parametrize("config", [{}, FP8])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_weights_and_scales_find_each_other_in_any_shard_and_order(shards, config) -> None:
    source = tensors(
        shards, b_scale_inv=F32, a__x=F8_E4M3, a=F8_E4M3, norm=BF16, a__x_scale_inv=F32, b=F8_E4M3, a_scale_inv=F32
    )
    scales = pair(source, config)
    assert found(scales) == {"a": "a_scale_inv", "a.x": "a.x_scale_inv", "b": "b_scale_inv"}
    assert (scales.missing, scales.surplus, scales.active, scales.block) == ((), (), True, (128, 128))
    assert all(scales.of[name] is source[name + "_scale_inv"] for name in scales.of)
    assert [name for name in source if scales.is_scale(name)] == [n for n in source if n.endswith("_scale_inv")]


@pytest.mark.parametrize(
    ("config", "dtypes"),
    [
        ({}, {}),
        (FP8, {}),
        (FP8, {"a": BF16, "a_scale_inv": F32}),
        ({}, {"a": F8_E4M3, "b": BF16}),
        ({"quantization_config": {"quant_method": "fp8"}}, {"a": F8_E4M3}),
        ({"quantization_config": None}, {"a": F8_E4M3}),
        ({"quantization_config": "weight_block_size"}, {"a": F8_E4M3}),
    ],
    ids=repr,
)
def test_where_nothing_is_in_blocks_names_mean_nothing(config, dtypes) -> None:
    scales = pair(tensors(**dtypes), config)
    assert scales == Scales()
    assert not scales.active
    assert not scales.is_scale("a_scale_inv")


def test_a_config_that_speaks_of_blocks_makes_all_scales_needed() -> None:
    scales = pair(tensors(a=F8_E4M3, b=F8_E4M3, c=BF16), FP8)
    assert scales.missing == tuple(f"{name}: its scales {name}_scale_inv are missing" for name in "ab")
    assert (found(scales), scales.active) == ({}, True)


def test_one_pair_of_scales_makes_all_needed() -> None:
    scales = pair(tensors(a=F8_E4M3, a_scale_inv=F32, b=F8_E4M3), {})
    assert (found(scales), scales.surplus) == ({"a": "a_scale_inv"}, ())
    assert scales.missing == ("b: its scales b_scale_inv are missing",)


@pytest.mark.parametrize("of", [{}, {"b": BF16}, {"b": F32}], ids=repr)
def test_scales_of_nothing_are_surplus(of) -> None:
    scales = pair(tensors(a=F8_E4M3, a_scale_inv=F32, b_scale_inv=F32, **of), {})
    assert scales.surplus == ("b_scale_inv: no F8_E4M3 tensor b to scale",)
    assert (found(scales), scales.missing) == ({"a": "a_scale_inv"}, ())
    assert scales.is_scale("b_scale_inv")


def test_scales_of_another_dtype_are_paired_and_left_to_the_view() -> None:
    assert found(pair(tensors(a=F8_E4M3, a_scale_inv=F16), {})) == {"a": "a_scale_inv"}


def test_names_from_outside_reach_no_terminal() -> None:
    name = "\x1b[31ma"
    scales = pair(catalog([TensorSpec(name, F8_E4M3, (2, 2)), TensorSpec("b\n_scale_inv", F32, ())]), {})
    assert all(text.isprintable() for text in (*scales.missing, *scales.surplus))
    assert (len(scales.missing), len(scales.surplus)) == (1, 1)


@pytest.mark.parametrize("block", [[128, 128], [64, 32], [16, 16], [1 << 20, 16]])
def test_the_config_says_how_large_blocks_are(block) -> None:
    config = {"quantization_config": {"weight_block_size": block}}
    assert pair(tensors(a=F8_E4M3, a_scale_inv=F32), config).block == tuple(block)


NO_BLOCKS = [None, [], [128], [1, 1], [128, 15], [15, 128], [0, 0], [-128, 128], [128.0, 128], [True, True]]
NO_BLOCKS += ["128", 128, "\x1b[0m", {}, {"rows": 128}, [128, 128, 128], [[128, 128]], ["128", "128"]]


@pytest.mark.parametrize("block", NO_BLOCKS, ids=repr)
def test_blocks_that_are_none_are_refused(block) -> None:
    config = {"quantization_config": {"weight_block_size": block}}
    with pytest.raises(UnsupportedError, match=r"config\.json: weight_block_size is .*of at least 16 each") as caught:
        pair(tensors(a=F8_E4M3, a_scale_inv=F32), config)
    assert caught.value.message.isprintable()
    assert pair(tensors(a=F8_E4M3, a_scale_inv=F32), config, keep=True) == Scales()
    assert pair(tensors(a=BF16), config) == Scales()
