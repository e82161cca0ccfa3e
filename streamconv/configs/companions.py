"""The files next to the weights of a converted checkpoint: a config, and all that goes along with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field

from ..errors import reading
from ..storage import disk
from ..tensors.dtypes import DType
from ..tensors.refs import TensorSpec
from . import companion_files, model_config, peft, peft_scale
from .model_config import ModelConfig


class Companions(Struct, frozen=True):
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


class Home(Struct, frozen=True):
    """Where companions are looked for: next to the weights, and next to the config, which wins.

    Attributes:
        config: the source's config.
        weights: where the source's weights are.
        is_repository: whether that directory was given as the source, not a file in it.
        keeps_peft: whether the result is an adapter under PEFT's names as the source is, and keeps its config.
    """

    config: ModelConfig
    weights: Path
    is_repository: bool
    keeps_peft: bool = False

    def find(self, dequantised: bool = False) -> companion_files.Found:
        """Return the files that go along.

        Raises:
            SourceError: a directory cannot be listed.
        """
        kept = (peft.CONFIG,) if self.keeps_peft else ()
        found = companion_files.find(self.weights, self.is_repository, kept, dequantised)
        path = self.config.path
        if path is None or self.config.yaml_values or disk.resolve(path.parent) == disk.resolve(self.weights):
            return found
        return found.under(companion_files.find(path.parent, False, (), dequantised))


def of_model(home: Home, dtype: DType | None, dequantised: bool, updates: Mapping[str, object]) -> Companions:
    """Return the companions of a model: its updated config.json if it has one, and copies.

    Args:
        home: where they are.
        dtype, dequantised, updates: as for `model_config.updated`.

    Raises:
        SourceError: a directory cannot be listed.
    """
    texts = {}
    if home.config.is_copied:
        texts[model_config.CONFIG] = model_config.updated(home.config, dtype, dequantised, updates)
    found = home.find(dequantised)
    return Companions(texts, found.copies, found.left, found.warnings)


def of_peft_adapter(home: Home, specs: Sequence[TensorSpec], alpha: object) -> Companions:
    """Return the companions of an adapter under PEFT's names: a new adapter_config.json, and copies.

    Args:
        home: where they are.
        specs, alpha: as for `peft.peft_config`, which also says what is raised.
    """
    text = peft.peft_config(specs, home.config, home.weights, alpha)
    found = home.find()
    return Companions({peft.CONFIG: text}, found.copies, found.left, found.warnings)


def of_mindspore_adapter(home: Home, specs: Sequence[TensorSpec]) -> Companions:
    """Return the companions of an adapter under MindSpore's names: copies, also of PEFT's adapter_config.json.

    MindSpore does not read that one; the conversion back needs it. What it says of the scale is among the warnings.

    Args:
        home: where they are.
        specs: the adapter's tensors, under PEFT's names.

    Raises:
        SourceError: a file cannot be read.
        UnsupportedError: MindFormers cannot scale the adapter as PEFT does.
    """
    path = home.weights / peft.CONFIG
    with reading(path):
        is_there = disk.is_file(path)
    found = home.find()
    warnings = peft_scale.warnings(peft.read(home.config, home.weights), specs)
    copies = {**({peft.CONFIG: path} if is_there else {}), **found.copies}
    left = {name: why for name, why in found.left.items() if name not in copies}
    return Companions({}, copies, left, (*found.warnings, *warnings))
