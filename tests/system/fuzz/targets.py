"""What is fuzzed: each target takes bytes, and parses them or raises a `StreamconvError`; anything else is a finding.

What is parsed has to make sense, too: every extent lies in the file, sizes agree with shapes, and what passes for
safetensors is the same to the safetensors library. Time and memory are bounded for every input.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors as library

import streamconv
from streamconv import testing as samples
from streamconv.configs import mindformers_yaml as mindformers
from streamconv.configs.model_config import updated
from streamconv.errors import StreamconvError
from streamconv.families import find
from streamconv.formats import ckpt, safetensors, shards
from streamconv.formats import torch_reader as torch
from streamconv.formats.header_room import HeaderRoom
from streamconv.output import manifest, paths
from streamconv.tensors.extents import SourceFile
from streamconv.tensors.refs import TensorRef
from support import FIXTURES, helpers, hostile
from system.fuzz import mutate

#: Bytes of header, and what one input may take: twenty times as much, and what the allocator makes of it.
ROOM = HeaderRoom(1 << 20)
MOST_MEMORY = 100 << 20
#: Nothing of this size takes so many seconds, unless it hangs.
HANG = 20


class Target(NamedTuple):
    """A parser: valid inputs, how they are changed, and what reads them from a folder of its own."""

    seeds: Callable[[], list[bytes]]
    mutator: mutate.Mutator
    parse: Callable[[bytes, Path], None]


@contextmanager
def bounded() -> Iterator[None]:
    """Time and memory of the block."""

    def hang(number: int, frame: object) -> None:
        raise AssertionError(f"more than {HANG} seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, hang)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_MEMORY, f"{grown} bytes of memory"


def holds(target: Target, data: bytes, folder: Path) -> bool:
    """Whether the input is parsed, not refused.

    Raises:
        Exception: a finding.
    """
    with bounded():
        try:
            target.parse(data, folder)
        except StreamconvError as error:
            said_well(error)
            return False
    return True


def said_well(error: StreamconvError) -> None:
    assert error.exit_code != 1, error
    assert all(line.isprintable() for line in str(error).split("\n")), ascii(str(error))
    assert len(str(error)) < 50_000


# -- parsers -----------------------------------------------------------------------------------------------------------


def _written(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _sound(file: SourceFile, tensors: Mapping[str, TensorRef]) -> None:
    assert tensors
    for name, ref in tensors.items():
        assert name == ref.name
        name.encode()
        assert ref.extents
        assert all(e.offset >= 0 and e.length >= 0 and e.offset + e.length <= file.size for e in ref.extents)
        assert ref.nbytes == math.prod(ref.shape) * ref.dtype.itemsize < 1 << 63
        length = sum(extent.length for extent in ref.extents)
        assert length == ref.nbytes or (ref.cutout and length >= ref.nbytes)


def parse_safetensors(data: bytes, folder: Path) -> None:
    file, tensors = safetensors.read(_written(data, folder, "x.safetensors"), ROOM)
    _sound(file, tensors)
    if any(ref.dtype.name in safetensors.NEW_IN_LIBRARY for ref in tensors.values()):
        return
    theirs = {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in library.deserialize(data)}
    spans = {name: ref.extents[0] for name, ref in tensors.items()}
    assert theirs == {
        name: (ref.dtype.name, ref.shape, data[spans[name].offset : spans[name].offset + spans[name].length])
        for name, ref in tensors.items()
    }


def parse_ckpt(data: bytes, folder: Path) -> None:
    _sound(*ckpt.read(_written(data, folder, "x.ckpt"), ROOM))


def parse_torch(data: bytes, folder: Path) -> None:
    _sound(*torch.read(_written(data, folder, "x.bin"), ROOM)[:2])


def parse_pickle(data: bytes, folder: Path) -> None:
    """In an archive that is sound, with storages of 24 and of 8 bytes."""
    storages = {"a/data/0": bytes(24), "a/data/1": bytes(8)}
    parse_torch(hostile.zipped({"a/data.pkl": data, "a/byteorder": b"little", **storages}), folder)


def parse_index(data: bytes, folder: Path) -> None:
    found = shards.read_index(_written(data, folder, "index.json"), ROOM)
    assert found
    for name in found.values():
        assert (folder / name).parent == folder
        assert (folder / name).name == name


def parse_manifest(data: bytes, folder: Path) -> None:
    """As what the source of a conversion is, both ways, and as what a checkpoint is verified against."""
    source = folder / "model"
    if not source.exists():
        hostile.llama()(source)
    _written(data, source, paths.MANIFEST)
    found = manifest.find(source, ROOM)
    assert found is not None
    errors = [_planned(source, folder, reverse=reverse) for reverse in (False, True)]
    try:
        streamconv.verify(source)
    except StreamconvError as error:
        errors.append(error)
    _refuse(errors)


def parse_config(data: bytes, folder: Path) -> None:
    """As the config of a model of one of three families, named or not."""
    model = list(CONFIGS)[zlib.crc32(data) % len(CONFIGS)]
    source, config = folder / model, CONFIGS[model]
    if not source.exists():
        samples.write_hf(source, config, samples.hf_specs(find(model), config), 1 << 40)
    path = _written(data, source, "config.json")
    _refuse([_planned(source, folder, config=path), _planned(source, folder, config=path, model=model)])


def parse_yaml(data: bytes, folder: Path) -> None:
    said = mindformers.parse(data, "x")
    assert all(isinstance(key, str) for key in mindformers.as_config(said))
    source = folder / "llama"
    if not source.exists():
        hostile.llama()(source)
    _refuse([_planned(source, folder, model="llama", config=_written(data, folder, "run.yaml"))])


def _planned(source: Path, folder: Path, **arguments: object) -> StreamconvError | None:
    """What the conversion is refused for, if it is."""
    try:
        conversion = streamconv.plan(source, folder / "dest", max_mem="64G", **arguments)  # type: ignore[arg-type]
        str(conversion)
        if conversion.config.is_copied:
            json.loads(updated(conversion.config, None, False, {}))
    except StreamconvError as error:
        said_well(error)
        return error
    return None


def _refuse(errors: Sequence[StreamconvError | None]) -> None:
    """Raise the first of them, if nothing was parsed."""
    if all(errors):
        raise errors[0] or AssertionError


# -- valid inputs ------------------------------------------------------------------------------------------------------

CONFIGS = {
    "llama": helpers.LLAMA,
    "mixtral": helpers.MIXTRAL,
    "deepseek3": {
        "model_type": "deepseek_v3",
        "hidden_size": 12,
        "intermediate_size": 10,
        "moe_intermediate_size": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 2,
        "n_shared_experts": 1,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 6,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4,
        "v_head_dim": 4,
        "vocab_size": 11,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
}

YAML = b"""
seed: 0
moe_config: &moe
  expert_num: 3
