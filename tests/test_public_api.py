"""The public names and signatures are those in public_api.txt; docs/api.md has every one, and its examples run."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamconv
from support import ROOT, nowhere

FROZEN = Path(__file__).with_name("public_api.txt")
PAGE = ROOT / "docs" / "api.md"


def described() -> Iterator[str]:
    """A line for every public name, and for every public member of a class."""
    for name in sorted(streamconv.__all__):
        found = getattr(streamconv, name)
        if inspect.isclass(found):
            yield f"class {name}({', '.join(base.__name__ for base in found.__bases__)})"
            yield from _members(name, found)
        elif inspect.isfunction(found):
            yield f"{name}{inspect.signature(found)}"
        else:
            yield f"{name}: {type(found).__name__}"


def _members(name: str, kind: type) -> Iterator[str]:
    for member in sorted(set(dir(kind))):
        if member.startswith("_") or getattr(kind, member) is getattr(Exception, member, None):
            continue
        found = inspect.getattr_static(kind, member)
        if not getattr(getattr(found, "fget", found), "__module__", "").startswith("streamconv"):
            continue
        if isinstance(found, property):
            yield f"{name}.{member}: {found.fget.__annotations__.get('return')}"
        elif inspect.isfunction(found):
            yield f"{name}.{member}{inspect.signature(found)}"
    own = [base for base in kind.__mro__ if base.__module__.startswith("streamconv")]
    for field, annotation in [item for base in own for item in vars(base).get("__annotations__", {}).items()]:
        if not field.startswith("_"):
            yield f"{name}.{field}: {getattr(annotation, '__forward_arg__', annotation)}"


def test_names_and_signatures_are_the_frozen_ones() -> None:
    now = "\n".join(described()) + "\n"
    assert now == FROZEN.read_text(), f"changed on purpose? python {Path(__file__).relative_to(ROOT)}, and CHANGELOG.md"


def test_every_public_name_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert [name for name in streamconv.__all__ if f"`{name}" not in text and f"streamconv.{name}" not in text] == []


def test_the_examples_run(tmp_path: Path) -> None:
    """In a process of their own: a memory limit counts all that the process holds."""
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_name_is_loaded_when_it_is_used_and_not_before() -> None:
    code = (
        "import sys, streamconv\n"
        "assert 'numpy' not in sys.modules and 'streamconv.api' not in sys.modules\n"
        "assert set(streamconv.__all__) <= set(dir(streamconv))\n"
        "for name in streamconv.__all__: getattr(streamconv, name)\n"
        "assert 'numpy' in sys.modules\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=nowhere(), env=environment)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        streamconv.nothing  # noqa: B018


PEAK = """
import atexit, sys
def peak():
    lines = open("/proc/self/status").read().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")), file=sys.stderr)
atexit.register(peak)
"""


@pytest.mark.parametrize("code", ["import streamconv", "from streamconv.cli.main import main; main()"])
def test_importing_and_help_are_small(code: str) -> None:
    """Below 24 MiB resident. How long they take is for benchmarks/ to measure."""
    command = [sys.executable, "-c", f"{PEAK}{code}", "--help"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=nowhere(), text=True)
    assert int(done.stderr) < 24 << 10


if __name__ == "__main__":
    FROZEN.write_text("\n".join(described()) + "\n")
