"""Compare logits and print a table; exit with 1 if a difference is too large or a wrong layout goes unnoticed.

python -m benchmarks.forward [NAME…]
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
from pathlib import Path

from . import __doc__ as manual

_NEEDED = ("mindformers", "mindspore", "torch", "transformers")
_TOLERANCE = 1e-3
_NOTICED = 0.1
_COLUMNS = ("family", "model", "options", "max \\|difference\\|", "max \\|logit\\|", "with a wrong layout")


def main() -> None:
    """Run the named cases, or all."""
    _check_installed()
    with tempfile.TemporaryDirectory() as folder:
        _quieten(Path(folder))
        # Not earlier: these import MindSpore and MindFormers, which read the environment.
        from .cases import CASES  # noqa: PLC0415

        names = _names(list(CASES))
        print(_row(*_COLUMNS))
        print(_row(*["---"] * len(_COLUMNS)))
        failed = [name for name in names if not _passes(name, Path(folder) / name)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _names(known: list[str]) -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forward", epilog=f"Names: {', '.join(known)}")
    parser.add_argument("names", nargs="*", metavar="NAME", help="case to run (default: all)")
    names: list[str] = parser.parse_args().names
    unknown = sorted({*names} - {*known})
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names or known


def _passes(name: str, folder: Path) -> bool:
    from .cases import CASES, compare  # noqa: PLC0415

    case = CASES[name]
    found = compare(case, folder)
    options = ", ".join(f"{key}={str(value).lower()}" for key, value in case.options.items())
    wrong = f"{found.wrong:.2g} ({case.wrong.title})"
    print(_row(case.family, case.title, options, f"{found.difference:.1e}", f"{found.largest:.3g}", wrong), flush=True)
    return found.difference <= _TOLERANCE and found.wrong >= _NOTICED


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _check_installed() -> None:
    missing = [name for name in _NEEDED if not importlib.util.find_spec(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}\n\n{manual}")


def _quieten(folder: Path) -> None:
    """Suppress logs in ./output (MindFormers), warnings about the CPU (MindSpore), progress, and requests to a hub."""
    logs = {"LOCAL_DEFAULT_PATH": str(folder), "LOG_MF_PATH": str(folder), "GLOG_v": "3"}
    os.environ |= {**logs, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
