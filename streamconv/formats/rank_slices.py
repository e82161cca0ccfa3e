"""Files of one rank: what a distributed training saves holds slices of tensors, and alone is no model.

Nothing in such a file says so; names do. Source: MindFormers 1.3 to 2.1 and MindSpore 2.10, and files that they wrote.

    PREFIX_rank_3-1_10.ckpt                    rank 3, epoch 1, step 10; also …-network, …-trainable_params, _breakpoint
    rank_3/checkpoint_3.ckpt                   what MindSpore's own functions write, in folders of these names
    PREFIX-model-0000003-0000008.safetensors   the fourth of 8 files, in MindFormers 2.x; …-opt-… is the optimizer's
    model-rank-3-part-0.safetensors            vLLM's sharded state

A training on a single card names its whole checkpoint like rank 0's, so rank 0 with no other rank in sight is read, and
the catalog says that it may be a slice. A name such as `lora_rank_16.safetensors` says nothing of the kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError, UnsupportedError
from ..storage import disk
from ..storage.whole_files import names_in
from ..text import quote, setting
from .shards import listing

_SAVED = re.compile(
    r"(?:.*_)?rank_(?P<rank>[0-9]+)(?P<run>_[0-9]{1,7})?"
    r"-(?=\w)(?:(?P<what>network|trainable_params)(?:-|(?=[_.])))?(?:(?P<epoch>[0-9]{1,18})_(?P<step>[0-9]{1,18}))?"
    r"(?P<break>_breakpoint)?"
    r"\.(?:ckpt|safetensors)",
    re.DOTALL,
)
# Longer numbers are no training's.
_MOST_DIGITS = 7
# Without leading zeros, as everybody writes it, and no number that only damage or malice makes.
_FOLDER = re.compile(r"rank_(?P<rank>0|[1-9][0-9]{0,6})")
_ITERATION = re.compile(
    r"(?:.+-)?(?P<what>model|opt)-(?P<rank>\d{7})-(?P<count>\d{7})\.safetensors",
    re.DOTALL,
)
_VLLM = re.compile(r"model-rank-(?P<rank>\d+)-part-\d+\.safetensors")
_STRATEGY = re.compile(r"(?:merged_)?(?:ckpt_)?strategy(?:_by)?(?:_rank)?(?:_(?P<number>\d+))?\.ckpt")
# HuggingFace's names: such a file in a folder `rank_8` is an experiment's, with a LoRA of rank 8.
_WHOLE = re.compile(r"(?:adapter_)?model\..*|pytorch_model.*|.*-of-\d+.*", re.DOTALL)
_WEIGHTS = (".ckpt", ".safetensors")
#: With which byte a strategy begins: field 1, a number. A checkpoint begins with field 1, a message.
STRATEGY_BEGINS = b"\x08"

_ALL_RANKS = "give {home}, which holds the files of all ranks"
_ONE_RANK = "copy the files of all ranks to {home}, each in a folder of its own (rank_0, rank_1, ...), and give that"


class Kind(NamedTuple):
    """How the slices of one program are named, what they are, and what to do with one, or with all of them."""

    names: re.Pattern[str]
    what: str
    hints: tuple[str, str]


_SAVED_KIND = Kind(_SAVED, "the file of rank {rank} of a distributed checkpoint", (_ONE_RANK, _ALL_RANKS))

#: Files that are slices, unless rank 0's is the only one, or they are one of one.
KINDS = (
    _SAVED_KIND,
    Kind(
        _ITERATION,
        "one of the {count} files of a distributed checkpoint",
        ("copy all of its files to {home}, metadata.json too, and give that", "give {home}, which holds all of them"),
    ),
    Kind(_VLLM, "vLLM's slice for rank {rank}", ("give the checkpoint that vLLM's slices were made from",) * 2),
)


def model_files(names: Iterable[str]) -> list[str]:
    """Return the files of weights that MindFormers 2.x saves into the directory of an iteration."""
    return [name for name in names if (found := _ITERATION.fullmatch(name)) and found["what"] == "model"]


def is_optimizer(name: str) -> bool:
    """Return whether a file holds only the state of MindFormers' optimizer."""
    found = _ITERATION.fullmatch(name)
    return found is not None and found["what"] == "opt"


