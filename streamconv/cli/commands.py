"""The commands. All they do is the public API's; each imports what it needs, so that `--help` stays cheap."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..errors import StorageError, UnsupportedError, UsageError, VerificationError
from ..text import counted, quote, setting
from ..version import VERSION
from . import collector, signals
from .arguments import (
    CONVERSION,
    FAMILY,
    IO,
    JSON,
    MAX_MEM,
    ON_CLUSTER,
    PART,
    QUIET,
    RESOURCES,
    STEP,
    STRATEGY,
    WORKERS,
    Commands,
    WithFamilyFlags,
    given,
    one_of,
    pairs,
    together,
)
from .terminal import print_lines, progress_bar, say

if TYPE_CHECKING:
    from ..arguments import PlanOptions

_CONVERT_HELP = """Convert the checkpoint SOURCE (a directory or a file) to DEST (a directory, a .ckpt or a torch file).

\b
Examples:
  streamconv convert ./Mixtral-8x7B ./mixtral-ms --dtype bf16 --max-mem 2G
  streamconv convert ./Llama-3.1-8B ./llama.ckpt --model llama
  streamconv convert ./llama.ckpt ./llama-hf --reverse --model llama
  streamconv convert ./llama.ckpt ./pytorch_model.bin --reverse --model llama
  streamconv convert ./old.ckpt ./new-dir --model raw

MindFormers' spelling works too: --input_path, --output_path, --reversed, and a family's options as flags
(--qkv_concat true).
"""

_MODELS_HELP = """List the model families; with NAME, show one family's options, repositories and table of names.

\b
  streamconv models                     all families, a line each
  streamconv models mixtral             one family in full
  streamconv models check FILE SOURCE   check the family in the Python file FILE (or of that name) against the
                                        checkpoint SOURCE, both ways; only headers are read
