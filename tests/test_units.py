"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamconv.errors import UsageError
from streamconv.text import format_size
from streamconv.units import parse_size

G = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16G", 16 * G),
        ("16GiB", 16 * G),
        ("16g", 16 * G),
        (" 16 gib ", 16 * G),
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("1.5G", 3 * G // 2),
        ("0.5KB", 500),
        ("2T", 2 << 40),
        ("3TB", 3 * 10**12),
        ("512", 512),
        ("512B", 512),
        ("7K", 7 << 10),
        ("9MiB", 9 << 20),
        (123456, 123456),
        ("4194304T", 1 << 62),
    ],
)
def test_sizes(text, size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "G", "16X", "16 G B", "1e9", "-5G", "+5G", "1,5G", "1.G", ".5G", "0x10", "16G16G", "nan", "inf"),
        *("0", "0G", "0.1", 0, -1, "4194305T", 1 << 63),
        *("9" * 5000, "9" * 5000 + ".5G", "0." + "1" * 5000 + "G", 10**5000, "\u0661\u0666G", "1\x1b[31mG"),
    ],
    ids=lambda text: text[:12].strip() if isinstance(text, str) else str(text.bit_length()),
)
def test_what_is_no_size_is_refused_by_its_word(text) -> None:
    with pytest.raises(UsageError, match="--max-mem") as caught:
        parse_size(text, "--max-mem")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@settings(deadline=None)
@given(st.integers(1, 1 << 62))
def test_plain_bytes_are_taken_as_they_are(size) -> None:
    assert parse_size(size) == parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (5 << 29, "2.5 GiB"), (1 << 60, "1.049e+06 TiB")],
)
def test_sizes_for_people(count, text) -> None:
    assert format_size(count) == text


@settings(deadline=None)
@given(st.integers(1, 1 << 50))
def test_what_is_shown_is_about_what_it_is(count) -> None:
    number, unit = format_size(count).split()
    assert float(number) * parse_size("1" + unit) == pytest.approx(count, rel=1e-3)
