"""Where a cluster is: the word that was given, and what it means that nobody answers there."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from tempfile import gettempdir

from ..errors import StorageError, StreamconvError, UsageError
from ..storage import whole_files
from ..text import quote, setting

#: The cluster of `RAY_ADDRESS`, one that runs on this machine, or one that is started for the run.
RAY = "ray"

#: Ray's words: what runs on this machine, if anything does, and a cluster that is started for the run.
AUTO, LOCAL = "auto", "local"

_CLIENT = re.compile(r"ray://([^\s/:]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^\s/\]]+?)\]?:([0-9]{1,5})")
_SECONDS = 10
_LONGEST = 300
_REFUSED = ("authenticat", "token")


def check(on: str) -> None:
    """Refuse a word that names no cluster.

    Raises:
        UsageError: it is neither `ray` nor the address of a Ray client's server.
    """
    if on != RAY and not _CLIENT.fullmatch(on):
        raise UsageError(
            f"{setting('on')} names no cluster: {quote(on)}",
            f"give {setting('on', RAY)}, or the address of a Ray client's server: {setting('on', 'ray://HOST:10001')}",
        )


def meant(on: str) -> str:
    """Return the address that a word means: for `ray`, that of `RAY_ADDRESS`, else what runs here, if anything does.

    What runs here is what Ray noted last, if it still answers: Ray itself would wait for it for minutes. One that
    answers and refuses is an error then, and no reason to start another.

    Raises:
        UsageError: `RAY_ADDRESS` is none.
    """
    if on != RAY:
        return on
    address = os.environ.get("RAY_ADDRESS") or AUTO
    if address not in (AUTO, LOCAL) and not _HOST_AND_PORT.fullmatch(address):
        raise UsageError(f"RAY_ADDRESS is no address: {quote(address)}", "give HOST:PORT, or ray://HOST:PORT")
    return _running() if address == AUTO else address


def _running() -> str:
    folder = Path(os.environ.get("RAY_TMPDIR") or gettempdir(), "ray")
    try:
        address = whole_files.read_file(folder / "ray_current_cluster", _LONGEST).decode(errors="replace").strip()
        reach(address)
    except OSError:
        return LOCAL
    return address if _HOST_AND_PORT.fullmatch(address) else LOCAL


def reach(address: str) -> None:
    """Look whether anybody listens at an address, because Ray waits a minute and more before it says that nobody does.

    Raises:
        OSError: nobody does.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if found:
        socket.create_connection((found[1], int(found[2])), _SECONDS).close()


def refused(address: str, error: Exception) -> StreamconvError:
    """Return the error for a cluster that cannot be connected to."""
    why = quote(" ".join(str(error).split()) or type(error).__name__)
    if address == LOCAL:
        return StorageError(f"cannot start Ray on this machine: {why}", "look into Ray's logs, and run again")
    if any(word in why.lower() for word in _REFUSED):
        return UsageError(
            f"the Ray cluster at {quote(address)} refuses the token: {why}",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token, here and on every node",
        )
    if isinstance(error, OSError) and error.errno:
        hint = "check that it runs (ray status), and its address: HOST:6379 in RAY_ADDRESS, or ray://HOST:10001"
    else:
        hint = (
            "somebody listens there: check that it is Ray, of the same versions of Ray and Python; and if it wants a "
            "token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's"
        )
    return StorageError(f"cannot connect to the Ray cluster at {quote(address)}: {why}", hint)