"""


@click.group(cls=Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="streamconv")
def cli() -> None:
    """Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory."""


@cli.command(cls=WithFamilyFlags, help=_CONVERT_HELP, short_help="Convert SOURCE to DEST.")
@together(
    *(CONVERSION, PART, ON_CLUSTER),
    click.option("--quiet", is_flag=True, help="Suppress the plan and the progress."),
    JSON,
)
def convert(
    quiet: bool, as_json: bool, part: str | None, on: str | None, workers_per_node: int | None, **arguments: Any
) -> None:
    """Convert."""
    from ..running import has_no_share, ready

    if has_no_share(part):
        say("part     none: msrun started this process as its scheduler, and the workers convert")
        return
    source, dest = _places(arguments, "write streamconv convert SOURCE DEST")
    asked = given({"on": on, "workers_per_node": workers_per_node, "part": part})
    running = ready(source, dest, cast("PlanOptions", given(arguments)), **asked)
    with signals.patience(on), running as runner, progress_bar(quiet) as progress:
        planned = _plan(source, dest, arguments, is_shared=part is not None)
        if not quiet:
            say("\n".join([_text(planned), *runner.lines]))
        report = runner.run(planned, progress)
        # From here on the exit code is that of a result that is in place.
        signals.ignore()
    _print_report(report, as_json)


def _print_report(report: Any, as_json: bool) -> None:
    try:
        click.echo(json.dumps(report.to_json(), indent=1) if as_json else _report(report))
    except BrokenPipeError:
        raise
    except OSError as error:
        path = quote(report.prepared.destination.path)
        what = f"what was converted for {path} is safe" if report.waiting else f"{path} is complete"
        why = f"{what}, but its report cannot be written: {error.strerror}"
        raise StorageError(why, "write the report elsewhere next time; nothing more is needed") from error


@cli.command(short_help="Put the result of convert --part together.")
@click.argument("dest")
@together(MAX_MEM, WORKERS, QUIET, JSON)
def finish(dest: str, quiet: bool, as_json: bool, **arguments: Any) -> None:
    """Put the result DEST together, once all processes with --part ended: needed only if the last one was stopped."""
    from ..api import finish

    with progress_bar(quiet) as progress:
        report = finish(dest, progress=progress, **given(arguments))
        signals.ignore()
    _print_report(report, as_json)


@cli.command(cls=WithFamilyFlags, short_help="Show what convert would do, without writing.")
@together(CONVERSION, JSON)
def plan(as_json: bool, **arguments: Any) -> None:
    """Show what convert would do, without writing: names, shapes, dtypes, sizes, memory. Only headers are read."""
    from ..report import tensor_lines

    planned = _plan(*_places(arguments, "write streamconv plan SOURCE DEST"), arguments)
    if as_json:
        click.echo(json.dumps(planned.to_json(), indent=1))
        return
    print_lines(tensor_lines(planned.outputs))
    click.echo(_text(planned))


def _places(arguments: dict[str, Any], hint: str) -> tuple[str, str]:
    """Take SOURCE and DEST out of the arguments, in either spelling."""
    source = one_of(arguments.pop("source"), arguments.pop("input_path"), "SOURCE", "--input_path", hint)
    return source, one_of(arguments.pop("dest"), arguments.pop("output_path"), "DEST", "--output_path", hint)


def _plan(source: str, dest: str, arguments: dict[str, Any], is_shared: bool = False) -> Any:
    from ..plans import plan

    links = not arguments.pop("no_links")
    with collector.paused():
        planned = plan(source, dest, **given({**arguments, "options": pairs(arguments["options"]), "links": links}))
    if not is_shared:
        planned.check_destination()
    return planned


def _text(planned: Any) -> str:
    """A plan with its settings spelled as flags."""
    from ..report import describe
    from ..text import in_shell

    return in_shell(describe(planned))


def _report(report: Any) -> str:
    """A report with its settings spelled as flags."""
    from ..report import describe_run
    from ..text import in_shell

    return in_shell(describe_run(report))


@cli.command(short_help="List the tensors of a file or directory.")
@click.argument("path")
@together(STRATEGY, STEP, JSON)
def inspect(path: str, as_json: bool, **arguments: Any) -> None:
    """List the tensors of any supported file or directory: name, dtype, shape, bytes, file.

    Of the ranks of a training: in how many slices each tensor is, what its slices are, and how many ranks have each.
    """
    from ..checkpoint import inspected
    from ..text import in_shell

    checkpoint = inspected(path, **given(arguments))
    if as_json:
        click.echo(json.dumps(checkpoint.to_json(), indent=1))
    else:
        print_lines(map(in_shell, checkpoint.marked_lines()))


@cli.command(help=_MODELS_HELP, short_help="List the model families, their options and tables.")
@click.argument("words", nargs=-1, metavar="[NAME | check FILE SOURCE]")
@click.option("--family", metavar="FILE", help="Python file that defines a model family of your own: list it too.")
@click.option("--config", metavar="FILE", help="For check: the model's config.json if it is not next to SOURCE.")
@click.option("--max-mem", metavar="SIZE", help="For check: resident memory allowed, such as 512M.")
@JSON
def models(words: tuple[str, ...], family: str | None, config: str | None, max_mem: str | None, as_json: bool) -> None:
    """List the model families."""
    from ..families import families, find, load
    from .listings import family_lines, family_values

    of_check = {"config": config, "max_mem": max_mem}
    if words[:1] == ("check",):
        _refuse_unread({"family": family, "json": as_json}, "models check does not take {}")
        _check(words[1:], given(of_check))
        return
    _refuse_unread(of_check, "{} has no effect without check")
    if len(words) > 1:
        raise UsageError("models takes one NAME, or check FILE SOURCE", "see streamconv models --help")
    own = [load(Path(family))] if family else []
    name = words[0] if words else ""
    chosen = [next((one for one in own if one.name == name), None) or find(name)] if name else [*families(), *own]
    if as_json:
        click.echo(json.dumps([family_values(family) for family in chosen], indent=1))
    else:
        print_lines(line for family in chosen for line in family_lines(family, bool(name)))


def _refuse_unread(arguments: Mapping[str, object], message: str) -> None:
    for name in (name for name, value in arguments.items() if value):
        raise UsageError(message.format(setting(name)), f"omit {setting(name)}")


def _check(words: tuple[str, ...], arguments: dict[str, Any]) -> None:
    from ..api import check
    from ..text import in_shell

    if len(words) != 2:
        raise UsageError(
            "models check takes a family's Python file (or name) and a checkpoint",
            "write streamconv models check FILE SOURCE",
        )
    findings = 0
    for finding in check(*words, **arguments):
        findings += finding.is_error
        with suppress(BrokenPipeError):
            click.echo(in_shell(finding.marked))
    if findings:
        raise UnsupportedError(f"the family does not fit {quote(words[1])}: {counted(findings, 'finding')}")


@cli.command(short_help="Prove a result against its manifest, or against its source.")
@click.argument("words", nargs=-1, metavar="[SOURCE] DEST")
@click.option("--sample", metavar="SHARE", help="Read only a share, another one each time: 5%, or 0.05.")
@together(STRATEGY, STEP, RESOURCES, FAMILY, ON_CLUSTER, QUIET, JSON)
def verify(words: tuple[str, ...], sample: str | None, quiet: bool, as_json: bool, **arguments: Any) -> None:
    """Prove that DEST is what streamconv wrote, against its manifest, or with SOURCE against what SOURCE gives.

    --strategy, --step, --max-mem, --workers, --config, --io and --family go with SOURCE only.
    """
    from ..api import verify

    if not 1 <= len(words) <= 2:
        what = "DEST is missing" if not words else f"too many arguments: {len(words)}"
        raise UsageError(what, "write streamconv verify [SOURCE] DEST")
    source, dest = (words[0] if len(words) == 2 else None), words[-1]
    with progress_bar(quiet) as progress, signals.patience(arguments["on"]):
        found = verify(dest, source=source, sample=sample, progress=progress, **given(arguments))
    if as_json:
        values = {"files": found.files, "tensors": found.tensors, "bytes": found.bytes_read, "total": found.total}
        nodes = {"nodes": list(found.nodes)} if arguments["on"] else {}
        click.echo(json.dumps({**values, **nodes}))
        return
    what = "matches its manifest" if source is None else "is byte-for-byte identical to what its source converts to"
    read = f"{found.bytes_read} bytes" + (
        f" of {found.total} ({sample} sample)" if found.bytes_read < found.total else ""
    )
    click.echo(f"{quote(dest)} {what}: {counted(found.tensors, 'tensor')} in {counted(found.files, 'file')}, {read}")


@cli.command(short_help="Show what differs between two checkpoints.")
@click.argument("a")
@click.argument("b")
@together(MAX_MEM, IO, STRATEGY, STEP, ON_CLUSTER, QUIET, JSON)
def diff(a: str, b: str, quiet: bool, as_json: bool, **arguments: Any) -> None:
    """Show what differs between A and B, checkpoints of any format: names, shapes, dtypes, values.

    Exits with status 7 if they differ. Names are compared as they are: convert first, where one side has HuggingFace's
    and the other MindSpore's.
    """
    from ..api import diff

    with progress_bar(quiet) as progress, signals.patience(arguments["on"]):
        found = diff(a, b, progress=progress, **given(arguments))
    # Whoever reads the first lines only still gets the exit code.
    with suppress(BrokenPipeError):
        print_lines(found.json_lines() if as_json else [*found.details(), found.summary])
        sys.stdout.flush()
    if not found.same:
        raise click.exceptions.Exit(VerificationError.exit_code)


@cli.command(short_help="Round-trip a small generated model.")
@click.option("--keep", metavar="DIR", help="Write into DIR and keep it.  [default: a temporary directory]")
@click.option("--max-mem", default="112M", show_default=True, metavar="SIZE", help="Memory limit of each step.")
def demo(keep: str | None, max_mem: str) -> None:
    """Make a small Mixtral, convert it, verify it, convert it back, and show that the bytes are the same."""
    from .demo import run

    def say_out(text: str) -> None:
        with suppress(BrokenPipeError):
            click.echo(text)

    run(keep, max_mem, say_out)
