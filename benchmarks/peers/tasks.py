"""The tasks: conversions by another tool, and the same by streamconv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..conversions import streamconv
from . import sources
from .environments import COMPRESSED_TENSORS, MINDFORMERS, MINDSPORE, Environment

_LLAMA = """
import sys
import mindspore
from mindformers.models.llama.convert_weight import convert_pt_to_ms
*dtype, source, dest = sys.argv[1:]
convert_pt_to_ms(source, dest, *(getattr(mindspore, name) for name in dtype))
"""
# MindSpore 2.10 refuses a .ckpt larger than the free memory, and counts the page cache as memory in use: on most
# machines it would load none. So make it believe that the free memory is unknown.
_FORMAT = """
import os, sys
import mindspore
mindspore.train.serialization._get_available_memory = lambda: None
function, source, dest = sys.argv[1:]
getattr(mindspore, function)(source, os.path.dirname(dest))
"""
_FP8 = """
import sys
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer, convert_checkpoint
source, dest = sys.argv[1:]
convert_checkpoint(source, dest, FP8BlockDequantizer.from_pretrained(source), max_workers=1)
"""


@dataclass(frozen=True)
class Task:
    """A conversion.

    Attributes:
        title: a few words.
        environment: the environment of the other tool.
        source: writes the checkpoint to convert to a folder, a small one if asked, and returns its path.
        code: Python that runs the other tool; its arguments are `their_words`, source and destination.
        their_name: name of the file or folder that the other tool writes.
        our_name: name of the file or folder that streamconv writes.
        our_words: options of `streamconv convert`.
        their_words: further arguments of `code`.
    """

    title: str
    environment: Environment
    source: Callable[[Path, bool], Path]
    code: str
    their_name: str
    our_name: str
    our_words: Sequence[str]
    their_words: Sequence[str] = ()

    def theirs(self, source: Path, folder: Path) -> list[str]:
        """Return the other tool's command, isolated (`-I`) from this process's environment."""
        paths = [str(source), str(folder / self.their_name)]
        return [str(self.environment.python), "-I", "-c", self.code, *self.their_words, *paths]

    def ours(self, source: Path, folder: Path) -> list[str]:
        """Return streamconv's command."""
        paths = [str(source), str(folder / self.our_name)]
        return streamconv(["convert", *paths, *self.our_words, "--max-mem", "256M", "--quiet"])


#: Tasks with the same source are adjacent, so that it is written once. MindFormers writes float32 by default.
TASKS = (
    Task(
        "Llama bf16 -> fp32 .ckpt (its default)",
        MINDFORMERS,
        sources.llama,
        _LLAMA,
        "model.ckpt",
        "model.ckpt",
        ["--dtype", "fp32"],
    ),
    Task(
        "Llama bf16 -> fp16 .ckpt",
        MINDFORMERS,
        sources.llama,
        _LLAMA,
        "model.ckpt",
        "model.ckpt",
        ["--dtype", "fp16"],
        their_words=["float16"],
    ),
    Task(
        "ckpt_to_safetensors",
        MINDSPORE,
        sources.llama_ckpt,
        _FORMAT,
        "model.safetensors",
        "model",
        ["--model", "raw"],
        their_words=["ckpt_to_safetensors"],
    ),
    Task(
        "safetensors_to_ckpt",
        MINDSPORE,
        sources.llama_safetensors,
        _FORMAT,
        "model.ckpt",
        "model.ckpt",
        ["--model", "raw"],
        their_words=["safetensors_to_ckpt"],
    ),
    Task(
        "DeepSeek FP8 -> bf16",
        COMPRESSED_TENSORS,
        sources.deepseek,
        _FP8,
        "model",
        "model",
        ["--model", "raw", "--format", "hf"],
    ),
)
