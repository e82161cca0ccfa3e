"""How a source is quantised, as its config or a file next to its weights says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import reading
from ..formats.header_room import HeaderRoom
from ..quantisation import registry
from ..quantisation.language import Description
from ..rules.config_sections import quantisation
from ..storage import disk
from ..text import quote
from .model_config import read_json

#: Endings of the names of tensors that only quantised checkpoints have -> the method, of those that are not read.
_ENDINGS = {
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".W_q": "HQQ",
    ".codebooks": "AQLM",
}


def described(config: Mapping[str, object], directory: Path, header_room: HeaderRoom) -> Description | None:
    """Return what says how a source is quantised, `None` if nothing does.

    Args:
        config: its config.
        directory: where its weights are.
        header_room: how much of a file may be read.

    Raises:
        SourceError: the directory cannot be listed, or a file in it that describes the weights cannot be read.
    """
    if stated := quantisation(config):
        name = stated.get("quant_method") or ("modelopt" if "quant_algo" in stated else "fp8")
        where = f"config.json: quantization_config, {quote(name)}"
        return Description(str(name), registry.named(str(name)), stated, where)
    with reading(directory, "cannot list"):
        files = disk.listdir(directory)
    found = registry.described_by(files)
    if found is None:
        return None
    method, file = found
    return Description(method.name, method, read_json(directory / file, header_room), quote(file))


def sign(names: Iterable[str]) -> str:
    """Return the method that is not read and a tensor that shows it, empty if none does."""
    for name in names:
        for ending, method in _ENDINGS.items():
            if name.endswith(ending):
                return f"{method} (tensor {quote(name)})"
    return ""
