"""Shared by tests of what MindSpore makes of our files: its own loader, and ours in the same words."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from support import golden, nowhere

# Each piece of code has a process of its own: a doubtful file would not raise in MindSpore, it would overwrite its
# heap. All are copies of one that has imported MindSpore, for that takes longer than what they do.
_SERVER = """
import json, os, sys, traceback
import mindspore
import mindspore.train.serialization
for line in sys.stdin:
    child = os.fork()
    if not child:
        code, *sys.argv[1:] = json.loads(line)
        failed = 1
        try:
            exec(code, {"__name__": "__main__"})
            failed = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(failed)
    print("\\nENDED", os.waitpid(child, 0)[1], flush=True)
"""

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


@cache
def _server() -> subprocess.Popen[str]:
    """It ends with this process, which holds the other end of its input."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", _SERVER]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=nowhere())


def by_mindspore(code: str, *words: object) -> str:
    """Run code with these words in a process that has imported MindSpore; return what it printed."""
    process = _server()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([code, *map(str, words)]) + "\n")
    process.stdin.flush()
    said: list[str] = []
    for line in process.stdout:
        if line.startswith("ENDED"):
            assert line == "ENDED 0\n", "".join(said)
            return "".join(said)
        said.append(line)
    raise AssertionError("".join(said))


def loaded(*paths: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """What MindSpore loads from these files."""
    values = json.loads(by_mindspore(_LOAD, *paths).split("RESULT")[-1].split("\n")[0])
    return {name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in values.items()}


def ours(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {name: (_NAMES[dtype], shape, digest) for name, (dtype, shape, digest) in golden.found(path).items()}
