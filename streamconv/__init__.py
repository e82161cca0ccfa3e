"""Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory.

import streamconv
plan = streamconv.plan("Mixtral-8x7B", "mixtral-ms", dtype="bf16", max_mem="2G")
print(plan)
plan.run()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import Conversion as Conversion
    from .api import Progress as Progress
    from .api import Report as Report
    from .api import convert as convert
    from .api import plan as plan
    from .api import verify_checkpoint as verify  # noqa: F401
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import LazyTensor as LazyTensor
    from .checkpoint import open as open  # noqa: A004 - as in gzip.open
    from .checks.diff import Diff as Diff
    from .checks.diff import diff_checkpoints as diff  # noqa: F401
    from .errors import StreamconvError as StreamconvError

__version__ = "0.1.0"

#: Public name -> the module it is in, and its name there. Loaded when first used: `import streamconv` stays cheap.
_PUBLIC = {
    "Checkpoint": (".checkpoint", "Checkpoint"),
    "Conversion": (".api", "Conversion"),
    "Diff": (".checks.diff", "Diff"),
    "LazyTensor": (".checkpoint", "LazyTensor"),
    "Progress": (".api", "Progress"),
    "Report": (".api", "Report"),
    "StreamconvError": (".errors", "StreamconvError"),
    "convert": (".api", "convert"),
    "diff": (".checks.diff", "diff_checkpoints"),
    "open": (".checkpoint", "open"),
    "plan": (".api", "plan"),
    "verify": (".api", "verify_checkpoint"),
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604 - names of this module, by PEP 562


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    globals()[name] = found = getattr(import_module(module, __name__), attribute)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
