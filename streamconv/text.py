"""How messages are put together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word that looks most like `word`, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def followed(text: str, more: str) -> str:
    """`text; more`, or, where the text ends in a question, `text? More`."""
    return f"{text} {more[:1].upper()}{more[1:]}" if text.endswith("?") else f"{text}; {more}"
