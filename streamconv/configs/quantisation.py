"""How a source is quantised, as its small files or its tensors' names say; for messages about what cannot be read."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import reading
from ..rules.config_sections import quantisation
from ..storage import disk
from ..text import quote

#: `quant_method` of a config -> the method's name.
_METHODS = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "quanto": "Quanto",
    "quark": "Quark",
    "torchao": "torchao",
    "vptq": "VPTQ",
    "higgs": "HIGGS",
    "spqr": "SpQR",
    "bitnet": "BitNet",
}

#: Files next to the weights -> the method.
_FILES = {
    "quant_model_description*.json": "msModelSlim",
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "GPTQ",
}

#: Endings of the names of tensors that only quantised checkpoints have -> the method.
_ENDINGS = {
    ".g_idx": "GPTQ",
    ".qzeros": "GPTQ or AWQ",
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "ModelOpt",
    ".deq_scale": "msModelSlim",
    ".weight_offset": "msModelSlim",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    "_blocks": "MXFP4",
    ".weight_scale": "FP8 or INT8",
}


def described(config: Mapping[str, object], directory: Path, names: Iterable[str]) -> str:
    """Return how a source is quantised and what says so, such as `GPTQ (config.json: quantization_config)`.

    Nothing is returned for FP8 with block scales, which is read, and where nothing is quantised.

    Args:
        config: its config.
        directory: where its weights are.
        names: those of its tensors.

    Raises:
        SourceError: the directory cannot be listed.
    """
    if stated := quantisation(config):
        if stated.get("quant_method") == "fp8" and isinstance(stated.get("weight_block_size"), list):
            return ""
        method = stated.get("quant_method") or stated.get("quant_algo")
        return f"{_METHODS.get(str(method).lower(), quote(method))} (config.json: quantization_config)"
    with reading(directory, "cannot list"):
        files = disk.listdir(directory)
    for pattern, method in _FILES.items():
        for name in fnmatch.filter(files, pattern):
            return f"{method} ({quote(name)})"
    every = list(names)
    for ending, method in _ENDINGS.items():
        if name := next((name for name in every if name.endswith(ending)), ""):
            return f"{method} (tensor {quote(name)})"
    return ""
