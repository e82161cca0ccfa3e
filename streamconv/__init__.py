"""Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory.

    import streamconv
    plan = streamconv.plan("Mixtral-8x7B", "mixtral-ms", dtype="bf16", max_mem="2G")
    print(plan)
    plan.run()
"""

from .convert import Conversion, Progress, Report, convert, plan
from .convert import verify_checkpoint as verify
from .errors import StreamconvError

__all__ = ["Conversion", "Progress", "Report", "StreamconvError", "convert", "plan", "verify"]
