"""What the kernel says of pages and huge pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamconv.storage import pages


@pytest.mark.parametrize(
    ("text", "has"),
    [("always [madvise] never\n", True), ("[always] madvise never\n", True), ("always madvise [never]\n", False)],
)
def test_huge_pages_are_found(text: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "enabled").write_text(text)
    monkeypatch.setattr(pages, "_ENABLED", tmp_path / "enabled")
    assert pages.has_huge_pages() is has


@pytest.mark.parametrize(
    ("text", "size"), [("2097152\n", 2 << 20), ("536870912\n", 512 << 20), ("", None), ("a", None)]
)
def test_their_size_is_found(text: str, size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "size").write_text(text)
    monkeypatch.setattr(pages, "_SIZE", tmp_path / "size")
    assert pages.huge_page_bytes() == size


def test_a_kernel_without_huge_pages_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ENABLED", "_SIZE"):
        monkeypatch.setattr(pages, name, tmp_path / "missing")
    assert not pages.has_huge_pages()
    assert pages.huge_page_bytes() is None
