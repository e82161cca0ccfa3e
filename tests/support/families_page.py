"""Writes docs/families.md below its marker from the families themselves: `python tests/support/families_page.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # of a script, its own folder is on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from streamconv.cli.listings import family_parts
from streamconv.families import Family, Option, families, spell
from support import ROOT
from support.golden import COUNTS

PAGE = ROOT / "docs" / "families.md"
MARK = "<!-- From here on written by tests/support/families_page.py. -->\n"


def page() -> str:
    """The page as it has to be."""
    return PAGE.read_text().split(MARK)[0] + MARK + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "\n## All families\n"
    yield "| `--model` | covers | options | golden cases |\n|---|---|---|---|"
    for family in families():
        options = "<br>".join(_choices(option) for option in family.options)
        yield f"| [`{family.name}`](#{family.name}) | {family.title} | {options} | {COUNTS.get(family.name, '')} |"
    for family in families():
        yield from section(family)


def _choices(option: Option) -> str:
    values = "\\|".join(map(spell, option.values))
    return f"`{option.name}={values}`"


def section(family: Family) -> Iterator[str]:
    """What the page says of one family."""
    yield f"\n## {family.name}\n\n{family.title}."
    for title, entries in family_parts(family):
        heading = title[0].upper() + title[1:]
        if "->" in title or title.startswith("with "):
            yield "\n".join([f"\n<details><summary>{heading}</summary>\n\n```", *entries, "```\n\n</details>"])
        else:
            yield "\n".join([f"\n{heading}:\n", *(f"- {entry}" for entry in entries)])


if __name__ == "__main__":
    PAGE.write_text(page())
