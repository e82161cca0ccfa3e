"""How messages are put together.

A message names a setting (`max_mem`, `reverse=True`) by `setting`, for the same message is read by who calls the
library and by who types commands: `in_python` and `in_shell` spell it for either.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

_QUOTED = 160
_LISTED = 12

# Around a setting in a message. `quote` lets no control character pass, so nothing from a file looks like one.
_BEGIN, _EQUALS, _END = "\x0e", "\x1f", "\x0f"
_SETTING = re.compile(f"{_BEGIN}([a-z_.0-9A-Z-]+)(?:{_EQUALS}([^{_END}]*))?{_END}")
_OPTIONS = "options"
_ARGUMENTS = {"source": "SOURCE", "dest": "DEST"}


def quote(text: object) -> str:
    """Make text from outside safe for a terminal: escape unprintable characters, cut long text in the middle."""
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)
    return shown if len(shown) <= _QUOTED else f"{shown[: _QUOTED // 2]}…{shown[-_QUOTED // 2 :]}"


def format_time(seconds: float) -> str:
    """Return local time for people: `2026-01-31 12:00:00`; seconds where no calendar has a date for them."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} seconds after 1970"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_size(count: float) -> str:
    """Return a number of bytes for people, in binary units: `12 B`, `3.4 MiB`, `1.25 GiB`."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{value:.4g} {unit}"


def first_few(
    items: Sequence[str], most: int = _LISTED, show: Callable[[str], str] = str, separator: str = ", "
) -> str:
    """Join the first `most` items and say how many more there are: `a, b and 3 more`."""
    shown = separator.join(map(show, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean X?` for the known word closest to `word`, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def setting(name: str, value: object = None) -> str:
    """Mark a setting in a message, for `in_python` or `in_shell` to spell.

    Args:
        name: a parameter of the API, such as `max_mem`, or `options.NAME` for an option of a model family.
        value: what to give it; `True` where naming it is enough, `False` for what a flag such as
            `--no-links` turns off. Without a value just the name is spelled.

    >>> in_python(setting("max_mem", "2G")), in_shell(setting("max_mem", "2G"))
    ('max_mem="2G"', '--max-mem 2G')
    >>> in_python(setting("reverse", True)), in_shell(setting("reverse", True))
    ('reverse=True', '--reverse')
    >>> in_python(setting("options.use_gmm", "true")), in_shell(setting("options.use_gmm", "true"))
    ('options={"use_gmm": "true"}', '-o use_gmm=true')
    """
    return f"{_BEGIN}{name}{'' if value is None else f'{_EQUALS}{value}'}{_END}"


def in_python(message: str) -> str:
    """Spell the settings in a message as a Python call has them."""
    return _SETTING.sub(lambda found: _python(found[1], found[2]), message)


def in_shell(message: str) -> str:
    """Spell the settings in a message as the command line has them."""
    return _SETTING.sub(lambda found: _shell(found[1], found[2]), message)


def _python(name: str, value: str | None) -> str:
    group, dot, option = name.partition(".")
    if value is None:
        return f'{group}["{option}"]' if dot else name
    literal = value if value in ("True", "False") or value.isdecimal() else f'"{value}"'
    return f'{group}={{"{option}": {literal}}}' if dot else f"{name}={literal}"


def _shell(name: str, value: str | None) -> str:
    group, dot, option = name.partition(".")
    if dot and group == _OPTIONS:
        return f"-o {option}" + ("" if value is None else f"={value}")
    flag = _ARGUMENTS.get(name, f"--{'no-' if value == 'False' else ''}{name.replace('_', '-')}")
    return flag if value in (None, "True", "False") else f"{flag} {value}"
