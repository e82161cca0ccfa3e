"""The hierarchy of errors, their exit codes, and text that is safe to show."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv import errors
from streamconv.errors import EXIT_CODES, StreamconvError, quote

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, StreamconvError) and kind is not StreamconvError
]


def test_every_kind_of_error_has_an_exit_code_of_its_own_and_every_code_a_kind() -> None:
    codes = {kind: kind.exit_code for kind in KINDS if kind is not errors.InterruptedRunError}
    assert codes.pop(errors.SourceChangedError) == errors.SourceError.exit_code
    assert len(set(codes.values())) == len(codes)
    signals = {errors.InterruptedRunError("stopped", number).exit_code for number in (2, 15)}
    assert {0, *codes.values(), *signals} == set(EXIT_CODES)
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("größe 重み", "größe 重み"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\tc\rd\0e\x7f\x9b", r"a\nb\tc\rd\x00e\x7f\x9b"),
        ("a\ud800b", r"a\ud800b"),
        ("evil\u202egnp.exe\u2066", r"evil\u202egnp.exe\u2066"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("line\u2028break", r"line\u2028break"),
        (7, "7"),
    ],
)
def test_text_from_outside_is_shown_without_harm(text, shown) -> None:
    assert quote(text) == shown


@settings(deadline=None)
@given(st.text(st.characters(codec=None, categories=None), max_size=600))
def test_whatever_comes_what_is_shown_is_printable_short_and_encodable(text) -> None:
    shown = quote(text)
    assert shown.isprintable()
    assert len(shown) <= 161
    shown.encode()


def test_long_text_keeps_both_ends() -> None:
    shown = quote("begin" + "x" * 10_000 + "end")
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert "…" in shown


@pytest.mark.parametrize("make", [errors.storage_error, errors.source_error])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EBUSY])
def test_errors_of_the_system_say_what_where_why_and_what_next(make, number) -> None:
    error = OSError(number, "the reason")
    text = str(make(error, "cannot do it to", "/data/x\x1b[0m"))
    assert text.startswith(r"cannot do it to /data/x\x1b[0m: the reason; ")
    assert len(text.split("; ")[1]) > 10