def is_strategy(name: str) -> bool:
    """Return whether a file is MindSpore's account of how tensors are cut, which holds no tensors."""
    return _STRATEGY.fullmatch(name) is not None


def folder_rank(name: str) -> int | None:
    """Return the rank that a folder is named after: 3 for `rank_3`."""
    found = _FOLDER.fullmatch(name)
    return int(found["rank"]) if found else None


def file_rank(name: str) -> int | None:
    """Return the rank that a training's file is of, by its name: 3 for `llama_rank_3-1_10.ckpt`."""
    found = _SAVED.fullmatch(name)
    return int(found["rank"]) if found and len(found["rank"]) <= _MOST_DIGITS else None


#: What of a training's parameters a file may hold, in the order in which it is read if all are of one step.
_PARTS = ("trainable_params", "network", "")


class Saved(NamedTuple):
    """At which step of a training a file was saved, and what of it.

    Attributes:
        epoch, step: the epoch, and the step in it, both from 1; 0 where the name does not say.
        run: of several runs that saved into one folder, which; 0 for the first.
        what: `network` or `trainable_params` for a part of the training's parameters, else empty.
        is_breakpoint: saved because the training failed.
    """

    epoch: int = 0
    step: int = 0
    run: int = 0
    what: str = ""
    is_breakpoint: bool = False

    @property
    def order(self) -> tuple[bool, int, int, int, int, bool]:
        """Of several, the one that is read has the greatest: parameters that are trained are no whole model."""
        of_model = self.what != _PARTS[0]
        return of_model, self.epoch, self.step, self.run, _PARTS.index(self.what), self.is_breakpoint

    def __str__(self) -> str:
        """Return what chooses it: `1_10`, `1_10-network`, `1_10 of run 1`."""
        step = f"{self.epoch}_{self.step}" if self.epoch or self.step else "unknown"
        words = (f"-{self.what}" if self.what else "", f" of run {self.run}" if self.run else "")
        return f"{step}{''.join(words)}{' (breakpoint)' if self.is_breakpoint else ''}"


def saved_at(name: str) -> Saved:
    """Return at which step of a training a file of this name was saved, as far as the name says."""
    found = _SAVED.fullmatch(name)
    if found is None:
        return Saved()
    epoch, step, run = (int((found[key] or "0").lstrip("_")) for key in ("epoch", "step", "run"))
    return Saved(epoch, step, run, found["what"] or "", bool(found["break"]))


def is_whole(name: str) -> bool:
    """Return whether a file of weights is named as HuggingFace names those of a model."""
    return _WHOLE.fullmatch(name) is not None


def may_be_slices(names: Sequence[str]) -> bool:
    """Return whether the files of a folder named like a rank may be that rank's: weights, and no whole model."""
    weights = [name for name in names if name.endswith(_WEIGHTS) and not is_strategy(name)]
    return bool(weights) and not all(map(_WHOLE.fullmatch, weights))


def saved_by_training(folder: str, names: Sequence[str]) -> str | None:
    """Return the first of the names in a folder that a distributed training gives its weights or strategies.

    Args:
        folder: the folder's own name: in one named like a rank, weights of any name may be that rank's.
        names: names in it.
    """
    of_rank = folder_rank(folder) is not None
    for name in names:
        if is_strategy(name) or _SAVED.fullmatch(name) or _ITERATION.fullmatch(name):
            return name
        if of_rank and may_be_slices([name]):
            return name
    return None


class Doubt(NamedTuple):
    """Why a file that is read as a whole model may be a slice.

    Attributes:
        why: in words; empty where nothing speaks for it.
        is_likely: worth a warning; else only an explanation if shapes do not fit.
    """

    why: str = ""
    is_likely: bool = False


NO_DOUBT = Doubt()


