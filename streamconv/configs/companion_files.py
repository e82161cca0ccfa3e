"""Which files go along with the weights: all that a tokenizer, a processor or a model's own code may need.

Repositories name them freely (`qwen.tiktoken`, `visual.py`, `SimSun.ttf`, `encoding/encoding_dsv32.py`), so what goes
along is decided by what a name ends in, and what does not is told from it by name.
"""

from __future__ import annotations

import fnmatch
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import reading
from ..formats.directory import FORMATS
from ..storage import disk
from ..text import format_size

#: Endings of files that go along: code, tokenizers and their vocabularies, templates, fonts, documents.
_ENDINGS = (
    *(".py", ".json", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".spm", ".jinja", ".jinja2"),
    *(".ttf", ".ttc", ".otf", ".md"),
)
#: Names that go along whatever they end in.
_NAMES = ("*licen[sc]e*", "notice*", "copying*", "readme*", "*use_policy*", "tokenizer*", "merges*", "vocab*")

#: What stays behind in spite of its ending -> why.
_STAY: Mapping[str, str] = {
    "*.index.json": "",
    "param_name_map.json": "",
    "config.json": "",
    "streamconv.json": "",
    "*.streamconv.json": "",
    "adapter_config.json": "",
    "trainer_state.json": "the state of a training run",
    "training_args*": "the state of a training run",
    "metadata.json": "describes the files of a training run",
    "common.json": "describes the files of a training run",
    "meta.json": "describes the files of a training run",
}
#: What describes quantised weights, and is of no use once they are not.
_OF_QUANTISED: Mapping[str, str] = dict.fromkeys(
    ("hf_quant_config.json", "quant_model_description*.json", "quantize_config.json", "quant_config.json"),
    "describes the quantised weights",
)
_WEIGHTS = (*FORMATS, ".gguf", ".h5", ".msgpack", ".onnx", ".distcp")
_UNKNOWN = "no tokenizer, processor or model code is known to need it"

#: Bytes of a file that goes along at most: the largest tokenizers and fonts have some 30 MB.
LARGEST = 256 << 20
_DEEPEST = 8
_MOST_ENTRIES = 10_000


@dataclass(frozen=True)
class Found:
    """The files next to the weights.

    Attributes:
        copies: name in the result, with `/` in subfolders -> the file.
        left: what stays behind -> why. Weights and what describes them are not listed.
    """

    copies: Mapping[str, Path] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def find(home: Path, dequantised: bool = False) -> Found:
    """Return the files in a directory and its subfolders that go along, and those that stay, by name.

    Args:
        home: where the config is, or without one the weights.
        dequantised: the result is not quantised; what describes the quantised weights stays.

    Raises:
        SourceError: a directory cannot be listed.
    """
    copies: dict[str, Path] = {}
    left: dict[str, str] = {}
    stay = {**_STAY, **(_OF_QUANTISED if dequantised else {})}
    for number, entry in enumerate(_walk(home, "", 0)):
        if number == _MOST_ENTRIES:
            left["…"] = f"more than {_MOST_ENTRIES} files"
            break
        reason = entry.why_not or _why_not(entry.path, stay)
        if reason is None:
            copies[entry.name] = entry.path
        elif reason:
            left[entry.name] = reason
    return Found(copies, left)


class _Entry(NamedTuple):
    name: str
    path: Path
    why_not: str = ""


def _walk(folder: Path, before: str, depth: int) -> Iterator[_Entry]:
    """Yield the files of a folder and of its subfolders; a subfolder that holds weights is one entry."""
    with reading(folder, "cannot list"):
        names = [name for name in disk.listdir(folder) if not name.startswith(".") and name != "__pycache__"]
        modes = {name: disk.mode(folder / name) for name in names}
        links = {name for name in names if stat.S_ISDIR(modes[name]) and disk.is_link(folder / name)}
    if before and any(name.endswith(_WEIGHTS) for name in names):
        yield _Entry(before.removesuffix("/"), folder, "holds weights")
        return
    for name in names:
        path = folder / name
        if name in links:
            yield _Entry(before + name, path, "a link to a folder")
        elif not stat.S_ISDIR(modes[name]):
            yield _Entry(before + name, path)
        elif depth < _DEEPEST:
            yield from _walk(path, f"{before}{name}/", depth + 1)


def _why_not(path: Path, stay: Mapping[str, str]) -> str | None:
    """Return why a file stays behind, nothing where that goes without saying, `None` if it goes along."""
    name = path.name.lower()
    if name.endswith(_WEIGHTS):
        return ""
    for pattern, reason in stay.items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    if not goes_along(name):
        return _UNKNOWN
    with reading(path):
        status = disk.stat(path) if disk.mode(path) else None
    if status is None or not stat.S_ISREG(status.st_mode):
        return "not a regular file or a link to one"
    return f"larger than {format_size(LARGEST)}" if status.st_size > LARGEST else None


def goes_along(name: str) -> bool:
    """Return whether a file of this name goes along with the weights."""
    low = name.lower()
    return low.endswith(_ENDINGS) or any(fnmatch.fnmatchcase(low, pattern) for pattern in _NAMES)


def is_of_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds only files that go along, and folders of such.

    Raises:
        OSError: it cannot be listed.
    """
    for name in disk.listdir(folder):
        mode = disk.mode(folder / name, follow=False)
        if not (is_of_checkpoint(folder / name) if stat.S_ISDIR(mode) else goes_along(name)):
            return False
    return True
