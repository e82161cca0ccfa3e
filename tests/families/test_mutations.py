"""A table with one word wrong makes some test fail: here for some mutants, `tests/support/mutations.py` does all."""

from __future__ import annotations

import pytest

from streamconv.families import families
from support import mutations

pytestmark = pytest.mark.slow

#: Those whose table is of a family alone: mindone's is made of a listing.
FAMILIES = [family for family in families() if family.name not in ("raw", "mindone")]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_table_with_one_word_wrong_is_noticed(family) -> None:
    by_golden, by_page, alive = mutations.survey(family, step=7)
    assert not alive
    assert by_golden + by_page > 1


def test_without_a_mutation_nothing_is_noticed(tmp_path) -> None:
    """A judge that condemned everybody would prove nothing."""
    judge = mutations.Judge(FAMILIES[0], tmp_path)
    rule = next(mutations.mutants(FAMILIES[0], judge.tables[0]))
    unchanged = mutations.Mutant(FAMILIES[0], "nothing", {one: one for one in rule.changed})
    assert not judge.kills(unchanged)
    assert judge.runs == len(judge.cases)
