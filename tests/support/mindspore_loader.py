"""Shared by tests of what MindSpore makes of our files: its own loader, and ours in the same words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support import golden

# A process of its own: a doubtful file would not raise in MindSpore, it would overwrite its heap.
_LOAD = """
import hashlib, json, sys
import mindspore as ms
import mindspore.train.serialization as serialization
serialization._get_available_memory = lambda: None  # counts the page cache as used memory
result = {}
for path in sys.argv[1:]:
    kind = "ckpt" if path.endswith("ckpt") else "safetensors"
    for name, p in ms.load_checkpoint(path, format=kind, crc_check=path.endswith("crc.ckpt")).items():
        result[name] = [str(p.dtype), list(p.shape), hashlib.sha256(bytes(p.get_bytes())).hexdigest()]
print("RESULT" + json.dumps(result))
"""

_NAMES = {"BF16": "BFloat16", "F16": "Float16", "F32": "Float32"}


def loaded(*paths: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """What MindSpore loads from these files."""
    done = subprocess.run([sys.executable, "-c", _LOAD, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.split("RESULT")[-1])
    return {name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in values.items()}


def ours(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {name: (_NAMES[dtype], shape, digest) for name, (dtype, shape, digest) in golden.found(path).items()}
