"""Tell whether a commit made conversions slower: compare two versions on the cases of `copies`, in interleaved rounds.

    python -m benchmarks.compare COMMIT [COMMIT2] [--cases NAME ...] [--folder DIR] [--rounds 9] [--quick]

COMMIT2 defaults to the working tree. A case counts as slower if both hold:

- the median of the rounds' ratios, new over old, is above 1.05;
- so many rounds were slower that two equal versions would show it in less than 5 % of comparisons (a one-sided sign
  test): all of 5 to 7 rounds, all but one of 8 to 10.

So a difference below 5 % is never reported, nor one that several rounds contradict. Faster is the same, below 1/1.05.
Exit code 1 if a case is slower, 2 if something could not be run. With a `--folder` on tmpfs the disk adds no noise.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import functools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .conversions import CASES, Case, source_of, streamconv, words
from .measuring import BenchmarkError, Run, Spread, interleaved, ratios, spread
from .results import Table
from .running import run_and_remove

BUDGET = "1G"
THRESHOLD = 1.05
SIGNIFICANCE = 0.05

# With fewer rounds, the sign test could not find anything.
_LEAST_ROUNDS = 5
_COLUMNS = ("case", "old s", "new s", "new / old (least-most)", "slower rounds", "verdict")
_ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Compare what the command line names; return the exit code."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.rounds < _LEAST_ROUNDS:
        parser.error(f"--rounds: at least {_LEAST_ROUNDS}; with fewer, no difference can be told from chance")
    try:
        return _compare(arguments)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    about = __doc__.split("\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=about)
    parser.add_argument("old", metavar="COMMIT", help="version to compare with")
    parser.add_argument("new", metavar="COMMIT2", nargs="?", help="version to compare (default: the working tree)")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=f"any of {', '.join(CASES)}"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="work directory (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="runs of each version (default: 9)")
    parser.add_argument("--quick", action="store_true", help="small checkpoints, to check that everything runs")
    return parser


def _compare(arguments: argparse.Namespace) -> int:
    found: list[_Compared] = []
    with tempfile.TemporaryDirectory(prefix="compare-", dir=arguments.folder) as temporary:
        folder = Path(temporary).resolve()
        with _tree(arguments.old, folder / "old") as old, _tree(arguments.new, folder / "new") as new:
            for name in arguments.cases:
                print(CASES[name].title, file=sys.stderr, flush=True)
                found.append(_measure(CASES[name], {"old": old, "new": new}, folder, arguments))
    print(Table(_COLUMNS, [_row(one) for one in found]).markdown())
    return 1 if any(one.verdict == "slower" for one in found) else 0


@dataclass(frozen=True)
class _Compared:
    """The runs of a case, round by round."""

    title: str
    old: list[Run]
    new: list[Run]

    @property
    def ratio(self) -> Spread:
        """The new version's seconds over the old one's."""
        return ratios(self.new, self.old)

    @property
    def slower(self) -> int:
        """The number of rounds in which the new version was slower."""
        return sum(new.seconds > old.seconds for new, old in zip(self.new, self.old, strict=True))

    @property
    def verdict(self) -> str:
        """`slower`, `faster` or `no difference`, by the rule above."""
        rounds = len(self.old)
        if self.ratio.median > THRESHOLD and chance(self.slower, rounds) < SIGNIFICANCE:
            return "slower"
        if self.ratio.median < 1 / THRESHOLD and chance(rounds - self.slower, rounds) < SIGNIFICANCE:
            return "faster"
        return "no difference"


def chance(heads: int, tosses: int) -> float:
    """Return the probability of at least `heads` heads in so many tosses of a fair coin."""
    return sum(math.comb(tosses, i) for i in range(heads, tosses + 1)) / float(2**tosses)


def _row(one: _Compared) -> list[str]:
    old, new = (spread(run.seconds for run in some) for some in (one.old, one.new))
    return [one.title, f"{old:.2f}", f"{new:.2f}", f"{one.ratio:.3f}", f"{one.slower} of {len(one.old)}", one.verdict]


def _measure(case: Case, trees: Mapping[str, Path], folder: Path, arguments: argparse.Namespace) -> _Compared:
    with source_of(case.model, folder, arguments.quick) as source:
        dest = folder / "dest"
        contestants = {name: functools.partial(_convert, case, tree, source, dest) for name, tree in trees.items()}
        for warm_up in contestants.values():
            warm_up()
        return _Compared(case.title, **interleaved(contestants, arguments.rounds))


def _convert(case: Case, tree: Path, source: Path, dest: Path) -> Run:
    command = streamconv(words(case.options, source, dest, BUDGET))
    return run_and_remove(command, source, dest, env=_environment(tree), prepare=lambda: os.chdir(tree))


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree)}


@contextlib.contextmanager
def _tree(commit: str | None, folder: Path) -> Iterator[Path]:
    """Yield a folder with the package at a commit, or with a copy of the working tree, which may then change."""
    if commit is None:
        shutil.copytree(_ROOT / "streamconv", folder / "streamconv")
        yield _ready(folder)
        return
    _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    try:
        yield _ready(folder)
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _ready(tree: Path) -> Path:
    """Compile the package, and check that a process started there runs this one and no other."""
    compileall.compile_dir(tree / "streamconv", quiet=1)
    ask = [sys.executable, "-c", "import streamconv; print(streamconv.__file__)"]
    file = subprocess.check_output(ask, cwd=tree, env=_environment(tree), text=True).strip()
    if not Path(file).resolve().is_relative_to(tree.resolve()):
        raise BenchmarkError(f"{file} would be run instead of {tree}")
    return tree


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], cwd=_ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"git {' '.join(words)}: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main())
