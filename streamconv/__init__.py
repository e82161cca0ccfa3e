"""Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory.

import streamconv
plan = streamconv.plan("Mixtral-8x7B", "mixtral-ms", dtype="bf16", max_mem="2G")
print(plan)
plan.run()
"""

from .api import Conversion, Progress, Report, convert, plan
from .api import verify_checkpoint as verify
from .checkpoint import Checkpoint, LazyTensor, open  # noqa: A004 - as in gzip.open
from .checks.diff import Diff
from .checks.diff import diff_checkpoints as diff
from .errors import StreamconvError

__all__ = [
    "Checkpoint",
    "Conversion",
    "Diff",
    "LazyTensor",
    "Progress",
    "Report",
    "StreamconvError",
    "convert",
    "diff",
    "open",
    "plan",
    "verify",
]
