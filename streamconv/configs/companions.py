"""The files next to the weights of a converted checkpoint: a config, tokenizer, generation and code files."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import reading
from ..storage import disk
from ..tensors.dtypes import DType
from ..tensors.refs import TensorSpec
from . import model_config, peft
from .model_config import ModelConfig

# Copied in both directions: tokenizer, generation and code files.
_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "chat_template.*",
    "preprocessor_config.json",
    "processor_config.json",
    "configuration_*.py",
    "modeling_*.py",
    "tokenization_*.py",
)


@dataclass(frozen=True)
class Companions:
    """The small files next to the weights.

    Attributes:
        texts: file name → content of the files that are written.
        copies: the files of the source that are copied as they are.
    """

    texts: Mapping[str, bytes] = field(default_factory=dict)
    copies: Sequence[Path] = ()


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
    return Companions(texts, copied_files(config, directory))


def of_peft_adapter(specs: Sequence[TensorSpec], config: ModelConfig, directory: Path, alpha: object) -> Companions:
    """Return the companions of an adapter under PEFT's names: a new adapter_config.json, and copies.

    Args:
        specs, config, directory, alpha: as for `peft.peft_config`, which also says what is raised.
    """
    text = peft.peft_config(specs, config, directory, alpha)
    return Companions({peft.CONFIG: text}, copied_files(config, directory))


def of_mindspore_adapter(config: ModelConfig, directory: Path) -> Companions:
    """Return the companions of an adapter under MindSpore's names: copies, also of PEFT's adapter_config.json.

    MindSpore does not read that one; the conversion back needs it.

    Raises:
        SourceError: the directory cannot be read.
    """
    found = directory / peft.CONFIG
    with reading(found):
        kept = [found] if disk.is_file(found) else []
    return Companions({}, [*kept, *copied_files(config, directory)])


def copied_files(config: ModelConfig, directory: Path) -> list[Path]:
    """Return the tokenizer, generation and code files next to the config, or without one next to the weights.

    They are sorted by name.

    Raises:
        SourceError: the directory cannot be listed.
    """
    home = config.path.parent if config.path else directory
    with reading(home, "cannot list"):
        return [home / name for name in disk.listdir(home) if is_copied(name) and disk.is_file(home / name)]


def is_copied(name: str) -> bool:
    """Return whether a file of this name is copied with the weights."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _COPIED)
