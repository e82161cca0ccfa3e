"""What STYLE.md asks of words, as far as a machine can tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamconv
from support import ROOT

PACKAGE = Path(streamconv.__file__).parent
PAGES = [*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]

#: Correct English that marks a translation: STYLE.md has what to write instead.
TRANSLATED = re.compile(
    r"\b(anew|whence|in vain|meanwhile|let go of|lets go of|go on|goes on|gone on|going on|alike|beside)\b",
    re.IGNORECASE,
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str, ast.AST]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text, node


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every string that is no docstring."""
    known = {id(node.body[0].value) for _, _, node in docstrings(tree)}  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in known:
            yield node.lineno, node.value


def test_nothing_reads_like_a_translation() -> None:
    found = [
        f"{name}:{line} {match[0]}"
        for name, tree in modules()
        for line, text in [*strings(tree), *((line, text) for line, text, _ in docstrings(tree))]
        if (match := TRANSLATED.search(text))
    ]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_does_either(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [f"{number} {line}" for number, line in enumerate(lines, 1) if TRANSLATED.search(line)] == []


def test_the_library_does_not_speak_of_flags_or_commands() -> None:
    """The command line has them, and commands; the library names settings, which `text.in_shell` spells as flags."""
    found = [
        f"{name}:{line} {text}"
        for name, tree in modules()
        if not name.startswith("cli/")
        for line, text in strings(tree)
        if re.search(r"(?<![\w-])--[a-z]|(?<!\S)-o |\bcommand\b|streamconv [a-z]+ [A-Z]", text) and name != "text.py"
    ]
    assert found == []


def test_the_first_line_of_a_docstring_is_a_sentence() -> None:
    found = [
        f"{name}:{line} {text}"
        for name, tree in modules()
        for line, text, _ in docstrings(tree)
        if not re.match(r"[^\n]*(\n[^\n]+)*?[.:?`]($|\n\n)", text)
    ]
    assert found == []
