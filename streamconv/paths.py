"""A path, as callers may give it."""

from __future__ import annotations

import os

PathLike = str | os.PathLike[str]
