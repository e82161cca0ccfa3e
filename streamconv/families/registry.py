"""The registry of model families: found by name or by config; this package's, installed packages', and files."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import UnsupportedError, UsageError
from ..offers import entry_points
from ..paths import PathLike
from ..rules.family import Config, Family
from ..storage import disk
from ..text import did_you_mean, quote, setting

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: The group of entry points under which installed packages offer families of their own.
GROUP = "streamconv.families"

#: The modules of this package that define a family, by its name with `_` for `-`. They are imported when needed.
_MODULES = (
    *("baichuan2", "blip2", "bloom", "codegeex2", "cogvlm2", "deepseek", "deepseek2", "deepseek3", "deepseek32"),
    *("deepseek4", "glm4_moe", "glm_n", "gpt", "internlm", "internlm2", "internvl2", "knowlm", "llama", "llava"),
    *("mae", "mindone", "mixtral", "mllama", "qwen", "qwen1_5", "qwen2", "qwen2_5", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "qwenvl", "raw", "skywork", "swin", "telechat", "telechat2", "telechat3", "telechat3_moe", "vit"),
    *("whisper", "wizardcoder", "yi", "yizhao"),
)


def families() -> tuple[Family, ...]:
    """Return all families, sorted by name: this package's, and those that installed packages offer.

    Raises:
        UsageError: such a package cannot be loaded.
    """
    own = [_own(module) for module in _MODULES]
    known = {family.name: family for family in (*_offered(), *own)}
    return tuple(known[name] for name in sorted(known))


def _own(module: str) -> Family:
    family: Family = import_module(f".{module}", __package__).FAMILY
    return family


def _offered() -> Iterator[Family]:
    """Load the families of installed packages, each time again: one may have been installed since."""
    for entry in entry_points(group=GROUP):
        yield _load_offered(entry)


def _load_offered(entry: EntryPoint) -> Family:
    try:
        family = entry.load()
    except Exception as error:
        raise _broken(f"the installed package that offers {quote(entry.value)}", error) from error
    if not isinstance(family, Family):
        raise UsageError(
            f"{quote(entry.value)}, offered under {GROUP}, is not a streamconv.families.Family",
            "uninstall the package that offers it, or report this to its authors",
        )
    return family


def load(file: PathLike) -> Family:
    """Load a family from a Python file, which is executed and has to define `FAMILY`.

    Args:
        file: the Python file.

    Raises:
        UsageError: there is no such file, it fails, or it defines no family.
    """
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not disk.is_file(path) or spec is None or spec.loader is None:
        raise UsageError(f"no such Python file: {quote(path)}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(quote(path), error) from error
    return _defined(module, path)


def _defined(module: ModuleType, path: Path) -> Family:
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise UsageError(f"{quote(path)} defines no FAMILY = Family(...)", "see docs/adding-a-model.md")
    return family


def _broken(what: str, error: Exception) -> UsageError:
    line = next((f", line {number}" for number in _lines(error)), "")
    return UsageError(f"{what} cannot be loaded: {type(error).__name__}: {quote(error)}{line}")


def _lines(error: Exception) -> Iterator[int]:
    """Yield the line of the executed file at which the error was raised."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace and not isinstance(error, SyntaxError):
        yield trace.tb_lineno


def find(name: str) -> Family:
    """Return the family of a name.

    Args:
        name: a name such as "llama"; `list` returns all families.

    Raises:
        UsageError: no family has that name.
    """
    module = name.replace("-", "_")
    if module in _MODULES and _own(module).name == name:
        return _own(module)
    known = {family.name: family for family in families()}
    if name in known:
        return known[name]
    near = did_you_mean(name, known)
    raise UsageError(
        f"unknown model {quote(name)!r}",
        f"{near}{' ' if near else ''}the models are {', '.join(known)}; "
        f"a family of your own is given with {setting('family', 'FILE')}",
    )


def choose(name: str, config: Config) -> Family:
    """Return the family of a name, or its successor for a model of this config.

    Raises:
        UsageError: no family has that name.
    """
    family = find(name)
    return find(family.successors.get(str(config.get("model_type")), name))


def recognise(config: Config) -> tuple[Family, str]:
    """Return the family that a config.json asks for, and the entry that says so.

    The `model_type` decides; the architecture does where there is none, or one that no family covers: makers give
    models of known tensors a type of their own.

    Args:
        config: the parsed config.json.

    Raises:
        UnsupportedError: no family covers its `model_type` and `architectures`.
        UsageError: it has neither.
    """
    stated = list(_stated(config))
    for key, word in stated:
        fitting = [one for one in families() if word in getattr(one, _ENTRIES[key]) and _has_keys(config, one)]
        if fitting:
            return max(fitting, key=lambda family: len(family.required_keys)), f'config.json: {key} "{word}"'
    if not stated:
        raise UsageError(
            "the model cannot be recognised: no config.json with a model_type was found",
            f"give {setting('model', 'NAME')} or {setting('config', 'FILE')}",
        )
    raise UnsupportedError(
        f"no model family covers config.json's {' or '.join(f'{key} {quote(word)!r}' for key, word in stated)}",
        f"choose a family with {setting('model', 'NAME')}, or keep all names with {setting('model', 'raw')}",
    )


#: What of a config names the model -> the attribute of a family that lists its values.
_ENTRIES = {"model_type": "model_types", "architectures": "architectures"}


def _has_keys(config: Config, family: Family) -> bool:
    return all(required in config for required in family.required_keys)


def _stated(config: Config) -> Iterator[tuple[str, str]]:
    """Yield what names the model: its key in the config, and the name."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if isinstance(model_type, str):
        yield "model_type", model_type
    if isinstance(architectures, list):
        yield from (("architectures", name) for name in architectures[:1] if isinstance(name, str))
