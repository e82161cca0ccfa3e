"""Which files go along with the weights: all that a tokenizer, a processor or a model's own code may need.

Repositories name them freely (`qwen.tiktoken`, `visual.py`, `SimSun.ttf`, `encoding/encoding_dsv32.py`), so in a
repository what goes along is decided by what a name ends in. A folder that only happens to hold a file that was given
may hold anything: from there only files of well-known names go along.
"""

from __future__ import annotations

import fnmatch
import stat
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from ..errors import reading
from ..formats.directory import FORMATS
from ..formats.downloads import is_mark
from ..storage import disk
from ..text import format_size

#: Endings of files that go along: code, tokenizers and their vocabularies, templates, fonts, documents.
_ENDINGS = (
    *(".py", ".json", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".spm", ".jinja", ".jinja2"),
    *(".ttf", ".ttc", ".otf", ".md"),
)
#: Names that go along whatever they end in.
_NAMES = ("*licen[sc]e*", "notice*", "copying*", "readme*", "*use_policy*", "tokenizer*", "merges*", "vocab*")

#: Names that are well known, wherever they are found.
_KNOWN = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("vocab.json", "vocab.txt", "spiece.model", "sentencepiece*.model", "*.tiktoken", "chat_template.*"),
    *("*preprocessor_config.json", "processor_config.json"),
    *("configuration_*.py", "modeling_*.py", "tokenization_*.py"),
)
#: What shows that a folder is a model's repository.
_SIGNS = ("tokenizer_config.json", "*.index.json")

#: What stays behind in spite of its ending -> why; where nothing is said, other files take its place.
_STAY: Mapping[str, str] = {
    "*.index.json": "",
    "param_name_map.json": "",
    "config.json": "",
    "streamconv.json": "",
    "*.streamconv.json": "",
    "adapter_config.json": "describes an adapter",
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


class Found(Struct, frozen=True):
    """The files next to the weights.

    Attributes:
        copies: name in the result, with `/` in subfolders -> the file.
        left: what stays behind -> why. Weights and what describes them are not listed.
        warnings: what was not looked at.
    """

    copies: Mapping[str, Path] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def under(self, other: Found) -> Found:
        """Return both; of two files of the same name the other's."""
        copies = {**self.copies, **other.copies}
        left = {name: why for name, why in {**self.left, **other.left}.items() if name not in copies}
        return Found(copies, left, (*self.warnings, *other.warnings))


def find(home: Path, is_repository: bool, kept: tuple[str, ...] = (), dequantised: bool = False) -> Found:
    """Return the files in a folder that go along, and for a repository also those that stay, by name.

    Args:
        home: the folder.
        is_repository: it was given as a model; else it is one only if its files show it.
        kept: names that go along although they would stay.
        dequantised: the result is not quantised; what describes the quantised weights stays.

    Raises:
        SourceError: the folder cannot be listed.
    """
    if not is_repository:
        with reading(home, "cannot list"):
            names = disk.listdir(home)
        if not any(fnmatch.filter(names, sign) for sign in _SIGNS):
            found = [home / name for name in names if _is_known(name)]
            return Found({path.name: path for path in found if not _obstacle(path)})
    stay = {**_STAY, **(_OF_QUANTISED if dequantised else {})}
    return _of_repository(home, {pattern: why for pattern, why in stay.items() if pattern not in kept})


def _of_repository(home: Path, stay: Mapping[str, str]) -> Found:
    copies: dict[str, Path] = {}
    left: dict[str, str] = {}
    with reading(home, "cannot list"):
        entries = list(islice(_walk(home), _MOST_ENTRIES + 1))
    for number, entry in enumerate(entries):
        if number == _MOST_ENTRIES:
            said = f"only {_MOST_ENTRIES} of the files next to the weights were looked at; the others stay behind"
            return Found(copies, left, (said,))
        why = entry.why_not or _why_not(entry, stay)
        if why is None:
            copies[entry.name] = entry.path
        elif why:
            left[entry.name] = why
    return Found(copies, left)


class _Entry(NamedTuple):
    name: str
    path: Path
    why_not: str = ""


def _walk(home: Path) -> Iterator[_Entry]:
    """Yield the files of a folder, then those of its subfolders; a subfolder that holds weights is one entry."""
    folders = [_Entry("", home)]
    while folders:
        folder = folders.pop(0)
        try:
            names = [name for name in disk.listdir(folder.path) if not name.startswith(".") and name != "__pycache__"]
            entries = [_Entry(f"{folder.name}/{name}".lstrip("/"), folder.path / name) for name in names]
            inside = dict.fromkeys(entry for entry in entries if stat.S_ISDIR(disk.mode(entry.path)))
            links = {entry for entry in inside if disk.is_link(entry.path)}
        except PermissionError as error:
            if not folder.name:
                raise
            yield folder._replace(why_not=f"cannot be listed: {error.strerror}")
            continue
        if folder.name and any(name.endswith(_WEIGHTS) for name in names):
            yield folder._replace(why_not="holds weights")
            continue
        yield from (entry for entry in entries if entry not in inside)
        yield from (entry._replace(why_not="a link to a folder") for entry in inside if entry in links)
        if folder.name.count("/") < _DEEPEST:
            folders += [entry for entry in inside if entry not in links]


def _why_not(entry: _Entry, stay: Mapping[str, str]) -> str | None:
    """Return why a file stays behind, nothing where that goes without saying, `None` if it goes along."""
    name = entry.path.name.lower()
    if name.endswith(_WEIGHTS):
        return ""
    is_inside = "/" in entry.name
    for pattern, why in () if is_inside else stay.items():
        if fnmatch.fnmatchcase(name, pattern):
            return why
    if is_mark(entry.path.name):
        return "what a download left"
    return (_obstacle(entry.path) or None) if goes_along(name) else _UNKNOWN


def _obstacle(path: Path) -> str:
    """Return what keeps a file from being copied, or nothing."""
    with reading(path):
        status = disk.stat(path) if disk.mode(path) else None
        if status is None or not stat.S_ISREG(status.st_mode):
            return "not a regular file or a link to one"
        if not disk.may_read(path):
            return "may not be read"
    return f"larger than {format_size(LARGEST)}" if status.st_size > LARGEST else ""


def goes_along(name: str) -> bool:
    """Return whether a file of this name goes along with the weights of a repository."""
    low = name.lower()
    return low.endswith(_ENDINGS) or any(fnmatch.fnmatchcase(low, pattern) for pattern in _NAMES)


def _is_known(name: str) -> bool:
    return not is_mark(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in _KNOWN)
