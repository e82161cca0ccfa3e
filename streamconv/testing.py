"""Synthetic checkpoints with a family's real names and shapes, for tests of families, the demo and benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from .engine.floats import numpy_dtype
from .families import Config, Family, Options
from .formats import safetensors, shards
from .rules.patterns import Bindings, fill, number_holes, words
from .rules.sizes import Ranges, Sizes
from .rules.statements import Copy, Rule, Side, Tied
from .rules.transforms import ToInteger
from .tensors.dtypes import BF16, F8_E4M3, F32, DType
from .tensors.refs import OutputFile, TensorSpec, total_bytes
from .units import CHUNK


def hf_specs(
    family: Family,
    config: Config,
    options: Options | None = None,
    dtype: DType = BF16,
    optional: bool = False,
) -> list[TensorSpec]:
    """Return every HuggingFace tensor of a model of this config, by the family's own table.

    Args:
        family: the model family.
        config: what its config.json says.
        options: options of the family; by default the first value of each.
        dtype: of all tensors but integers and those that the model keeps in float32 on HuggingFace's side too.
        optional: whether optional tensors (biases, buffers) are among them.
    """
    chosen = {option.name: option.default for option in family.options} | dict(options or {})
    sizes = family.sized(config, chosen)
    table = family.rules(config, chosen)
    rules = {rule.hf: rule for rule in table if isinstance(rule, Rule) and (optional or not rule.optional)}
    shapes = {s.hf: s.shape for s in table if isinstance(s, Tied)} | {hf: rule.shape for hf, rule in rules.items()}
    copies = [Rule(s.hf, s.hf, shapes[s.of]) for s in table if isinstance(s, Copy) and s.of in shapes]
    return [
        TensorSpec(name, _dtype(rule, dtype), shape)
        for rule in (*rules.values(), *copies)
        for name, shape in _tensors(rule, Ranges(family.ranges, sizes), sizes)
    ]


def _dtype(rule: Rule, dtype: DType) -> DType:
    if isinstance(rule.transform, ToInteger):
        return rule.transform.left
    return F32 if Side.HF in rule.fp32 else dtype


def fp8_specs(specs: Iterable[TensorSpec], block: int = 128) -> list[TensorSpec]:
    """Return the tensors as DeepSeek publishes them: projections in FP8, each with the scales of its blocks."""
    result = []
    for spec in specs:
        if len(spec.shape) != 2 or "_proj" not in spec.name or ".eh_proj." in spec.name:
            result.append(spec)
            continue
        rows, columns = (-(-size // block) for size in spec.shape)
        result += [
            TensorSpec(spec.name, F8_E4M3, spec.shape),
            TensorSpec(spec.name + "_scale_inv", F32, (rows, columns)),
        ]
    return result


def _tensors(rule: Rule, ranges: Ranges, sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for pattern, spec in zip(rule.patterns(Side.HF), rule.shapes(), strict=True):
        shape = tuple(sizes.number(symbol) for symbol in spec.split(",")) if spec else ()
        fillings: list[Bindings] = list(words(pattern))
        for hole in sorted(number_holes((pattern,))):
            fillings = [{**f, hole: i} for f in fillings for i in ranges.values(hole)]
        yield from ((fill(pattern, filling, sizes), shape) for filling in fillings)


def write_hf(
    folder: Path, config: Config, specs: list[TensorSpec], max_shard_size: int, seed: int = 0, *, sparse: bool = False
) -> None:
    """Write a checkpoint of random normal values as transformers would: shards, index and config.json.

    Args:
        folder: the directory to create.
        config: what goes into config.json.
        specs: the tensors.
        max_shard_size: bytes of a shard at most.
        seed: the same seed gives the same values.
        sparse: write holes instead of values: zeros that take no space on disk.
    """
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    groups = shards.split(specs, max_shard_size)
    generator = None if sparse else np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = shards.hf_shard_name(number, len(groups))
        file = safetensors.lay_out(name, group, {"format": "pt"})
        _write(folder / name, file, group, generator)
        weight_map.update({spec.name: name for spec in group})
    if len(groups) > 1:
        total = total_bytes(specs)
        (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(total, weight_map))


def _write(path: Path, file: OutputFile, specs: list[TensorSpec], generator: np.random.Generator | None) -> None:
    with path.open("wb") as out:
        for offset, literal in file.literals:
            out.seek(offset)
            out.write(literal)
        out.truncate(file.size)
        if generator:
            _write_random(out, file, specs, generator)


def _write_random(out: IO[bytes], file: OutputFile, specs: list[TensorSpec], generator: np.random.Generator) -> None:
    for spec in specs:
        out.seek(file.extents[spec.name][0][0])
        for begin in range(0, spec.nbytes, CHUNK):
            count = min(CHUNK, spec.nbytes - begin) // spec.dtype.itemsize
            out.write(random_values(generator, count, spec.dtype).tobytes())


def random_values(
    generator: np.random.Generator, count: int, dtype: DType
) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """Return normally distributed values as large as weights are (standard deviation 0.02)."""
    values = generator.standard_normal(count, np.float32) * np.float32(0.02)
    return values.astype(numpy_dtype(dtype))