model:
  model_config:
    type: LlamaConfig
    hidden_size: 20
    num_layers: 2
    num_heads: 6
    n_kv_heads: 3
    vocab_size: 11
    ffn_dim_multiplier: null
    intermediate_size: 14
    head_dim: 4
    qkv_concat: False
    moe_config: *moe
    pet_config: {lora_alpha: 16}
"""


def _manifests() -> list[bytes]:
    entry = {"file": "x.safetensors", "extents": [[100, 24]]}
    said: dict[str, object] = {
        "streamconv": "0.1.0",
        "manifest": 1,
        "model": "llama",
        "direction": "forward",
        "options": {"qkv_concat": True, "is_lora": False},
        "dtype": "BF16",
        "format": "safetensors",
        "max_shard_size": 5_000_000_000,
        "crc": False,
        "plan": "0" * 64,
        "files": {"config.json": {"size": 3, "blocks": ["0" * 32]}},
        "tensors": {"a": entry},
    }
    return [json.dumps(one).encode() for one in (said, {**said, "model": "raw", "options": {}, "dtype": None})]


def _ckpts() -> list[bytes]:
    real = [path.read_bytes() for path in sorted(FIXTURES.glob("*.ckpt"))]
    return [hostile.honest(".ckpt"), hostile.record() * 2, *(one for one in real if len(one) < 20_000)]


def _pickles() -> list[bytes]:
    return [hostile.laughs(3), hostile.evaluating("1"), *(hostile.entry_of(kind, 24 // size) for kind, size in SIZES)]


SIZES = (("FloatStorage", 4), ("HalfStorage", 2), ("LongStorage", 8), ("ByteStorage", 1))
_INDEX = {"metadata": {"total_size": 9}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}

TARGETS = {
    "safetensors": Target(
        lambda: [
            hostile.honest("", "a", "b", "模型"),
            hostile.encode(
                {"__metadata__": {"format": "pt"}, "t": hostile.u8(0, 2), "e": hostile.u8(2, 2, shape=[0])}, b"ab"
            ),
        ],
        mutate.of_safetensors,
        parse_safetensors,
    ),
    "ckpt": Target(_ckpts, mutate.of_ckpt, parse_ckpt),
    "torch": Target(lambda: [hostile.honest(".bin", "a", "b", "c")], mutate.of_zip, parse_torch),
    "pickle": Target(_pickles, mutate.of_pickle, parse_pickle),
    "index": Target(
        lambda: [json.dumps(_INDEX).encode(), json.dumps(_INDEX["weight_map"]).encode()], mutate.of_json, parse_index
    ),
    "manifest": Target(_manifests, mutate.of_json, parse_manifest),
    "config": Target(lambda: [json.dumps(one).encode() for one in CONFIGS.values()], mutate.of_json, parse_config),
    "yaml": Target(lambda: [YAML], mutate.of_yaml, parse_yaml),
}
