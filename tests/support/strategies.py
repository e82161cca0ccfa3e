"""Strategies for models of tests: some tensors cut on the first dimension, some on the last, some for the optimizer."""

from __future__ import annotations

from pathlib import Path

from streamconv.conversion import Plan
from streamconv.ranks.device_layouts import DeviceLayout
from streamconv.ranks.strategy_format import encode
from streamconv.tensors.refs import TensorSpec


def layout_of(spec: TensorSpec, number: int, devices: tuple[int, ...], shards: int) -> DeviceLayout:
    """The layout of one tensor: the last device axis cuts it where it can, every third for the optimizer besides."""
    cut = devices[-1]
    axes: list[tuple[int, ...]] = [() for _ in spec.shape]
    for axis in sorted(range(len(spec.shape)), key=lambda axis: (axis + number) % max(1, len(spec.shape))):
        if cut > 1 and spec.shape[axis] % cut == 0 and len(spec.shape) > 1:
            axes[axis] = (0,)
            break
    layout = DeviceLayout(devices, tuple(axes), shards if number % 3 == 0 else 0)
    fits = all(size % count == 0 for size, count in zip(spec.shape, layout.divisions, strict=True))
    return layout if fits else DeviceLayout(devices, tuple(axes))


def write(folder: Path, plan: Plan, devices: tuple[int, ...], shards: int = 0) -> Path:
    """Write the strategy of one stage for the tensors of a plan, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = [output.spec for output in plan.outputs]
    layouts = {spec.name: layout_of(spec, number, devices, shards) for number, spec in enumerate(specs)}
    (folder / "ckpt_strategy_rank_0.ckpt").write_bytes(encode(0, layouts))
    return folder
