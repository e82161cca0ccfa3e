"""LoRA adapters as PEFT stores them: `adapter_model.safetensors`, and `adapter_config.json` with their scale.

The scale of an adapter is lora_alpha / r, or what `peft_scale` knows. MindFormers has lora_alpha in its YAML only, so
the conversion to PEFT needs that YAML, an adapter_config.json next to the adapter, or the number itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import SourceError, UsageError, reading
from ..formats.header_room import HeaderRoom
from ..storage import disk
from ..tensors.refs import TensorSpec
from ..text import quote, setting
from .model_config import ModelConfig, read_json

CONFIG = "adapter_config.json"
ALPHA = "lora_alpha"
_MOST_ALPHA = 1 << 31

#: Bytes of JSON that an adapter_config.json may have: as objects they take some 10 MiB.
_LARGEST = 512 << 10

#: What makes PEFT's scale another than lora_alpha / r, which is the one that MindFormers' lora_alpha is meant for.
_OTHER_SCALES = ("use_rslora", "alpha_pattern", "rank_pattern")

#: What the names of a pair's first tensor hold.
A = ".lora_A."

_DEFAULTS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_dropout": 0.0,
}


def has_adapters(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are adapters under PEFT's names, or some of them are."""
    return any(A in name for name in names)


def peft_config(specs: Sequence[TensorSpec], config: ModelConfig, directory: Path, alpha: object) -> bytes:
    """Return the adapter_config.json of an adapter.

    Args:
        specs: its tensors, under PEFT's names.
        config: the given config: an adapter_config.json, or a MindFormers YAML.
        directory: where the source's own adapter_config.json is looked for.
        alpha: `lora_alpha` as given by hand, `None` if it was not.

    Raises:
        UsageError: lora_alpha is stated nowhere.
        SourceError: the rank in the file differs from the tensors', they have several, or lora_alpha is not a number.
    """
    found = read(config, directory)
    rank, stated = _rank(specs), found.get("r")
    if stated not in (None, rank):
        raise SourceError(f"{CONFIG} states r = {quote(stated)}, but the adapter's tensors have rank {rank}")
    scale = _alpha(alpha, found.get(ALPHA), _pet(config).get(ALPHA))
    if alpha is not None or ALPHA not in found:
        found = {key: value for key, value in found.items() if key not in _OTHER_SCALES}
    values = {**_DEFAULTS, **found, "r": rank, ALPHA: scale, "target_modules": _modules(specs)}
    return (json.dumps(values, indent=2) + "\n").encode()


def _alpha(*candidates: object) -> int | float:
    """Return the first `lora_alpha` that is stated."""
    alpha = next((one for one in candidates if one is not None), None)
    given = setting(f"options.{ALPHA}", "N")
    if alpha is None:
        raise UsageError(
            f"an adapter is scaled by {ALPHA} / r, and {ALPHA} is stated nowhere",
            f"give {given}, or the MindFormers YAML or the {CONFIG} with {setting('config', 'FILE')}",
        )
    # The value is not shown: the text of a number may be very long, and that of lists in a YAML that hold each other is
    # endless.
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < _MOST_ALPHA:
        raise SourceError(f"{ALPHA} is not a number between 0 and {_MOST_ALPHA}", f"give the right one with {given}")
    return alpha


def read(config: ModelConfig, directory: Path) -> Mapping[str, object]:
    """Return the adapter_config.json that was given, or the one next to the adapter; empty if there is none.

    Raises:
        SourceError: it cannot be read.
    """
    if "peft_type" in config.values:
        return config.values
    path = directory / CONFIG
    with reading(path):
        found = disk.is_file(path)
    return read_json(path, HeaderRoom(_LARGEST)) if found else {}


def _pet(config: ModelConfig) -> Mapping[str, object]:
    """Return what a MindFormers YAML states about adapters."""
    value = config.yaml_values.get("pet_config")
    return value if isinstance(value, dict) else {}


def _rank(specs: Sequence[TensorSpec]) -> int:
    ranks = sorted({spec.shape[0] for spec in specs if A in spec.name})
    if len(ranks) != 1:
        raise SourceError(
            f"the adapter's tensors have the ranks {', '.join(map(str, ranks))}, but PEFT's r is one number"
        )
    return ranks[0]


def _modules(specs: Sequence[TensorSpec]) -> list[str]:
    return sorted({spec.name.split(".lora_")[0].rsplit(".", 1)[1] for spec in specs})