def check(directory: Path, names: Sequence[str], neighbours: Sequence[str]) -> Doubt:
    """Refuse slices; return why what is read may be one all the same.

    Args:
        directory: where the files are, an absolute path without links.
        names: the files that would be read.
        neighbours: all names in the directory.

    Raises:
        UnsupportedError: they are slices for sure.
        SourceError: they are several checkpoints of one rank, each of which may be whole.
    """
    for kind in KINDS:
        found = [match for match in map(kind.names.fullmatch, names) if match]
        ranks = {int(match["rank"]) for match in map(kind.names.fullmatch, neighbours) if match}
        if found and (ranks - {0} or any(int(match.groupdict().get("count") or 1) > 1 for match in found)):
            raise _slices(kind, found, directory, ranks)
    of_folder = _by_folder(directory, names)
    return _by_name(directory, names) or of_folder


def check_file(path: Path) -> Doubt:
    """Refuse a file that is a slice; return why it may be one all the same.

    Raises:
        UnsupportedError: it is a slice for sure, or says how tensors are cut and holds none.
    """
    directory = Path(disk.resolve(path.parent))
    if is_strategy(path.name):
        raise UnsupportedError(
            f"{quote(path.name)} is a strategy file of MindSpore: it says how tensors are cut, and holds none",
            "give the directory of the checkpoint; strategy files are read from there, or given with "
            f"{setting('strategy', 'PATH')}",
        )
    if folder_rank(directory.name) is None and not any(kind.names.fullmatch(path.name) for kind in KINDS):
        return NO_DOUBT
    return check(directory, [path.name], [path.name, *names_in(directory)])


def _slices(kind: Kind, found: Sequence[re.Match[str]], directory: Path, ranks: Collection[int]) -> UnsupportedError:
    more = f", like {len(found) - 1} more" if len(found) > 1 else ""
    numbers = {key: int(text) for key, text in found[0].groupdict().items() if text and text.isdecimal()}
    what = f"{quote(found[0].string)} is {kind.what.format(**numbers)}{more}"
    own = folder_rank(directory.name)
    if own is None:
        return _refused(what, kind, directory, len(ranks) > 1)
    return _refused(what, kind, directory.parent, len(_ranks_beside(directory, own)) > 1)


def _refused(what: str, kind: Kind, home: Path, has_all: bool) -> UnsupportedError:
    return UnsupportedError(f"{what}: slices of tensors, not a model", kind.hints[has_all].format(home=quote(home)))


def _by_name(directory: Path, names: Sequence[str]) -> Doubt | None:
    """Return what the name of the only file of rank 0 says; refuse several, such as two steps of a training."""
    found = [match for match in map(_SAVED.fullmatch, names) if match]
    if len(found) > 1:
        newest = max(found, key=lambda match: (int(match["epoch"] or 0), int(match["step"] or 0)))
        shown = listing([match.string for match in found])
        raise SourceError(
            f"{quote(directory)} holds {len(found)} checkpoints of a training ({shown}): "
            "it is ambiguous which is meant",
            f"give the file to convert; the newest is {quote(newest.string)}",
        )
    return Doubt(f"{quote(found[0].string)} is named like the file of one rank", True) if found else None


def _by_folder(directory: Path, names: Sequence[str]) -> Doubt:
    """Refuse a folder such as `rank_1` if there are others; return what the name of a single one says."""
    own = folder_rank(directory.name)
    if own is None or all(map(_WHOLE.fullmatch, names)):
        return NO_DOUBT
    ranks = _ranks_beside(directory, own)
    if len(ranks) > 1 and 0 in ranks:
        what = f"{quote(directory)} holds {_SAVED_KIND.what.format(rank=own)}, one of {len(ranks)}"
        raise _refused(what, _SAVED_KIND, directory.parent, True)
    return Doubt(f"{quote(names[0])} is in a folder named like that of one rank, {directory.name}", own > 0)


def _ranks_beside(directory: Path, own: int) -> set[int]:
    """Return the ranks that have folders with weights next to a rank's, or strategy files, with its own."""
    others = ((folder_rank(name), directory.parent / name) for name in names_in(directory.parent))
    return {own, *(rank for rank, folder in others if rank not in (None, own) and _has_weights(folder))} | {
        int(found["number"])
        for place in (directory.parent, directory.parent.parent)
        for found in map(_STRATEGY.fullmatch, names_in(place / "strategy"))
        if found and found["number"]
    }


def _has_weights(folder: Path) -> bool:
    return any(name.endswith(_WEIGHTS) for name in names_in(folder))
