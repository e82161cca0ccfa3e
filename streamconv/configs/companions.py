"""The files next to the weights of a converted checkpoint: a config, and all that goes along with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import reading
from ..storage import disk
from ..tensors.dtypes import DType
from ..tensors.refs import TensorSpec
from . import companion_files, model_config, peft, peft_scale
from .model_config import ModelConfig


@dataclass(frozen=True)
class Companions:
    """The small files next to the weights.

    Attributes:
        texts: name -> content of a file to be written.
        copies: name, with `/` in subfolders -> the file that is copied.
        left: file of the source that stays behind -> why.
        warnings: what has to be known to use the result.
    """

    texts: Mapping[str, bytes] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def of_model(
    config: ModelConfig, directory: Path, dtype: DType | None, dequantised: bool, updates: Mapping[str, object]
) -> Companions:
    """Return the companions of a model: its updated config.json if it has one, and copies.

    Args:
        config: the source's.
        directory: where the source's weights are.
        dtype, dequantised, updates: as for `model_config.updated`.

    Raises:
        SourceError: the directory cannot be listed.
    """
    texts = {}
    if config.is_copied:
        texts[model_config.CONFIG] = model_config.updated(config, dtype, dequantised, updates)
    found = companion_files.find(_home(config, directory), dequantised)
    return Companions(texts, found.copies, found.left)


def of_peft_adapter(specs: Sequence[TensorSpec], config: ModelConfig, directory: Path, alpha: object) -> Companions:
    """Return the companions of an adapter under PEFT's names: a new adapter_config.json, and copies.

    Args:
        specs, config, directory, alpha: as for `peft.peft_config`, which also says what is raised.
    """
    text = peft.peft_config(specs, config, directory, alpha)
    found = companion_files.find(_home(config, directory))
    return Companions({peft.CONFIG: text}, found.copies, found.left)


def of_mindspore_adapter(specs: Sequence[TensorSpec], config: ModelConfig, directory: Path) -> Companions:
    """Return the companions of an adapter under MindSpore's names: copies, also of PEFT's adapter_config.json.

    MindSpore does not read that one; the conversion back needs it. What it says of the scale is among the warnings.

    Args:
        specs: the adapter's tensors, under PEFT's names.
        config: the source's.
        directory: where the source's weights are.

    Raises:
        SourceError: a file cannot be read.
        UnsupportedError: MindFormers cannot scale the adapter as PEFT does.
    """
    path = directory / peft.CONFIG
    with reading(path):
        is_there = disk.is_file(path)
    found = companion_files.find(_home(config, directory))
    warnings = peft_scale.warnings(peft.read(config, directory), specs)
    return Companions({}, {**({peft.CONFIG: path} if is_there else {}), **found.copies}, found.left, tuple(warnings))


def _home(config: ModelConfig, directory: Path) -> Path:
    """Return where companions are looked for: next to the config, or without one next to the weights."""
    return config.path.parent if config.path else directory
