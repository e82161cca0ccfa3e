"""compressed-tensors, as llm-compressor, vLLM's and RedHat's repositories and Kimi-K2-Thinking use it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from ..tensors.dtypes import F8_E4M3, F32, I8, I32, I64, U8
from ..text import quote
from .language import (
    FLOATS,
    ByModule,
    Entry,
    Factor,
    Layout,
    Method,
    Part,
    Stated,
    Zeros,
    block,
    centred,
    e2m1,
    e4m3,
    signed,
)

_SOURCE = "compressed-tensors 0.20, `compressors/`"
_PACKED = ".weight_packed"

_NVFP4 = Layout(
    "NVFP4 (E2M1)",
    Part(_PACKED, (U8,)),
    e2m1,
    (Factor(".weight_scale", (F8_E4M3,), group=16), Factor(".weight_global_scale", (F32,), divides=True)),
    bits=4,
    word=8,
    source=_SOURCE,
)
_MXFP4 = Layout(
    "MXFP4 (E2M1)",
    Part(_PACKED, (U8,)),
    e2m1,
    (Factor(".weight_scale", (U8,), group=32),),
    bits=4,
    word=8,
    source=_SOURCE,
)
_PACK = Layout(
    "INT{bits}, packed",
    Part(_PACKED, (I32,)),
    centred,
    (Factor(".weight_scale", FLOATS),),
    bits=0,
    word=32,
    # Zero points were not packed up to version 0.8.
    zeros=Zeros(".weight_zero_point", (I32, I8), optional=True, code=centred, axis=0),
    groups=Part(".weight_g_idx", (I32,), optional=True),
    shape=Part(".weight_shape", (I64, I32)),
    source=f"{_SOURCE}; to 0.17 codes of 3, 5 and 6 bits did not cross words",
)
_MXFP8 = Layout(
    "MXFP8 (E4M3)",
    Part(".weight", (F8_E4M3,)),
    e4m3,
    (Factor(".weight_scale", (U8,), group=32),),
    source=_SOURCE,
)
_FP8 = Layout(
    "FP8 (E4M3)",
    Part(".weight", (F8_E4M3,)),
    e4m3,
    (Factor(".weight_scale", FLOATS),),
    zeros=Zeros(".weight_zero_point", (I8, F8_E4M3), optional=True),
    source=_SOURCE,
)
_INT8 = Layout(
    "INT8",
    Part(".weight", (I8,)),
    signed,
    (Factor(".weight_scale", FLOATS),),
    zeros=Zeros(".weight_zero_point", (I8,), optional=True),
    source=_SOURCE,
)

_READ = {
    *("dense", "float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
}

#: Class names that `targets` may hold: all quantised weights are of one.
_CLASSES = {"Linear", "LinearBase", "FusedMoE", "MoEGMM", "Embedding"}


def _layouts(entry: Entry) -> Sequence[Layout]:
    return _NVFP4, _MXFP4, _PACK, _MXFP8, _FP8, _INT8


def _groups(entry: Entry) -> Iterator[Mapping[str, object]]:
    groups = entry.get("config_groups")
    yield from (group for group in groups.values() if isinstance(group, dict)) if isinstance(groups, dict) else ()


def _names(targets: Iterable[object]) -> set[str]:
    """Return the targets that are not classes of modules."""
    return {target for target in targets if isinstance(target, str)} - _CLASSES


def _naming(names: Collection[str]) -> Callable[[str], bool]:
    """Return what says whether targets name a module: exactly, or as regular expressions that match its beginning."""
    inner = tuple(f".{name}" for name in names)
    patterns = []
    for target in names:
        if target.startswith("re:"):
            with suppress(re.error):
                patterns.append(re.compile(target[3:]))
    return lambda module: (
        module in names or module.endswith(inner) or any(pattern.match(module) for pattern in patterns)
    )


def _stated(entry: Entry) -> ByModule:
    """Find the group of a module: the first that names it, else the first that names a class of modules."""
    groups = [(group, targets) for group in _groups(entry) if isinstance(targets := group.get("targets"), list)]
    pads = _pads(entry.get("version"))
    named = [(_naming(names), _said(group, pads)) for group, targets in groups if (names := _names(targets))]
    of_classes = (_said(group, pads) for group, targets in groups if _CLASSES.intersection(map(str, targets)))
    of_class = next(of_classes, Stated())
    return lambda module: next((said for names, said in named if names(module)), of_class)


def _pads(version: object) -> bool:
    """Whether this version of compressed-tensors let no code of 3, 5 or 6 bits cross words: those before 0.18."""
    found = re.match(r"(\d+)\.(\d+)", str(version))
    return found is not None and (int(found[1]), int(found[2])) < (0, 18)


def _said(group: Mapping[str, object], pads: bool) -> Stated:
    weights = group.get("weights")
    if not isinstance(weights, dict):
        return Stated()
    bits, size = weights.get("num_bits"), weights.get("group_size")
    return Stated(
        bits if isinstance(bits, int) else 0,
        size if isinstance(size, int) and size > 0 else 0,
        block(weights.get("block_structure")),
        pads,
        has_zeros=weights.get("symmetric") is False,
    )


def _refuses(entry: Entry) -> str:
    for key in ("sparsity_config", "transform_config"):
        stated = entry.get(key)
        if isinstance(stated, dict) and (stated.get("format", "dense") != "dense" or stated.get("config_groups")):
            return f"its {key} is not read: without it the weights are not the model's"
    formats = [entry.get("format"), *(group.get("format") for group in _groups(entry))]
    unread = [str(one) for one in formats if one is not None and str(one) not in _READ]
    return f"its format {quote(unread[0])} is not read" if unread else ""


METHOD = Method(
    "compressed-tensors",
    "compressed-tensors",
    ("llm-compressor", "compressed-tensors"),
    _layouts,
    _stated,
    _refuses,
    dropped={
        ".input_global_scale": "scale of activations",
        ".input_zero_point": "zero point of activations",
        ".output_scale": "scale of activations",
        ".output_zero_point": "zero point of activations",
    },
    differs=(
        "scales in F16: compressed-tensors rounds to F16 first; streamconv rounds once, to BF16",
        "3, 5 and 6 bits written up to version 0.17: later versions read them wrongly, and say nothing",
    ),
)
