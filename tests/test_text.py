"""Messages: text that is safe to show, counts and sizes, and settings spelled for who reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.text import did_you_mean, first_few, format_time, in_python, in_shell, quote, setting


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("convret", ("convert", "verify"), "did you mean convert?"),
        ("CONVERT", ("convert", "verify"), "did you mean convert?"),
        ("zzz", ("convert", "verify"), ""),
        ("convert", (), ""),
    ],
)
def test_did_you_mean(word, known, said) -> None:
    assert did_you_mean(word, known) == said


@pytest.mark.parametrize(
    ("count", "shown"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (100, "0, 1, 2 and 97 more")]
)
def test_the_first_few_and_how_many_more(count, shown) -> None:
    assert first_few([str(number) for number in range(count)], 3) == shown


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


@pytest.mark.parametrize(
    ("name", "value", "python", "shell"),
    [
        ("max_mem", None, "max_mem", "--max-mem"),
        ("max_mem", "96M", 'max_mem="96M"', "--max-mem 96M"),
        ("workers", 2, "workers=2", "--workers 2"),
        ("reverse", True, "reverse=True", "--reverse"),
        ("options.use_gmm", None, 'options["use_gmm"]', "-o use_gmm"),
        ("options.use_gmm", "true", 'options={"use_gmm": "true"}', "-o use_gmm=true"),
        ("options.lora_alpha", 16, 'options={"lora_alpha": 16}', "-o lora_alpha=16"),
        ("source", None, "source", "SOURCE"),
        ("dest", None, "dest", "DEST"),
    ],
)
def test_a_setting_is_spelled_for_who_reads_it(name, value, python, shell) -> None:
    message = f"give {setting(name, value)}, or not"
    assert in_python(message) == f"give {python}, or not"
    assert in_shell(message) == f"give {shell}, or not"


def test_several_settings_in_a_message() -> None:
    message = f"{setting('reverse', True)} and {setting('family', 'FILE')}"
    assert in_shell(message) == "--reverse and --family FILE"


@pytest.mark.slow
@settings(deadline=None)
@given(st.text(max_size=50))
def test_text_from_outside_never_looks_like_a_setting(text) -> None:
    message = f"{quote(text)} {quote(setting('reverse', True))}"
    assert in_python(message) == in_shell(message) == message


@pytest.mark.parametrize("seconds", [300_000_000_000, -(10**15), 1e30, float("inf"), float("nan")])
def test_a_time_that_no_calendar_has_is_a_number(seconds: float) -> None:
    assert format_time(seconds).endswith(" seconds after 1970")


def test_a_time_is_a_date() -> None:
    assert format_time(1_000_000_000).startswith("2001-09-0")
