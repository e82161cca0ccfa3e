"""A virtual environment for each of the other tools: made with pip on first use, then reused.

They are in ~/.cache/streamconv-benchmarks, or in the folder that STREAMCONV_ENVIRONMENTS names; each takes 1 to 5 GB,
or more if pip installs PyTorch with its CUDA libraries. An environment is made again once its file in `requirements/`
has changed. MindSpore has no wheels for a Python later than 3.11 or 3.12, so `python3.11` is used if there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..measuring import BenchmarkError
from ..results import Say

_REQUIREMENTS = Path(__file__).parent / "requirements"
_LAST_WORDS = 500


@dataclass(frozen=True)
class Environment:
    """The environment of one of the other tools.

    Attributes:
        name: name of its folder, and of its file in `requirements/`.
        module: module that must be importable in it.
    """

    name: str
    module: str

    @property
    def folder(self) -> Path:
        """Its folder, which may not exist yet."""
        return _cache() / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def complete(self) -> bool:
        """Whether it exists, made from the current requirements."""
        return self._stamp.is_file() and self._stamp.read_bytes() == self._requirements.read_bytes()

    @property
    def tool(self) -> str:
        """The first of its requirements, such as "mindspore 2.10.0"."""
        return self._requirements.read_text().split()[0].replace("==", " ")

    def prepare(self, make: bool, say: Say) -> None:
        """Make it, unless it exists, and import its tool once, so that no measured run is the first.

        Raises:
            BenchmarkError: it does not exist and `make` is false, it cannot be made, or its tool cannot be imported.
        """
        if not self.complete:
            if not make:
                raise BenchmarkError(f"{self.folder} has not been made yet")
            say(f"making {self.folder}, which takes some minutes")
            self._make()
        _run(self.python, "-I", "-c", f"import {self.module}")

    def _make(self) -> None:
        _run(shutil.which("python3.11") or sys.executable, "-m", "venv", "--clear", self.folder)
        _run(self.python, "-m", "pip", "install", "--quiet", "--requirement", self._requirements)
        shutil.copyfile(self._requirements, self._stamp)

    @property
    def _requirements(self) -> Path:
        return _REQUIREMENTS / f"{self.name}.txt"

    @property
    def _stamp(self) -> Path:
        """The copy of its requirements that is written once it is complete."""
        return self.folder / "requirements.txt"


MINDFORMERS = Environment("mindformers", "mindformers.models.llama.convert_weight")
MINDSPORE = Environment("mindspore", "mindspore")
COMPRESSED_TENSORS = Environment("compressed_tensors", "compressed_tensors.entrypoints.convert")


def _cache() -> Path:
    chosen = os.environ.get("STREAMCONV_ENVIRONMENTS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "streamconv-benchmarks"


def variables(folder: Path) -> dict[str, str]:
    """Return this process's environment, with MindFormers' logs in `folder` and all tools offline."""
    return {**os.environ, "LOCAL_DEFAULT_PATH": str(folder), "LOG_MF_PATH": str(folder), "HF_HUB_OFFLINE": "1"}


def _run(*command: str | os.PathLike[str]) -> None:
    with TemporaryDirectory() as folder:
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=variables(Path(folder)), check=False
        )
    if process.returncode:
        raise BenchmarkError(f"{' '.join(map(str, command))}: {process.stderr.strip()[-_LAST_WORDS:]}")
