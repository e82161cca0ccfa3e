"""A directory, listed: the names in it, and which of them may be weights of a model, by their names alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import reading
from ..storage import disk
from .header_room import HeaderRoom
from .rank_slices import is_optimizer, is_strategy
from .series import is_variant
from .shards import read_index

#: What a torch file may end in.
TORCH_ENDINGS = (".bin", ".pt", ".pth")

#: The format of a file by what its name ends in.
FORMATS = {".safetensors": "safetensors", ".ckpt": "ckpt", **dict.fromkeys(TORCH_ENDINGS, "torch")}

#: What the journal's name adds to that of the result being built, next to it.
JOURNAL = ".streamconv"

#: What describes the model, next to its weights.
CONFIG = "config.json"

ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_TRAINING = ("optimizer.", "scheduler.pt", "scaler.pt", "training_args.bin", "rng_state")


class Listing(NamedTuple):
    """A directory: the names in it, those that begin with a dot apart, and the bytes that an index may have."""

    directory: Path
    names: Sequence[str]
    header_room: HeaderRoom
    hidden: Sequence[str] = ()

    def weights(self, endings: str | tuple[str, ...]) -> list[str]:
        """Return the files that may be the checkpoint or parts of it; variants only if there is nothing else."""
        found = [name for name in self.names if name.endswith(endings) and not not_the_model(name)]
        return [name for name in found if not is_variant(name)] or found

    def read_index(self, name: str) -> dict[str, str]:
        """Return what an index states, or nothing if it does not exist."""
        return read_index(self.directory / name, self.header_room) if name in self.names else {}

    def directories(self) -> list[str]:
        """Return the names of the directories in it."""
        with reading(self.directory, "cannot list"):
            return [name for name in self.names if disk.is_directory(self.directory / name)]


def list_directory(directory: Path, header_room: HeaderRoom) -> Listing:
    """Return the names in a directory.

    Raises:
        SourceError: it cannot be listed.
    """
    with reading(directory, "cannot list"):
        names = disk.listdir(directory)
    hidden = [name for name in names if name.startswith(".")]
    return Listing(directory, [name for name in names if not name.startswith(".")], header_room, hidden)


def not_the_model(name: str) -> str | None:
    """Return why a file of weights with this name is not part of the model."""
    if name.startswith("consolidated"):
        return "the publisher's own arrangement of the same weights"
    if name in ADAPTERS:
        return "an adapter, not a model: merge it into its model first"
    if name.startswith(_TRAINING) and name.endswith(TORCH_ENDINGS):
        return "the state of a training run, not a model"
    if is_optimizer(name):
        return "the state of an optimizer, not a model"
    if is_strategy(name):
        return "a strategy file: it says how tensors are cut, and holds none"
    return None
