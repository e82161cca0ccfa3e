"""What a build of Python or a kernel may lack is done without: the same exit codes, and the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support import lacking, nowhere, running


def test_hosts_that_lack_something_convert_and_verify(tmp_path: Path) -> None:
    source = running.tiny(tmp_path / "hf", shard=300_000, hidden_size=160, intermediate_size=200, vocab_size=300)
    done = subprocess.run(
        [sys.executable, lacking.__file__, source, tmp_path],
        capture_output=True,
        text=True,
        cwd=nowhere(),
        timeout=600,
        check=True,
    )
    found = json.loads(done.stdout)
    codes, digest, said = found.pop("nothing")
    assert codes == [0] * 6, said
    assert {name for name, _ in lacking.lacks()} == {*found, "nothing"}
    assert [(name, other) for name, other in found.items() if other[:2] != [codes, digest]] == []
