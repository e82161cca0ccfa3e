"""Messages: what looks most like a word, and sentences in a row."""

from __future__ import annotations

import pytest

from streamconv.text import followed, suggestion


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("convret", ("convert", "verify"), "; did you mean convert?"),
        ("CONVERT", ("convert", "verify"), "; did you mean convert?"),
        ("zzz", ("convert", "verify"), ""),
        ("convert", (), ""),
    ],
)
def test_what_was_meant(word, known, said) -> None:
    assert suggestion(word, known) == said


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("there is none", "see --help", "there is none; see --help"),
        ("did you mean x?", "see --help", "did you mean x? See --help"),
    ],
)
def test_what_follows_a_question_begins_a_sentence(text, more, said) -> None:
    assert followed(text, more) == said
