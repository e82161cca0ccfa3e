"""All methods: those of this package, and those that installed packages bring."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from ..errors import UsageError
from ..offers import entry_points
from ..text import quote
from . import awq, compressed_tensors, fp8, gptq, modelopt, msmodelslim, mxfp4
from .language import Entry, Method

#: Installed packages name a `Method` under this entry point.
GROUP = "streamconv.quantisation"

_OWN = tuple(module.METHOD for module in (fp8, mxfp4, compressed_tensors, modelopt, gptq, awq, msmodelslim))

#: Other names of a method in `quant_method`.
_ALIASES = {"mxfp8": "fp8", "compressed_tensors": "compressed-tensors"}

#: Endings of the names of tensors that serve the quantised model alone, whatever the method -> what they are.
DROPPED: Mapping[str, str] = {
    ".input_scale": "scale of activations",
    ".activation_scale": "scale of activations",
    ".k_scale": "scale of the K/V cache",
    ".v_scale": "scale of the K/V cache",
    ".k_zero_point": "zero point of the K/V cache",
    ".v_zero_point": "zero point of the K/V cache",
    ".q_scale": "scale of activations",
    ".prob_output_scale": "scale of activations",
    ".kv_scale": "scale of the K/V cache",
}

#: `quant_method` of methods that are not read -> their names.
NOT_READ: Mapping[str, str] = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "fbgemm_fp8": "FBGEMM FP8",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "quark": "Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}


@cache
def methods() -> Sequence[Method]:
    """Return all methods.

    Raises:
        UsageError: an installed package names something else under `streamconv.quantisation`.
    """
    found = list(_OWN)
    for point in entry_points(group=GROUP):
        method = point.load()
        if not isinstance(method, Method):
            raise UsageError(f"entry point {quote(point.name)} of {GROUP} is no Method but {type(method).__name__}")
        found.append(method)
    return tuple(found)


def named(quant_method: str) -> Method | None:
    """Return the method that a config's `quant_method` names, `None` if it is not read."""
    name = quant_method.lower()
    return next((one for one in methods() if one.name == _ALIASES.get(name, name)), None)


def described_by(files: Iterable[str]) -> tuple[Method, str] | None:
    """Return the method that a file next to the weights describes, and the file's name."""
    every = sorted(files)
    for method in methods():
        for pattern in method.files:
            if name := next(iter(fnmatch.filter(every, pattern)), ""):
                return method, name
    return None


def layouts_without_config() -> list[tuple[Method, Entry]]:
    """Return the methods to try where nothing says how a source is quantised."""
    return [(method, {}) for method in methods()]
