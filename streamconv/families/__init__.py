"""Model families: a table each, and what a table is written with."""

from .registry import *  # noqa: F403 - its public names
from .registry import __all__ as __all__
from .registry import families as list  # noqa: A004, F401 - `streamconv.families.list()`
