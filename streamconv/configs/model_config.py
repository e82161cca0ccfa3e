"""What describes a model: its config.json, found next to the weights or given, or a MindFormers YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from ..errors import SourceError, UsageError, reading
from ..formats.directory import FORMATS
from ..formats.header_room import HeaderRoom
from ..formats.headers import DOWNLOAD_AGAIN, check_json, is_deep, opened, refuse_pointer
from ..rules.config_sections import QUANTISATION, in_every_section, sections
from ..rules.family import REFERENCE, Config, Reference
from ..storage import disk, whole_files
from ..tensors.dtypes import TORCH_NAMES, DType
from ..text import quote, setting

CONFIG = "config.json"

#: The most bytes of a config.json, and of a YAML, which takes ten times the time and memory to parse.
LIMIT = 16 << 20
YAML_LIMIT = 64 << 10

#: The keys that state the dtype, in transformers 4 and 5; the first where there is none.
_DTYPES = ("torch_dtype", "dtype")
_FLOATS = ("float64", "float32", "float16", "bfloat16")


class ModelConfig(Struct, frozen=True):
    """A config; an empty one if there is none.

    Attributes:
        path: the file it was read from, `None` for no config.
        values: its keys and values under HuggingFace's names.
        yaml_values: those of a MindFormers YAML under MindFormers' names; empty for a config.json.
        reference: what the checkpoint next to it holds, for families whose rules depend on it.
    """

    path: Path | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    yaml_values: Mapping[str, object] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def for_rules(self) -> Config:
        """The values with the reference, as `Family.rules` takes them."""
        return self.values if self.reference is None else {**self.values, REFERENCE: self.reference}

    @property
    def is_copied(self) -> bool:
        """Whether it is a model's config.json, which a converted checkpoint gets a copy of."""
        return self.path is not None and not self.yaml_values and "peft_type" not in self.values


def load(directory: Path, given: Path | None, header_room: HeaderRoom | None = None) -> ModelConfig:
    """Return the given config, else the one next to the weights, else an empty one.

    Args:
        directory: where the weights are.
        given: a file, or a directory that holds a config.json; weights without one leave that next to the source's.
        header_room: bytes of JSON that the memory limit allows; without it as many as a config may have.

    Raises:
        UsageError: the one given does not exist.
        SourceError: it is neither a JSON object nor a MindFormers YAML.
        BudgetError: it is larger than `header_room` allows.
    """
    path = given or directory / CONFIG
    with reading(path):
        if given and _is_only_weights(given):
            given, path = None, directory / CONFIG
        path = path / CONFIG if given and disk.is_directory(path) else path
        found = disk.exists(path)
    if not found:
        if given:
            raise UsageError(f"{setting('config', quote(given))}: no such file or directory")
        return ModelConfig()
    if path.suffix not in (".yaml", ".yml"):
        return ModelConfig(path, read_json(path, header_room))
    from . import mindformers_yaml

    yaml_values = mindformers_yaml.parse(_read(path, YAML_LIMIT), quote(path))
    return ModelConfig(path, mindformers_yaml.as_config(yaml_values), yaml_values)


def _is_only_weights(path: Path) -> bool:
    """Whether a file or directory holds weights, and no config."""
    if disk.is_directory(path):
        return not disk.exists(path / CONFIG) and any(name.endswith(tuple(FORMATS)) for name in disk.listdir(path))
    return path.suffix in FORMATS and disk.exists(path)


def _read(path: Path, limit: int) -> bytes:
    with opened(path) as (descriptor, file):
        if file.size > limit:
            raise SourceError(f"{quote(path)} is larger than {limit} bytes, and no config is")
        text = whole_files.read_up_to(descriptor, limit, 0)
    refuse_pointer(text, quote(path))
    return text


def read_json(path: Path, header_room: HeaderRoom | None = None) -> Mapping[str, object]:
    """Return the JSON object in a small file.

    Args:
        path: the file.
        header_room: bytes of JSON that the memory limit allows; without it as many as a config may have.

    Raises:
        SourceError: it cannot be read, is too large for a config, or holds no JSON object.
        BudgetError: it is larger than `header_room` allows.
    """
    text = _read(path, LIMIT)
    if header_room is not None:
        check_json(text, quote(path), header_room)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{quote(path)} is not JSON: {quote(error)}", DOWNLOAD_AGAIN) from error
    if not isinstance(values, dict):
        raise SourceError(f"{quote(path)} holds no JSON object", DOWNLOAD_AGAIN)
    if is_deep(values):
        raise SourceError(f"{quote(path)} is nested deeper than any config", DOWNLOAD_AGAIN)
    return values


def _is_float(value: object) -> bool:
    """Whether a section's dtype is that of weights: a cache may be int8, and nothing is said by null or `auto`."""
    return isinstance(value, str) and value.removeprefix("torch.") in _FLOATS


def _stated_on_top(values: Mapping[str, object]) -> list[str]:
    """Return the keys that state the model's dtype: those that are there, or one where no section states any."""
    keys = [key for key in _DTYPES if key in values]
    if keys or any(_is_float(section.get(key)) for section in sections(values) for key in _DTYPES):
        return keys
    return [_DTYPES[0]]


#: What of a config describes quantised weights: other names are older compressed-tensors' and msModelSlim's.
_OF_QUANTISED = (QUANTISATION, "compression_config", "quantize")


def updated(config: ModelConfig, dtype: DType | None, dequantised: bool, updates: Mapping[str, object]) -> bytes:
    """Return the config.json of the converted checkpoint, mended in all its sections.

    Args:
        config: the source's.
        dtype: the dtype to state; `None` leaves the stated one.
        dequantised: drop `quantization_config`, which no longer holds.
        updates: further keys and values, set where the config has the key.
    """

    def mend(section: dict[str, object]) -> None:
        section.update((key, value) for key, value in updates.items() if key in section)
        described = [section.pop(key, None) for key in _OF_QUANTISED if dequantised]
        was_fp8 = any(entry is not None for entry in described)
        stated = [key for key in _DTYPES if key in section and (was_fp8 or _is_float(section[key]))]
        if dtype is not None:
            section.update(dict.fromkeys(stated, TORCH_NAMES[dtype]))

    values = in_every_section(config.values, mend)
    if dtype is not None:
        values.update(dict.fromkeys(_stated_on_top(values), TORCH_NAMES[dtype]))
    # In ASCII, as transformers writes it: a lone surrogate is valid in JSON's escapes only.
    return (json.dumps(values, indent=2) + "\n").encode()
