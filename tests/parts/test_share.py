"""Which share of the parts a process has: as given, or as its scheduler says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamconv.errors import UsageError
from streamconv.parts import share
from streamconv.parts.cutting import Part
from streamconv.parts.share import Share

SLURM = {f"SLURM_ARRAY_TASK_{name}": value for name, value in {"MIN": "0", "MAX": "30", "STEP": "2"}.items()}


@given(st.integers(1, 50), st.integers(0, 200))
def test_every_part_is_in_one_share(of: int, count: int) -> None:
    parts = [Part(number, (), 1) for number in range(count)]
    shares = [Share(number, of).parts(parts) for number in range(1, of + 1)]
    assert [part for one in shares for part in one] == parts
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(1, 50), st.integers(1, 200), st.data())
def test_the_shares_that_are_missing_are_named(of: int, count: int, data: st.DataObject) -> None:
    part = data.draw(st.integers(0, count - 1))
    number = next(n for n in range(1, of + 1) if any(p.number == part for p in Share(n, of).parts(_parts(count))))
    assert share.holding([part], of, count) == [number]
    assert share.named([number], of) == f"part {number} of {of} is"


def _parts(count: int) -> list[Part]:
    return [Part(number, (), 1) for number in range(count)]


def test_many_missing_shares_are_counted() -> None:
    assert (
        share.named(share.holding(list(range(20)), 10, 20), 10) == "parts 1, 2, 3, 4, 5, 6, 7, 8 and 2 more of 10 are"
    )


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/16", {}, (3, 16, "")),
        ("1/1", {}, (1, 1, "")),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_ID": "30", "SLURM_ARRAY_TASK_COUNT": "16"}, (16, 16, share._ARRAY)),
        ("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (1, 4, "SLURM_PROCID")),
        ("auto/16", {"JOB_COMPLETION_INDEX": "15"}, (16, 16, "JOB_COMPLETION_INDEX")),
        ("auto", {"RANK_ID": "2", "RANK_SIZE": "8"}, (3, 8, "RANK_ID")),
        ("auto", {"RANK_ID": "7", "MS_WORKER_NUM": "8"}, (8, 8, "RANK_ID")),
        ("auto", {"RANK_ID": "0", "RANK_SIZE": "8", "MS_ROLE": "MS_WORKER"}, (1, 8, "RANK_ID")),
        ("auto", {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (2, 2, "OMPI_COMM_WORLD_RANK")),
        ("auto", {"PMI_RANK": "1", "PMI_SIZE": "2"}, (2, 2, "PMI_RANK")),
        # An array's task is one process of its own step; several that agree are one.
        (
            "auto",
            {
                **SLURM,
                "SLURM_ARRAY_TASK_ID": "2",
                "SLURM_ARRAY_TASK_COUNT": "16",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            (2, 16, share._ARRAY),
        ),
        ("auto", {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "PMI_RANK": "1", "PMI_SIZE": "4"}, (2, 4, "PMI_RANK")),
    ],
)
def test_what_is_understood(text: str, environment: dict[str, str], expected: tuple[int, int, str]) -> None:
    assert share.parse(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        *((text, {}, "cannot parse") for text in ("", "3/", "/3", "a/b", "-1/3", "1/2/3", "auto/x", "1.0/2", "①/2")),
        *((text, {}, "is not one of 1/N to N/N") for text in ("0/3", "4/3", "0/0", "1/9999999999", "99999999999/1")),
        ("3", {}, "does not say of how many"),
        ("auto", {}, "no scheduler says which part"),
        ("auto", {"JOB_COMPLETION_INDEX": "15"}, "no scheduler says which part"),
        ("auto", {"RANK_ID": "0", "RANK_SIZE": "8", "MS_ROLE": "MS_SCHED"}, "no part for msrun's scheduler"),
        ("auto/8", {"JOB_COMPLETION_INDEX": "8"}, "JOB_COMPLETION_INDEX says 9/8"),
        ("auto", {"RANK_ID": "x", "RANK_SIZE": "8"}, "no scheduler"),
        ("auto", {"RANK_ID": "1", "RANK_SIZE": "8", "SLURM_PROCID": "2", "SLURM_NTASKS": "8"}, "say different parts"),
        # --array=1,5,7: no arithmetic tells which of the three it is.
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_STEP": "1",
            },
            "SLURM_ARRAY_TASK_ID says 7/3",
        ),
    ],
)
def test_what_is_refused(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        share.parse(text, environment)
