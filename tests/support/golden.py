"""Golden cases: what MindFormers' own converters made of tiny checkpoints, as data. See tests/golden/README.md."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - registers bfloat16 and float8 with NumPy
import numpy as np
import pytest
from msgspec.structs import replace

from streamconv.formats import ckpt, safetensors, shards
from streamconv.formats.catalog import open_catalog
from streamconv.tensors import dtypes
from streamconv.tensors.refs import OutputFile, TensorRef, TensorSpec
from support import TESTS

TORCH = (".bin", ".pth", ".pt")
FOLDER = TESTS / "golden"
#: Golden cases per family.
COUNTS = {
    "baichuan2": 5,
    "blip2": 2,
    "bloom": 5,
    "codegeex2": 2,
    "cogvlm2": 5,
    "deepseek": 9,
    "deepseek2": 3,
    "deepseek3": 27,
    "deepseek32": 4,
    "deepseek4": 6,
    "glm-n": 9,
    "glm4_moe": 6,
    "gpt": 6,
    "internlm": 6,
    "internlm2": 7,
    "internvl2": 3,
    "knowlm": 2,
    "llama": 19,
    "llava": 2,
    "mae": 2,
    "mindone": 7,
    "mixtral": 11,
    "mllama": 4,
    "qwen": 6,
    "qwen1_5": 5,
    "qwen2": 5,
    "qwen2_5": 14,
    "qwen2_moe": 9,
    "qwen3": 7,
    "qwen3_moe": 7,
    "qwenvl": 3,
    "skywork": 2,
    "swin": 5,
    "telechat": 7,
    "telechat2": 5,
    "telechat3": 8,
    "telechat3_moe": 4,
    "vit": 3,
    "whisper": 3,
    "wizardcoder": 4,
    "yi": 6,
    "yizhao": 5,
}


@dataclass(frozen=True)
class Case:
    """One golden case."""

    name: str
    values: Mapping[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """How streamconv is called."""
        convert = self.values["convert"]
        return {key: convert[key] for key in ("model", "reverse", "dtype", "options")}

    def write_reference(self, folder: Path) -> Path | None:
        """The names and shapes of the target's side, as a checkpoint of zeros, of cases that need it."""
        if "reference" not in self.values:
            return None
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.values["config"]))
        specs = specs_of(self.values["reference"])
        write(
            folder / "model.safetensors", replace(safetensors.lay_out("model.safetensors", specs, {}), extents={}), {}
        )
        return folder

    def write_source(self, folder: Path, shard_count: int | None = None) -> Path:
        """The case's source: as it says, or its tensors dealt again over `shard_count` shards."""
        folder.mkdir()
        if self.values["config"]:
            (folder / "config.json").write_text(json.dumps(self.values["config"]))
        files: dict[str, dict[str, Any]] = self.values["source"]
        if shard_count:
            everything = [item for tensors in files.values() for item in tensors.items()]
            files = {
                shards.hf_shard_name(i + 1, shard_count): dict(everything[i::shard_count]) for i in range(shard_count)
            }
        for name, tensors in files.items():
            if name.endswith(TORCH):
                save_torch(folder / name, tensors, self.values.get("torch_root"))
                continue
            specs = specs_of(tensors)
            lay_out = ckpt.lay_out(name, specs) if name.endswith(".ckpt") else safetensors.lay_out(name, specs, {})
            write(folder / name, lay_out, {s.name: golden_bytes(s) for s in specs})
        if len(files) == 1:
            return folder / next(iter(files))
        if all(name.endswith(TORCH) for name in files):
            return folder
        weight_map = {n: name for name, tensors in files.items() for n in tensors}
        (folder / shards.HF_INDEX).write_bytes(shards.index_bytes(0, weight_map))
        return folder

    @property
    def expected(self) -> dict[str, tuple[str, tuple[int, ...], str]]:
        """Name → (dtype, shape, SHA-256 of the bytes)."""
        return {t["name"]: (dtype_of(t["dtype"]).name, tuple(t["shape"]), t["sha256"]) for t in self.values["expected"]}


def specs_of(tensors: Mapping[str, Any]) -> list[TensorSpec]:
    """The tensors that a case lists."""
    return [TensorSpec(name, dtype_of(t["dtype"]), tuple(t["shape"])) for name, t in tensors.items()]


def save_torch(path: Path, tensors: Mapping[str, Any], root: str | None) -> None:
    """A torch file, by torch."""
    torch = pytest.importorskip("torch")
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
    kinds |= {"BOOL": torch.bool, "F64": torch.float64, "I32": torch.int32}
    state = OrderedDict()
    for name, t in tensors.items():
        data = golden_bytes(TensorSpec(name, dtype_of(t["dtype"]), tuple(t["shape"])))
        state[name] = torch.frombuffer(bytearray(data), dtype=kinds[t["dtype"]]).reshape(t["shape"])
    torch.save({root: state} if root else state, path)


def cases(*families: str) -> list[Case]:
    """All cases of these families."""
    return [
        Case(path.stem, json.loads(path.read_text()))
        for family in families
        for path in sorted((FOLDER / family).glob("*.json"))
    ]


def dtype_of(name: str) -> dtypes.DType:
    """A dtype under either world's name."""
    try:
        return dtypes.from_safetensors(name, name)
    except Exception:
        return dtypes.from_mindspore(name, name)


def golden_bytes(spec: TensorSpec) -> bytes:
    """The bytes of a source tensor: a pure function of its name, dtype and shape."""
    count = int(np.prod(spec.shape, dtype=np.int64))
    raw = np.random.PCG64(zlib.crc32(spec.name.encode())).random_raw((count + 1) // 2)
    x = np.asarray(raw, "<u8").view("<i4")[:count]
    if spec.dtype.kind == dtypes.INTEGER:
        small = x & 0x7F
        return (small & 1 if spec.dtype.name == "BOOL" else small).astype(spec.dtype.numpy).tobytes()
    return (x.astype(np.float64) / 2**29).astype(np.float32).astype(np.dtype(spec.dtype.numpy)).tobytes()


def write(path: Path, file: OutputFile, data: Mapping[str, bytes]) -> None:
    """A file as its layout says."""
    with path.open("wb") as out:
        out.truncate(file.size)
        for offset, literal in file.literals:
            out.seek(offset)
            out.write(literal)
        for name, extents in file.extents.items():
            begin = 0
            for offset, length in extents:
                out.seek(offset)
                out.write(data[name][begin : begin + length])
                begin += length


def stored_bytes(ref: TensorRef) -> bytes:
    """A tensor's bytes, read the plainest way."""
    result = b""
    for extent in ref.extents:
        with extent.file.path.open("rb") as file:
            file.seek(extent.offset)
            result += file.read(extent.length)
    return result


def found(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """What a checkpoint holds: name → (dtype, shape, SHA-256 of the bytes)."""
    return {
        name: (ref.dtype.name, ref.shape, hashlib.sha256(stored_bytes(ref)).hexdigest())
        for name, ref in open_catalog(path).items()
    }
