"""The registry of model families: by name, or by what a config says."""

from __future__ import annotations

import difflib

from ..errors import UnsupportedError, UsageError, quote
from . import deepseek, deepseek2, deepseek3, llama, mixtral, raw
from .base import Config, Family, Option, Options, Value, spell

__all__ = ["Config", "Family", "Option", "Options", "Value", "choose", "families", "find", "recognise", "spell"]

_MODULES = (deepseek, deepseek2, deepseek3, llama, mixtral, raw)
_FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def families() -> tuple[Family, ...]:
    """All families, by name."""
    return tuple(_FAMILIES[name] for name in sorted(_FAMILIES))


def find(name: str) -> Family:
    """The family that `--model NAME` asks for.

    Raises:
        UsageError: there is none of that name.
    """
    if name in _FAMILIES:
        return _FAMILIES[name]
    near = difflib.get_close_matches(name.lower(), list(_FAMILIES), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"model {quote(name)!r} is unknown; {hint}`streamconv models` lists them: {', '.join(sorted(_FAMILIES))}"
    )


def choose(name: str, config: Config) -> Family:
    """The family that `--model NAME` asks for, for a model of this config.

    Raises:
        UsageError: there is none of that name.
    """
    family = find(name)
    return find(family.successors.get(str(config.get("model_type")), name))


def recognise(config: Config) -> tuple[Family, str]:
    """The family a config.json asks for, and the words in it that said so.

    Raises:
        UnsupportedError: no family knows its `model_type`.
        UsageError: it has none.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UsageError(
            "the model cannot be recognised: no config.json says its model_type; give --model NAME or --config FILE"
        )
    for family in families():
        if model_type in family.model_types:
            return family, f'config.json: model_type "{model_type}"'
    raise UnsupportedError(
        f"config.json says model_type {quote(model_type)!r}, which no family covers; `streamconv models` lists those "
        "that are, and --model NAME chooses one by hand (--model raw renames nothing)"
    )
