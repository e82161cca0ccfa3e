"""Writes the tables of README.md from families and methods: `python tests/support/readme_tables.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streamconv.families import families
from streamconv.quantisation.registry import methods
from support import ROOT
from support.methods_page import title

PAGE = ROOT / "README.md"
BEGIN = "<!-- models and sources: written by tests/support/readme_tables.py -->\n"
END = "<!-- end of models and sources -->\n"


def page() -> str:
    """The page as it has to be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(_lines()) + "\n\n" + END + rest.partition(END)[2]


def _lines() -> Iterator[str]:
    yield "| `--model` | covers |\n|---|---|"
    yield from (f"| `{family.name}` | {family.title} |" for family in families())
    yield "\n| quantised sources | weights that become BF16 |\n|---|---|"
    for method in methods():
        titles = dict.fromkeys(title(layout) for layout in method.layouts({}))
        yield f"| {method.title} | {'; '.join(titles)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
