"""LoRA adapters as PEFT stores them: `adapter_model.safetensors`, and `adapter_config.json` with what no tensor tells.

The scale of an adapter is lora_alpha / r. MindFormers has alpha in its YAML only, so the way back needs that, an
adapter_config.json beside the adapter, or the number itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import SourceError, UsageError, reading
from ..storage import disk
from ..tensors.refs import TensorSpec
from ..text import quote
from .model_config import ModelConfig, read_json

CONFIG = "adapter_config.json"
ALPHA = "lora_alpha"
_MOST_ALPHA = 1 << 31

_DEFAULTS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_dropout": 0.0,
}


def peft_config(specs: Sequence[TensorSpec], config: ModelConfig, directory: Path, alpha: object) -> bytes:
    """The adapter_config.json of an adapter.

    Args:
        specs: its tensors, under PEFT's names.
        config: what was given with --config: an adapter_config.json, or a MindFormers YAML.
        directory: where the source's own adapter_config.json would lie.
        alpha: `lora_alpha` as given by hand, `None` if it was not.

    Raises:
        UsageError: nothing tells lora_alpha.
        SourceError: the rank in the file is not the tensors', or these have several, or lora_alpha is no number.
    """
    found = _found(config, directory)
    rank, said = _rank(specs), found.get("r")
    if said not in (None, rank):
        raise SourceError(f"{CONFIG} says r = {quote(said)}, and the adapter's tensors have rank {rank}")
    told = next((one for one in (alpha, found.get(ALPHA), _pet(config).get(ALPHA)) if one is not None), None)
    if told is None:
        raise UsageError(
            "an adapter is scaled by lora_alpha / r, and nothing tells lora_alpha: give -o lora_alpha=N, or the "
            f"MindFormers YAML or the {CONFIG} with --config FILE"
        )
    # The text of a number may be without end, and that of lists in a YAML, which may hold one another, is.
    if not isinstance(told, int | float) or isinstance(told, bool) or not 0 < told < _MOST_ALPHA:
        raise SourceError(f"{ALPHA} is no number between 0 and {_MOST_ALPHA}; give the right one with -o {ALPHA}=N")
    values = {**_DEFAULTS, **found, "r": rank, ALPHA: told, "target_modules": _modules(specs)}
    return (json.dumps(values, indent=2) + "\n").encode()


def _found(config: ModelConfig, directory: Path) -> Mapping[str, object]:
    if "peft_type" in config.values:
        return config.values
    path = directory / CONFIG
    with reading(path):
        found = disk.is_file(path)
    return read_json(path) if found else {}


def _pet(config: ModelConfig) -> Mapping[str, object]:
    """What a MindFormers YAML says of the adapters."""
    value = config.yaml_values.get("pet_config")
    return value if isinstance(value, dict) else {}


def _rank(specs: Sequence[TensorSpec]) -> int:
    ranks = sorted({spec.shape[0] for spec in specs if ".lora_A." in spec.name})
    if len(ranks) != 1:
        raise SourceError(f"the adapter's tensors have the ranks {', '.join(map(str, ranks))}; PEFT's r is one number")
    return ranks[0]


def _modules(specs: Sequence[TensorSpec]) -> list[str]:
    return sorted({spec.name.split(".lora_")[0].rsplit(".", 1)[1] for spec in specs})
