"""Where a cluster is: the word that was given, and what it means that nobody answers there."""

from __future__ import annotations

import re
import socket

from ..errors import StorageError, StreamconvError, UsageError
from ..text import quote, setting

#: The cluster of `RAY_ADDRESS`, one that runs on this machine, or one that is started for the run.
RAY = "ray"

_CLIENT = re.compile(r"ray://([^\s/:]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?([^\s/\]]+?)\]?:([0-9]{1,5})")
_SECONDS = 10
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


def reach(address: str) -> None:
    """Look whether anybody listens at an address, because Ray waits a minute and more before it says that nobody does.

    Raises:
        OSError: nobody does.
    """
    found = _HOST_AND_PORT.fullmatch(address)
    if found:
        socket.create_connection((found[1], int(found[2])), _SECONDS).close()


def refused(on: str, error: Exception) -> StreamconvError:
    """Return the error for a cluster that cannot be connected to."""
    lines = str(error).splitlines() or [type(error).__name__]
    if any(word in str(error).lower() for word in _REFUSED):
        return UsageError(
            f"the cluster of {setting('on', on)} refuses the token: {quote(lines[0])}",
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token, here and on every node",
        )
    return StorageError(
        f"cannot connect to the cluster of {setting('on', on)}: {quote(lines[0])}",
        "check that it runs (ray status), and the address: that of RAY_ADDRESS, or of the Ray client's server",
    )
