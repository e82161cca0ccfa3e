"""Where a cluster is, and what is said where nobody answers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from streamconv.cluster import addresses
from streamconv.errors import StorageError, UsageError


@pytest.mark.parametrize("on", ["ray", "ray://head:10001", "ray://10.0.0.1:1", "ray://[::1]:10001"])
def test_words_that_name_a_cluster(on: str) -> None:
    addresses.check(on)


@pytest.mark.parametrize("on", ["", "Ray", "slurm", "ray://", "ray://head", "head:10001", "http://head:8265", "ray:1"])
def test_words_that_do_not(on: str) -> None:
    with pytest.raises(UsageError, match="names no cluster"):
        addresses.check(on)


def test_the_environment_names_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert addresses.meant("ray") == addresses.LOCAL
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert addresses.meant("ray") == "head:6379"
    assert addresses.meant("ray://other:10001") == "ray://other:10001"


def test_a_cluster_that_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        assert addresses.meant("ray") == f"127.0.0.1:{port}"
    assert addresses.meant("ray") == addresses.LOCAL


def test_nobody_listens() -> None:
    with pytest.raises(OSError, match="refused") as caught:
        addresses.reach("ray://127.0.0.1:9")
    error = addresses.refused("ray://127.0.0.1:9", caught.value)
    assert type(error) is StorageError
    assert error.message.startswith("cannot connect to the Ray cluster at ray://127.0.0.1:9: ")
    assert "ray status" in error.hint


def test_somebody_else_listens() -> None:
    error = addresses.refused("head:6379", ConnectionError("Failed to connect to\nRay cluster"))
    assert error.message == "cannot connect to the Ray cluster at head:6379: Failed to connect to Ray cluster"
    assert "RAY_AUTH_TOKEN" in error.hint


def test_a_token_that_is_refused_or_missing() -> None:
    error = addresses.refused("head:6379", RuntimeError("Token authentication is enabled but no token was found"))
    assert type(error) is UsageError
    assert "refuses the token" in error.message
    assert "RAY_AUTH_TOKEN" in error.hint


def test_no_ray_of_this_machine() -> None:
    assert addresses.refused("local", RuntimeError("x")).message == "cannot start Ray on this machine: x"
