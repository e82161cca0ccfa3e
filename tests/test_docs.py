"""What is generated in the documentation is what the code says now; and what it promises of families."""

from __future__ import annotations

import re
import statistics

import pytest

from streamconv.cli.listings import family_lines
from streamconv.errors import EXIT_CODES
from streamconv.families import families
from support import ROOT, methods_page, readme_tables, rooms_table
from support.families_page import PAGE, page
from support.golden import COUNTS


def test_the_page_of_families_is_what_the_families_say() -> None:
    assert page() == PAGE.read_text(), "run: python tests/support/families_page.py"


def test_the_page_of_quantised_sources_is_what_the_methods_say() -> None:
    assert methods_page.page() == methods_page.PAGE.read_text(), "run: python tests/support/methods_page.py"


def test_the_tables_of_the_readme_are_what_families_and_methods_say() -> None:
    assert readme_tables.page() == readme_tables.PAGE.read_text(), "run: python tests/support/readme_tables.py"


def test_the_table_of_rooms_is_what_the_docstrings_say() -> None:
    assert rooms_table.page() == rooms_table.PAGE.read_text(), "run: python tests/support/rooms_table.py"


def test_the_tests_that_the_pages_name_are_there() -> None:
    for page_ in sorted((ROOT / "docs").glob("*.md")):
        for path, name in re.findall(r"`(tests/[\w/.]+?)(?:::(\w+))?`", page_.read_text()):
            found = ROOT / path
            assert found.exists(), (page_.name, path)
            assert not name or f"def {name}(" in found.read_text(), (page_.name, path, name)


@pytest.mark.slow
def test_models_prints_the_same() -> None:
    text = PAGE.read_text()
    for family in families():
        for line in family_lines(family, details=True)[1:]:
            assert line.strip().rstrip(":").lower() in text.lower(), family.name


def test_every_family_has_golden_cases() -> None:
    assert {family.name for family in families()} - {"raw"} == COUNTS.keys()


def test_the_median_family_file_has_at_most_60_lines() -> None:
    lengths = []
    for path in (ROOT / "streamconv" / "families").glob("*.py"):
        text = path.read_text()
        if re.search(r"^FAMILY = Family\(", text, re.MULTILINE):
            lengths.append(len(text.splitlines()))
    assert len(lengths) == len(families())
    assert statistics.median(lengths) <= 60


def test_no_family_is_named_outside_its_own_room() -> None:
    """I8: models are data. The demo converts a Mixtral, and `raw` is no model; the LoRA adapters' file is a format."""
    names = {family.name for family in families()} - {"raw", "gpt", "vit", "mae", "yi"}
    for path in (ROOT / "streamconv").rglob("*.py"):
        if path.parent.name == "families" or path.name in {"demo.py", "commands.py"}:
            continue
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text())
        assert not [name for name in names if re.search(rf"\b{name}\b", code)], path.name


def test_the_table_of_exit_codes_is_that_of_the_program() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
