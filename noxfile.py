"""Tasks for developers and CI: `nox -l` lists them, `nox -s types quick` runs two.

`lean` and `package` make environments of their own. The other tasks run in the environment that nox runs in, which
needs the test extra: `pip install -e '.[test]'`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
OLDEST = ROOT / "tests" / "constraints" / "oldest.txt"
#: What the quick tests need beside the package. Without torch and MindSpore, the tests that need them are skipped.
LEAN_TOOLS = ("hypothesis", "pytest", "pytest-xdist")
#: Tests of tables, plans and layouts: no version of a dependency makes a difference to them.
OF_NAMES = tuple(str(ROOT / "tests" / room) for room in ("families", "planning", "ranks", "rules"))
#: What `tests/system/aarch64/run.py` exits with where there is no emulator to be had.
NOT_AVAILABLE = 77
TYPE_TOOLS = ("mypy", "types-psutil", "types-tqdm")
_INSTALLED = """
import streamconv, sys
from pathlib import Path
assert Path(sys.prefix) in Path(streamconv.__file__).parents, f"not the installed package: {streamconv.__file__}"
"""

#: The wheel and the sdist of this run of nox, once they are built.
_built: list[Path] = []

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["types", "quick"]
nox.options.default_venv_backend = "none"


@nox.session
def quick(session: nox.Session) -> None:
    """Run the quick tests."""
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """Run all tests."""
    session.run("pytest", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Run the linter, the formatter's check and the type checker."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
@nox.parametrize(("version", "constraints"), [("3.10", OLDEST), ("3.13", None)], ids=["oldest", "newest"])
def lean(session: nox.Session, version: str, constraints: Path | None) -> None:
    """Run the quick tests of the installed package, on other Pythons, without torch and MindSpore."""
    python = find_python(version)
    if python is None:
        session.skip(f"Python {version} is neither on PATH nor among pyenv's versions")
    environment = new_environment(session, python)
    wheel, _ = build(session)
    environment.install(str(wheel), *LEAN_TOOLS, *(["--constraint", str(constraints)] if constraints else []))
    environment.check_is_installed()
    # What is names and shapes alone is tried on one Python, with all other tests; numbers and files on these too.
    left_out = [f"--ignore={folder}" for folder in OF_NAMES]
    environment.run("pytest", "-m", "not slow", *left_out, *session.posargs)
    if constraints is None:  # NumPy 2 has other types than NumPy 1, which the test extra installs for MindSpore's sake
        environment.install(*TYPE_TOOLS)
        environment.run("mypy", "streamconv")


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, install each into an empty environment, and run the demo."""
    for distribution in build(session):
        environment = new_environment(session, _own_python())
        environment.install(str(distribution))
        environment.check_is_installed()
        with session.chdir(session.create_tmp()):
            environment.run("streamconv", "--version")
            environment.run("streamconv", "demo")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz all parsers for ten minutes, or as told: `nox -s fuzz -- --seconds 60`."""
    session.run("python", "tests/system/fuzz/run.py", *(session.posargs or ["--seconds", "600"]))


@nox.session
def aarch64(session: nox.Session) -> None:
    """Compare emulated aarch64 processors with this machine, bit for bit; `nox -s aarch64 -- --short` for a minute."""
    session.run("python", "tests/system/aarch64/run.py", *session.posargs, success_codes=[0, NOT_AVAILABLE])


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks with small checkpoints, or as told: `nox -s bench -- copies --rounds 5`."""
    session.run("python", "-m", "benchmarks", *(session.posargs or ["--quick", "--rounds", "1"]))


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated parts of the documentation."""
    for page in ("families_page", "rooms_table"):
        session.run("python", f"tests/support/{page}.py", env={"PYTHONPATH": str(ROOT / "tests")})


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a session."""

    session: nox.Session
    folder: Path

    def run(self, program: str, *words: str) -> None:
        """Run a program that is installed in the environment; the tree is not on its path."""
        self.session.run(str(self.folder / "bin" / program), *words, external=True, env=_plain_environment())

    def install(self, *words: str) -> None:
        """Install packages."""
        self.run("python", "-m", "pip", "install", "--quiet", *words)

    def check_is_installed(self) -> None:
        """Fail unless the package comes from the environment, not from the tree."""
        with self.session.chdir(self.session.create_tmp()):
            self.run("python", "-c", _INSTALLED)


def _plain_environment() -> dict[str, str]:
    """Without what would lead Python elsewhere."""
    return {name: "" for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ}


def _own_python() -> Path:
    return Path(sys.executable)


def new_environment(session: nox.Session, python: Path, name: str = "environment") -> Environment:
    """Make an empty virtual environment with this interpreter."""
    folder = Path(session.create_tmp()).resolve() / name
    session.run(str(python), "-m", "venv", "--clear", str(folder), external=True)
    return Environment(session, folder)


def build(session: nox.Session) -> tuple[Path, Path]:
    """Return a wheel and an sdist, which the first session that asks builds for all."""
    if not _built:
        out = Path(session.create_tmp()).resolve() / "dist"
        shutil.rmtree(out, ignore_errors=True)
        tools = new_environment(session, _own_python(), "tools")
        tools.install("build")
        tools.run("python", "-m", "build", "--outdir", str(out), str(ROOT))
        _built.extend([*out.glob("*.whl"), *out.glob("*.tar.gz")])
    wheel, sdist = _built
    return wheel, sdist


def find_python(version: str) -> Path | None:
    """Return an interpreter that runs: of PATH, or of pyenv's versions."""
    return next((python for python in _pythons(version) if _runs(python)), None)


def _pythons(version: str) -> Iterator[Path]:
    """All that have the name; on PATH, a shim for a version that is not chosen may stand before the interpreter."""
    name = f"python{version}"
    for folder in os.get_exec_path():
        yield Path(folder, name)
    if root := _pyenv_root():
        yield from sorted(root.glob(f"versions/{version}*/bin/{name}"), reverse=True)


def _pyenv_root() -> Path | None:
    if root := os.environ.get("PYENV_ROOT"):
        return Path(root)
    if not shutil.which("pyenv"):
        return None
    found = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False)
    return Path(found.stdout.strip()) if found.returncode == 0 else None


def _runs(python: Path) -> bool:
    """Whether the interpreter starts and can make virtual environments."""
    command = [str(python), "-c", "import ensurepip, venv"]
    return python.is_file() and subprocess.run(command, capture_output=True, check=False).returncode == 0
