"""Entry points of installed packages are found wherever the library finds them."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from streamconv.offers import entry_points

GROUP = "streamconv.test_offers"
METADATA = "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n"
OFFER = f"[{GROUP}]\nacme = acme_models:FAMILY\n"


def values() -> list[str]:
    return [point.value for point in entry_points(GROUP)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "place")])
    return tmp_path / "place"


@pytest.mark.parametrize(("kind", "metadata"), [("dist", "METADATA"), ("egg", "PKG-INFO")])
def test_a_package_in_a_folder(place: Path, kind: str, metadata: str) -> None:
    folder = place / f"acme-1.0.{kind}-info"
    folder.mkdir(parents=True)
    (folder / metadata).write_text(METADATA)
    assert values() == []
    (folder / "entry_points.txt").write_text(OFFER)
    assert values() == ["acme_models:FAMILY"]
    assert not [*entry_points("streamconv.other")]


def test_a_package_in_an_archive(place: Path) -> None:
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("acme-1.0.dist-info/METADATA", METADATA)
        archive.writestr("acme-1.0.dist-info/entry_points.txt", OFFER)
    assert values() == ["acme_models:FAMILY"]


def test_a_place_that_is_not_there(place: Path) -> None:
    assert values() == []


def test_the_current_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / "acme-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(METADATA)
    (folder / "entry_points.txt").write_text(OFFER)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [""])
    assert values() == ["acme_models:FAMILY"]
