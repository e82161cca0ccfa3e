"""The hierarchy of errors, their exit codes, and text that is safe to show."""

from __future__ import annotations

import errno
import pickle

import pytest

from streamconv import errors
from streamconv.errors import EXIT_CODES, InterruptedRunError, StreamconvError, UsageError
from streamconv.text import in_shell, setting

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, StreamconvError) and kind is not StreamconvError
]


def test_every_kind_of_error_has_an_exit_code_of_its_own_and_every_code_a_kind() -> None:
    codes = {kind: kind.exit_code for kind in KINDS if kind is not errors.InterruptedRunError}
    assert codes.pop(errors.SourceChangedError) == errors.SourceError.exit_code
    assert len(set(codes.values())) == len(codes)
    signals = {errors.InterruptedRunError("stopped", number).exit_code for number in (1, 2, 15)}
    assert {0, *codes.values(), *signals} == set(EXIT_CODES)
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


@pytest.mark.parametrize("make", [errors.storage_error, errors.source_error])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EBUSY])
def test_errors_of_the_system_say_what_where_why_and_what_next(make, number) -> None:
    error = OSError(number, "the reason")
    made = make(error, "cannot do it to", "/data/x\x1b[0m")
    assert made.message == r"cannot do it to /data/x\x1b[0m: the reason"
    assert len(made.hint) > 10
    assert str(made) == f"{made.message}\nhint: {made.hint}"


def test_notes_stand_between_message_and_hint() -> None:
    error = StreamconvError("wrong", "mend it")
    error.add("")
    error.add("half of it is saved")
    assert str(error) == "wrong\nhalf of it is saved\nhint: mend it"
    error.add("nothing is lost", "run again")
    assert str(error) == "wrong\nhalf of it is saved\nnothing is lost\nhint: mend it"
    error = StreamconvError("wrong")
    error.add("nothing is lost", "run again")
    assert str(error) == "wrong\nnothing is lost\nhint: run again"


def test_settings_are_spelled_as_python_has_them() -> None:
    error = StreamconvError(f"{setting('io')} is wrong", f"drop {setting('reverse', True)}")
    assert str(error) == "io is wrong\nhint: drop reverse=True"


@pytest.mark.parametrize(("kind", "builtin"), [(errors.UsageError, ValueError), (errors.BudgetError, MemoryError)])
def test_python_s_own_kinds_are_caught_too(kind, builtin) -> None:
    with pytest.raises(builtin, match="wrong"):
        raise kind("wrong")


def test_every_part_of_an_error_speaks_python_and_survives_pickling() -> None:
    error = UsageError(f"unknown value for {setting('dtype')}", f"give {setting('max_mem', '80M')} or more")
    error.add(f"omit {setting('reverse', True)}")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert one.message == "unknown value for dtype\nomit reverse=True"
        assert one.hint == 'give max_mem="80M" or more'
        assert all(text.isprintable() for text in (repr(one), *one.args))
        assert in_shell("; ".join(one.marked)).endswith("give --max-mem 80M or more")
    stopped = pickle.loads(pickle.dumps(InterruptedRunError("stopped", 15)))
    assert (stopped.exit_code, stopped.message) == (143, "stopped")
