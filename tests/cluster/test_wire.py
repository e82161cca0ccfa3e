"""An error crosses to the driver as plain values, and is the same error there, with its host."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamconv import errors
from streamconv.cluster import wire
from streamconv.errors import BudgetError, InternalError, SourceError, StreamconvError, VerificationError
from streamconv.ranks.complaints import IncompleteError
from streamconv.tensors.refs import Catalog
from streamconv.text import in_shell, setting
from support.clusters import check_plain

CATALOG = Catalog(Path("x"), "safetensors", {}, ())
CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, StreamconvError) and kind is not errors.InterruptedRunError
]


def crossed(error: BaseException) -> StreamconvError:
    values = wire.to_values(error)
    check_plain(values)
    return wire.from_values(values, "host-7")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_comes_back(kind: type[StreamconvError]) -> None:
    error = kind("a is broken") if kind is InternalError else kind("a is broken", "mend it")
    found = crossed(error)
    assert type(found) is kind
    assert found.exit_code == error.exit_code
    assert found.hint == error.hint
    assert found.message.startswith(error.message)
    assert "host-7" in found.message


def test_what_belongs_to_a_class_comes_along() -> None:
    found = crossed(BudgetError("too low", f"give {setting('max_mem', '300M')} or more", 300 << 20))
    assert isinstance(found, BudgetError)
    assert found.least == 300 << 20
    assert in_shell(found.marked[1]) == "give --max-mem 300M or more"


def test_a_class_of_one_module_is_its_base_elsewhere() -> None:
    assert type(crossed(IncompleteError("a slice is missing", "", CATALOG))) is SourceError


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), RecursionError("deep")])
def test_anything_else_is_a_bug_and_says_where(error: BaseException) -> None:
    found = crossed(error)
    assert type(found) is InternalError
    assert found.message.startswith(f"internal error: {type(error).__name__}: ")
    assert found.message.endswith("(on host-7)")


def test_memory_that_the_system_refuses_is_no_bug() -> None:
    assert type(crossed(MemoryError())) is BudgetError


def test_no_control_character_comes_from_a_host() -> None:
    assert "\x1b" not in wire.from_values(wire.to_values(KeyError("\x1b[31m")), "\x1b[31m").message
    assert "\x1b" not in wire.from_values(wire.to_values(VerificationError("x")), "\x1b[31m").message
