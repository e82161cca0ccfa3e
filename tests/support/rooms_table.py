"""Writes the table of rooms in docs/design.md from docstrings: `python tests/support/rooms_table.py`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import ROOT
from test_layers import COMMON, MAY_IMPORT

PAGE = ROOT / "docs" / "design.md"
BEGIN = "<!-- rooms: written by tests/support/rooms_table.py from the docstrings -->\n"
END = "<!-- end of rooms -->\n"


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ")


def rows() -> Iterator[str]:
    yield "| room | what it knows | may import |"
    yield "|---|---|---|"
    for name, allowed in reversed(MAY_IMPORT.items()):
        if not name:
            continue
        folder = ROOT / "streamconv" / name
        is_package = folder.is_dir()
        text = first_sentence(folder / "__init__.py" if is_package else folder.with_suffix(".py"))
        may = ", ".join(f"`{one}`" for one in allowed) or "nothing"
        yield f"| `{name}{'/' if is_package else '.py'}` | {text} | {may} |"
    for name in reversed(COMMON):
        yield f"| `{name}.py` | {first_sentence(ROOT / 'streamconv' / f'{name}.py')} | everybody may import it |"


def page() -> str:
    """The page with the table as it has to be."""
    text = PAGE.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:begin] + "\n" + "\n".join(rows()) + "\n\n" + text[end:]


if __name__ == "__main__":
    PAGE.write_text(page())
