"""Model families: a table each, and what a table is written with."""

from .registry import *  # noqa: F403 - its public names
from .registry import __all__ as __all__
