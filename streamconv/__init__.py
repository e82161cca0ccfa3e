"""Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory.

import streamconv
plan = streamconv.plan("Mixtral-8x7B", "mixtral-ms", dtype="bf16", max_mem="2G")
print(plan)
plan.run()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import VERSION

if TYPE_CHECKING:
    from . import families as families
    from . import testing as testing
    from .api import Diff as Diff
    from .api import Finding as Finding
    from .api import Plan as Plan
    from .api import PlanOptions as PlanOptions
    from .api import Progress as Progress
    from .api import Report as Report
    from .api import Verified as Verified
    from .api import check as check
    from .api import convert as convert
    from .api import diff as diff
    from .api import finish as finish
    from .api import inspect as inspect
    from .api import plan as plan
    from .api import verify as verify
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import LazyTensor as LazyTensor
    from .checkpoint import open as open  # noqa: A004 - as in gzip.open
    from .errors import BudgetError as BudgetError
    from .errors import DestinationError as DestinationError
    from .errors import InterruptedRunError as InterruptedRunError
    from .errors import SourceChangedError as SourceChangedError
    from .errors import SourceError as SourceError
    from .errors import StorageError as StorageError
    from .errors import StreamconvError as StreamconvError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import UsageError as UsageError
    from .errors import VerificationError as VerificationError

__version__ = VERSION

#: The public names, by the module that has them. Each is loaded when it is first used: `import streamconv` stays cheap.
_PUBLIC = {
    "api": (
        *("plan", "convert", "finish", "verify", "diff", "check", "inspect"),
        *("Plan", "Diff", "Finding", "PlanOptions", "Progress", "Report", "Verified"),
    ),
    "checkpoint": ("open", "Checkpoint", "LazyTensor"),
    "errors": (
        *("StreamconvError", "UsageError", "SourceError", "SourceChangedError", "UnsupportedError", "StorageError"),
        *("BudgetError", "VerificationError", "DestinationError", "InterruptedRunError"),
    ),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
_PACKAGES = ("families", "testing")

__all__ = ["__version__", *_PACKAGES, *_HOME]  # noqa: PLE0604 - loaded by __getattr__ (PEP 562)


if not TYPE_CHECKING:  # or else a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> object:
        if name in _PACKAGES:
            return import_module(f".{name}", __name__)
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(f".{_HOME[name]}", __name__), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
