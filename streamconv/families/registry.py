"""The registry of model families: by name, or by what a config says; those of this package, and those of others."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from ..errors import UnsupportedError, UsageError
from ..rules.family import Config, Family, Option, Options, Value, spell, whole_number
from ..rules.statements import Copy, Drop, Rule, Statement, Tied
from ..rules.transforms import (
    Deinterleave,
    Flatten,
    Identity,
    InsertZeros,
    Interleave,
    Pad,
    PerTensor,
    Squeeze,
    Transform,
    Transpose,
    Unflatten,
    Unsqueeze,
)
from ..storage import disk
from ..text import quote
from . import (
    baichuan2,
    blip2,
    bloom,
    codegeex2,
    cogvlm2,
    deepseek,
    deepseek2,
    deepseek3,
    glm_n,
    gpt,
    internlm,
    internlm2,
    knowlm,
    llama,
    llava,
    mae,
    mixtral,
    qwen,
    qwen1_5,
    qwen2,
    qwen2_5,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    qwenvl,
    raw,
    skywork,
    swin,
    telechat,
    telechat2,
    vit,
    whisper,
    wizardcoder,
    yi,
)

__all__ = [
    "Config",
    "Copy",
    "Deinterleave",
    "Drop",
    "Family",
    "Flatten",
    "Identity",
    "InsertZeros",
    "Interleave",
    "Option",
    "Options",
    "Pad",
    "PerTensor",
    "Rule",
    "Squeeze",
    "Statement",
    "Tied",
    "Transform",
    "Transpose",
    "Unflatten",
    "Unsqueeze",
    "Value",
    "choose",
    "families",
    "find",
    "load",
    "recognise",
    "spell",
    "whole_number",
]

#: The group of entry points under which installed packages offer families of their own.
GROUP = "streamconv.families"

_MODULES = (
    telechat2,
    telechat,
    qwenvl,
    cogvlm2,
    llava,
    blip2,
    mae,
    vit,
    swin,
    wizardcoder,
    bloom,
    deepseek,
    deepseek2,
    deepseek3,
    llama,
    mixtral,
    raw,
    yi,
    skywork,
    qwen2,
    qwen3_moe,
    qwen3,
    qwen2_moe,
    qwen2_5,
    qwen1_5,
    qwen,
    knowlm,
    internlm2,
    internlm,
    gpt,
    glm_n,
    codegeex2,
    baichuan2,
    whisper,
)
_OWN: Mapping[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def families() -> tuple[Family, ...]:
    """All families, by name: this package's, and those that other installed packages offer.

    Raises:
        UsageError: such a package is broken.
    """
    known = _known()
    return tuple(known[name] for name in sorted(known))


@cache
def _known() -> Mapping[str, Family]:
    offered = {entry.name: _offered(entry) for entry in entry_points(group=GROUP)}
    return {**{family.name: family for family in offered.values()}, **_OWN}


def _offered(entry: EntryPoint) -> Family:
    try:
        family = entry.load()
    except Exception as error:
        raise _broken(f"the installed package that offers {quote(entry.value)}", error) from error
    if not isinstance(family, Family):
        raise UsageError(
            f"{quote(entry.value)}, offered under {GROUP}, is no streamconv.families.Family; "
            "uninstall its package, or have it mended"
        )
    return family


def load(file: str | os.PathLike[str]) -> Family:
    """The family in a Python file of the user's, which is run: its module has to define `FAMILY`.

    Raises:
        UsageError: there is no such file, it fails, or defines no family.
    """
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not disk.is_file(path) or spec is None or spec.loader is None:
        raise UsageError(f"--family {quote(path)}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(f"--family {quote(path)}", error) from error
    return _defined(module, path)


def _defined(module: ModuleType, path: Path) -> Family:
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise UsageError(f"--family {quote(path)} defines no FAMILY = Family(…); see docs/adding-a-model.md")
    return family


def _broken(what: str, error: Exception) -> UsageError:
    line = next((f", line {number}" for number in _lines(error)), "")
    return UsageError(f"{what} cannot be loaded: {type(error).__name__}: {quote(error)}{line}")


def _lines(error: Exception) -> Iterator[int]:
    """Where in the file that was run last the error came up."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace and not isinstance(error, SyntaxError):
        yield trace.tb_lineno


def find(name: str) -> Family:
    """The family that `--model NAME` asks for.

    Raises:
        UsageError: there is none of that name.
    """
    known = _known()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"model {quote(name)!r} is unknown; {hint}`streamconv models` lists them: {', '.join(sorted(known))}; "
        "one of your own needs --family FILE"
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
    said = _says(config)
    if said is None:
        raise UsageError(
            "the model cannot be recognised: no config.json says its model_type; give --model NAME or --config FILE"
        )
    key, word = said
    candidates = [family for family in families() if word in (family.model_types + family.architectures)]
    fitting = [family for family in candidates if all(mark in config for mark in family.marks)]
    if fitting:
        return max(fitting, key=lambda family: len(family.marks)), f'config.json: {key} "{word}"'
    raise UnsupportedError(
        f"config.json says {key} {quote(word)!r}, which no family covers; `streamconv models` lists those "
        "that are, and --model NAME chooses one by hand (--model raw renames nothing)"
    )


def _says(config: Config) -> tuple[str, str] | None:
    """The key of the config that names the model, and the name."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if isinstance(model_type, str):
        return "model_type", model_type
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return "architectures", architectures[0]
    return None
