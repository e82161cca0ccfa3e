"""What a training leaves, cut by NumPy alone: slices by a rule that shares no code with what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamconv.formats import ckpt, safetensors
from streamconv.ranks import strategy_format
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.tensors import dtypes
from streamconv.tensors.refs import TensorSpec
from support import golden

Array = NDArray[Any]

#: MindSpore's names of dtypes in metadata.json.
MINDSPORE = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor: its dtype as safetensors names it, and its elements' bits."""

    dtype: str
    bits: Array = field(repr=False)

    @classmethod
    def of(cls, spec: TensorSpec) -> Tensor:
        """The tensor that this name, dtype and shape always have."""
        data = np.frombuffer(golden.golden_bytes(spec), f"<u{spec.dtype.itemsize}")
        return cls(spec.dtype.name, data.reshape(spec.shape))

    def spec(self, name: str) -> TensorSpec:
        """What is to be written of it."""
        return TensorSpec(name, dtypes.from_safetensors(self.dtype, name), self.bits.shape)


@dataclass(frozen=True)
class Cut:
    """How a tensor is cut for the ranks of a stage.

    Attributes:
        devices: the device matrix.
        axes: per dimension, the device axes that cut it, counted from the right, the most significant first.
        shards: `opt_weight_shard_size`.
    """

    devices: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    shards: int = 0

    def layout(self) -> DeviceLayout:
        """The same for the program."""
        return DeviceLayout(self.devices, self.axes, self.shards)

    @property
    def ranks(self) -> int:
        """How many ranks the stage has."""
        return math.prod(self.devices)

    def free(self) -> list[int]:
        """Positions of the device axes that cut nothing."""
        named = {len(self.devices) - 1 - axis for axes in self.axes for axis in axes}
        return [position for position, size in enumerate(self.devices) if size > 1 and position not in named]

    def parts(self) -> int:
        """Into how many parts optimizer sharding cuts dimension 0 of a slice."""
        return math.prod(self.devices[p] for p in self.free()) if self.shards < 0 else self.shards or 1

    def of(self, array: Array, rank: int) -> Array:
        """The slice of a rank, by splitting again and again."""
        numbers = np.arange(self.ranks).reshape(self.devices)
        place = [int(at) for at in np.argwhere(numbers == rank)[0]]
        for dimension, axes in enumerate(self.axes):
            for axis in axes:
                position = len(self.devices) - 1 - axis
                array = np.split(array, self.devices[position], dimension)[place[position]]
        if (parts := self.parts()) > 1:
            free = self.free()
            ravelled = np.ravel_multi_index([place[p] for p in free], [self.devices[p] for p in free])
            array = np.split(array, parts, 0)[int(ravelled) % parts]
        return np.ascontiguousarray(array).reshape(array.shape)

    def slices(self) -> list[tuple[int, ...]]:
        """Which part of each dimension each rank has."""
        of = [self.of(self._numbers(), rank) for rank in range(self.ranks)]
        if not self.axes:
            return [()] * self.ranks
        at = [np.unravel_index(int(array.reshape(-1)[0]), (self.ranks,) * len(self.axes)) for array in of]
        return [tuple(int(i) // n for i, n in zip(one, of[0].shape, strict=True)) for one in at]

    def divisions(self) -> list[int]:
        """Into how many parts each dimension is cut."""
        return [self.ranks // part for part in self.of(self._numbers(), 0).shape]

    def groups(self) -> list[list[int]]:
        """Which ranks hold the same slice, in the order of the first of each."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, piece in enumerate(self.slices()):
            found.setdefault(piece, []).append(rank)
        return list(found.values())

    def _numbers(self) -> Array:
        # Every cut divides this: all device axes together are as many as there are ranks.
        shape = (self.ranks,) * len(self.axes)
        return np.arange(math.prod(shape)).reshape(shape)


@dataclass
class Stage:
    """What the ranks of a stage hold: the cut of each tensor, and whole tensors that no strategy names."""

    cuts: dict[str, Cut] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)


@dataclass
class Training:
    """Whole tensors, and how they are divided among stages and ranks."""

    tensors: Mapping[str, Tensor]
    stages: Sequence[Stage]
    devices: tuple[int, ...]

    @property
    def stage_ranks(self) -> int:
        """How many ranks a stage has."""
        return math.prod(self.devices)

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.stage_ranks * len(self.stages)

    def held(self, rank: int) -> dict[str, Tensor]:
        """What a rank holds if nothing is removed."""
        number, local = divmod(rank, self.stage_ranks)
        stage = self.stages[number]
        cut = {name: Tensor(one.dtype, cut.of(one.bits, local)) for name, one, cut in self._of(stage)}
        return {**cut, **{name: self.tensors[name] for name in stage.unlisted}}

    def _of(self, stage: Stage) -> Iterator[tuple[str, Tensor, Cut]]:
        return ((name, self.tensors[name], cut) for name, cut in stage.cuts.items())

    def all_held(self) -> dict[int, dict[str, Tensor]]:
        """What each rank holds if nothing is removed."""
        return {rank: self.held(rank) for rank in range(self.world)}

    def without_copies(self, pick: Callable[[Sequence[int]], int]) -> dict[int, dict[str, Tensor]]:
        """What each rank holds with each slice in one rank of its replicas, as `pick` chooses it."""
        found = self.all_held()
        for number, stage in enumerate(self.stages):
            for name, cut in stage.cuts.items():
                for group in cut.groups():
                    ranks = [number * self.stage_ranks + rank for rank in group]
                    for rank in {*ranks} - {pick(ranks)}:
                        del found[rank][name]
        return found


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write one file, .ckpt or safetensors by its name."""
    specs = [tensor.spec(name) for name, tensor in tensors.items()]
    if path.suffix == ".ckpt":
        layout = ckpt.lay_out(path.name, specs)
    else:
        layout = safetensors.lay_out(path.name, specs, metadata or {"format": "ms"})
    path.parent.mkdir(parents=True, exist_ok=True)
    golden.write(path, layout, {name: tensor.bits.tobytes() for name, tensor in tensors.items()})
    return path


def write_ranks(
    root: Path,
    held: Mapping[int, Mapping[str, Tensor]],
    name: str = "tiny_rank_{rank}-1_10.ckpt",
    folder: str = "checkpoint",
) -> Path:
    """Write a file for each rank into folders as MindFormers does; return the root."""
    for rank, tensors in held.items():
        write_file(root / folder / f"rank_{rank}" / name.format(rank=rank), tensors)
    return root


def write_strategies(root: Path, training: Training, kind: str = "protobuf") -> Path:
    """Write the strategies of all ranks (`protobuf`), or of each stage (`json`); return their folder."""
    place = root / "strategy"
    place.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(training.stages):
        if kind == "json":
            (place / f"stage_{number}.json").write_text(json.dumps(_as_json(number, stage)))
            continue
        data = strategy_format.encode(number, {name: cut.layout() for name, cut in stage.cuts.items()})
        for rank in range(number * training.stage_ranks, (number + 1) * training.stage_ranks):
            (place / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(data)
    return place


def _as_json(number: int, stage: Stage) -> dict[str, object]:
    def item(cut: Cut) -> dict[str, object]:
        several = any(len(axes) > 1 for axes in cut.axes)
        maps = [list(axes) or -1 if several else (axes or (-1,))[0] for axes in cut.axes]
        sharded = cut.parts() > 1
        return {
            "dev_matrix": list(cut.devices),
            "tensor_map": maps,
            "field": 0,
            "opt_weight_shard_size": cut.shards if sharded else 0,
            "opt_weight_shard_step": int(sharded),
        }

    return {
        "current_stage": number,
        "parallel_strategy_item": {"MatMul-op0": {"stage": number, "parallel_strategy": []}},
        "parallel_layout_item": {name: item(cut) for name, cut in stage.cuts.items()},
    }


def write_iteration(
    root: Path,
    training: Training,
    held: Mapping[int, Mapping[str, Tensor]],
    *,
    number: int = 10,
    prefix: str = "",
    is_optimizer: Callable[[str], bool] = lambda name: False,
    version: str = "2.1",
    counts_files: bool = False,
    tracker: bool = True,
) -> Path:
    """Write the directory of an iteration as MindFormers 1.8 or 2.1 does; return it.

    Args:
        root: where `checkpoint` is made.
        training: how tensors are cut.
        held: what each rank stores.
        number: of the iteration.
        prefix: of the files.
        is_optimizer: which tensors are in files of their own.
        version: `1.8` or `2.1`.
        counts_files: whether files are numbered on their own, as where copies are removed.
        tracker: whether it is the newest.
    """
    place = root / "checkpoint" / f"iteration_{number:08}"
    place.mkdir(parents=True)
    name_of: dict[tuple[int, bool], str] = {}
    for of_optimizer, word in ((False, "model"), (True, "opt")):
        some = {
            rank: {name: one for name, one in tensors.items() if is_optimizer(name) == of_optimizer}
            for rank, tensors in held.items()
        }
        ranks = [rank for rank in some if some[rank]]
        total = len(ranks) if counts_files else training.world
        for position, rank in enumerate(ranks):
            index = position if counts_files else rank
            name_of[rank, of_optimizer] = f"{prefix}{word}-{index:07}-{total:07}.safetensors"
            write_file(place / name_of[rank, of_optimizer], some[rank])
    metadata = _metadata(training, held, lambda rank, name: name_of[rank, is_optimizer(name)], version)
    style: dict[str, Any] = {"separators": (",", ":")} if version == "2.1" else {"indent": 4}
    (place / "metadata.json").write_text(json.dumps(metadata, ensure_ascii=False, **style), "utf-8")
    (place / "common.json").write_text(json.dumps({"global_step": number}))
    if tracker:
        (place.parent / "latest_checkpointed_iteration.txt").write_text(str(number))
    return place


def _metadata(
    training: Training,
    held: Mapping[int, Mapping[str, Tensor]],
    file_of: Callable[[int, str], str],
    version: str,
) -> dict[str, object]:
    tensors: dict[str, object] = {}
    storage: dict[str, object] = {}
    for number, stage in enumerate(training.stages):
        first = number * training.stage_ranks
        for name, cut in stage.cuts.items():
            divisions, slices = cut.divisions(), cut.slices()
            shape = training.tensors[name].bits.shape
            local = [size // count for size, count in zip(shape, divisions, strict=True)]
            numbers = [int(np.ravel_multi_index(one, divisions)) if divisions else 0 for one in slices]
            tensors[name] = {
                "properties": {
                    "dtype": MINDSPORE[training.tensors[name].dtype],
                    "replica_id": [0] * len(slices),
                    "allow_shape_mismatch": False,
                    "allow_to_save": True,
                },
                "global_shape": list(shape),
                "axis_fragmentations": divisions,
                "layout": _saved_layout(cut, first),
                "chunk": [{"global_offset": [k], "local_shape": local} for k in dict.fromkeys(numbers)],
            }
            for k in dict.fromkeys(numbers):
                group = [first + rank for rank, one in enumerate(numbers) if one == k]
                more = {"rank_group": group} if version == "2.1" else {}
                storage[repr((name, (k,)))] = [
                    {"file_name": file_of(rank, name), "storage_rank": rank, **more}
                    for rank in group
                    if name in held.get(rank, {})
                ]
    return {"state_dict_metadata": tensors, "storage_data": storage}


def _saved_layout(cut: Cut, first: int) -> dict[str, object]:
    """The layout in metadata.json: optimizer sharding is part of the map of dimension 0."""
    maps: list[list[int]] = [list(axes) for axes in cut.axes]
    if cut.parts() > 1:
        maps[0] += [len(cut.devices) - 1 - position for position in cut.free()]
    return {
        "device_matrix": list(cut.devices),
        "tensor_map": [-1 if not axes else axes[0] if len(axes) == 1 else axes for axes in maps],
        "interleaved_parallel": False,
        "alias_name": [chr(97 + i) for i in range(len(cut.devices))],
        "rank_list": [*range(first, first + cut.ranks)],
    }


def drawn_cut(random: Random, devices: tuple[int, ...], shape: Iterable[int], partial: bool = True) -> Cut:
    """Any cut of a tensor for these devices: its size is divided by it.

    Args:
        random: decides.
        devices: the device matrix; each tensor may name any of its axes, or none.
        shape: the whole tensor's.
        partial: whether optimizer sharding may cut into fewer parts than there are copies.
    """
    left = list(shape)
    maps: list[list[int]] = [[] for _ in left]
    for axis in random.sample(range(len(devices)), len(devices)) if left else ():
        dimension, size = random.randrange(len(left)), devices[len(devices) - 1 - axis]
        if random.random() < 0.7 and left[dimension] % size == 0:
            maps[dimension].append(axis)
            left[dimension] //= size
    cut = Cut(devices, tuple(map(tuple, maps)))
    copies = math.prod(devices[position] for position in cut.free())
    counts = [count for count in range(2, copies + 1) if left and copies % count == 0 and left[0] % count == 0]
    if counts and random.random() < 0.5:
        count = random.choice(counts if partial else [c for c in counts if c == copies] or [0])
        return Cut(devices, cut.axes, -1 if count == copies and random.random() < 0.5 else count)
    return cut
