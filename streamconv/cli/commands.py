"""The commands: words and options. All they do is the public API's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import UnsupportedError, UsageError, VerificationError
from ..text import counted, did_you_mean, quote
from .terminal import print_lines, progress_bar, say

F = TypeVar("F", bound=Callable[..., Any])

_CONVERT_HELP = """Convert the checkpoint SOURCE (a directory or a file) to DEST (a directory, a .ckpt or torch file).

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


class _Commands(click.Group):
    """A group that says which command was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the one that looks most like it."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = did_you_mean(name, self.commands)
            raise UsageError(f"there is no command {quote(name)!r}", near or "see streamconv --help")
        return super().resolve_command(ctx, args)


class _WithFamilyFlags(click.Command):
    """A command that takes families' options as MindFormers does: `--qkv_concat true` is `-o qkv_concat=true`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the flags, then parse."""
        from ..families.registry import families

        flags = {f"--{name}" for f in families() for name in (*(o.name for o in f.options), *f.numbers)}
        rewritten, rest = [], list(args)
        while rest:
            word, equals, value = rest.pop(0).partition("=")
            if word not in flags:
                rewritten.append(word + equals + value)
                continue
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"{word} needs a value, for example {word} true")
                value = rest.pop(0)
            rewritten += ["-o", f"{word[2:]}={value}"]
        return super().parse_args(ctx, rewritten)


@click.group(cls=_Commands, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamconv")
def cli() -> None:
    """Convert very large checkpoints between HuggingFace and MindSpore in a fixed amount of memory."""


_FAMILY = click.option("--family", metavar="FILE", help="A Python file that defines a family of your own.")


def _conversion(command: F) -> F:
    """The arguments of a conversion."""
    options = (
        click.argument("source", required=False),
        click.argument("dest", required=False),
        click.option("--input_path", hidden=True),
        click.option("--output_path", hidden=True),
        click.option("--model", metavar="NAME", help="Model family; recognised from config.json where absent."),
        _FAMILY,
        click.option("--reverse", "--reversed", is_flag=True, help="From MindSpore to HuggingFace."),
        click.option("--dtype", metavar="fp32|fp16|bf16", help="Cast every float tensor; as they are where absent."),
        click.option("options", "-o", multiple=True, metavar="NAME=VALUE", help="A family's option; repeatable."),
        click.option("--format", metavar="safetensors|ckpt|hf|torch", help="Of DEST; from its name and the direction."),
        click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="5GB is 5*10^9 bytes."),
        click.option("--crc", is_flag=True, help="Append MindSpore's CRC to a .ckpt (2.3 and later read it)."),
        click.option(
            "--overwrite",
            is_flag=True,
            help="Replace the checkpoint at DEST; it stays until the new one is done.",
        ),
        click.option("--restart", is_flag=True, help="Begin anew; without it a run goes on from one that was stopped."),
        click.option("--verify", is_flag=True, help="Compare the result with SOURCE before it gets its name."),
    )
    for option in reversed((*options, *_RESOURCES)):
        command = option(command)
    return command


_MAX_MEM = click.option(
    "--max-mem", metavar="SIZE", help="Resident memory: 16G, 512M. A quarter of what is free, at most 2G."
)
_IO = click.option(
    "--io",
    metavar="auto|map|read|direct",
    default="auto",
    show_default=True,
    help="Map the source's files, read them, or read and write past the page cache.",
)
_RESOURCES = (
    _MAX_MEM,
    click.option("--workers", type=int, metavar="N", help="Threads; as many as cores and memory allow."),
    click.option(
        "--config", metavar="FILE", help="The model's config.json, if not beside SOURCE, or MindFormers' YAML."
    ),
    _IO,
)
_OUTPUT = (
    click.option("--quiet", is_flag=True, help="No progress, no plan."),
    click.option("--json", "as_json", is_flag=True, help="One machine-readable report on stdout."),
)


def _output(command: F) -> F:
    for option in reversed(_OUTPUT):
        command = option(command)
    return command


@cli.command(cls=_WithFamilyFlags, help=_CONVERT_HELP, short_help="Convert SOURCE to DEST.")
@_conversion
@_output
def convert(quiet: bool, as_json: bool, **arguments: Any) -> None:
    """Convert."""
    conversion = _plan(arguments)
    if not quiet:
        say(str(conversion))
    with progress_bar(quiet) as on_progress:
        report = conversion.run(on_progress)
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else str(report))


@cli.command(cls=_WithFamilyFlags, short_help="Everything convert would do but the bytes.")
@_conversion
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def plan(as_json: bool, **arguments: Any) -> None:
    """Everything that convert would do but the bytes: names, shapes, dtypes, sizes, memory."""
    from ..report import tensor_lines

    conversion = _plan(arguments)
    if as_json:
        click.echo(json.dumps(conversion.to_json(), indent=1))
        return
    print_lines(tensor_lines(conversion))
    click.echo(str(conversion))


def _plan(arguments: dict[str, Any]) -> Any:
    from ..api import plan

    source = _one_of(arguments.pop("source"), arguments.pop("input_path"), "SOURCE", "--input_path")
    dest = _one_of(arguments.pop("dest"), arguments.pop("output_path"), "DEST", "--output_path")
    return plan(source, dest, **{**arguments, "options": _pairs(arguments["options"])})


def _one_of(positional: str | None, flag: str | None, name: str, flag_name: str) -> str:
    if positional and flag:
        raise UsageError(f"{name} is given twice: as an argument and as {flag_name}")
    value = positional or flag
    if not value:
        raise UsageError(f"{name} is missing: streamconv convert SOURCE DEST")
    return value


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"-o {quote(text)}: write -o NAME=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs


@cli.command(short_help="The tensors of any supported file or directory.")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def inspect(path: str, as_json: bool) -> None:
    """The tensors of any supported file or directory: name, dtype, shape, bytes, file."""
    from ..checkpoint import open as open_checkpoint
    from .listings import catalog_lines, catalog_values

    catalog = open_checkpoint(path).catalog
    if as_json:
        click.echo(json.dumps(catalog_values(catalog), indent=1))
    else:
        click.echo("\n".join(catalog_lines(catalog)))


_MODELS_HELP = """The model families; with NAME, one family's options, repositories and table of names.

\b
  streamconv models                     all families in a line each
  streamconv models mixtral             one in full
  streamconv models check FILE SOURCE   whether the family in the Python file FILE (or of that name) fits the
                                        checkpoint SOURCE, both ways; only headers are read
"""


@cli.command(help=_MODELS_HELP, short_help="The model families, their options and tables.")
@click.argument("words", nargs=-1, metavar="[NAME | check FILE SOURCE]")
@click.option("--family", metavar="FILE", help="A Python file that defines a family of your own: show that too.")
@click.option("--config", metavar="FILE", help="For check: the model's config.json, if not beside SOURCE.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def models(words: tuple[str, ...], family: str | None, config: str | None, as_json: bool) -> None:
    """The model families."""
    from ..families.registry import families, find, load
    from .listings import family_lines, family_values

    if words[:1] == ("check",):
        _check(words[1:], config)
        return
    if len(words) > 1:
        raise UsageError("models takes one NAME, or check FILE SOURCE; see streamconv models --help")
    own = [load(Path(family))] if family else []
    name = words[0] if words else ""
    chosen = [next((one for one in own if one.name == name), None) or find(name)] if name else [*families(), *own]
    if as_json:
        click.echo(json.dumps([family_values(family) for family in chosen], indent=1))
    else:
        click.echo("\n".join(line for family in chosen for line in family_lines(family, bool(name))))


def _check(words: tuple[str, ...], config: str | None) -> None:
    from ..api import check

    if len(words) != 2:
        raise UsageError("streamconv models check FILE SOURCE: a family's Python file (or name), and a checkpoint")
    findings = 0
    for finding in check(*words, config=config):
        click.echo(finding.text)
        findings += finding.is_error
    if findings:
        raise UnsupportedError(f"the family does not fit {quote(words[1])}: {counted(findings, 'finding')}")


@cli.command(short_help="Prove a result by its manifest, or by its source.")
@click.argument("first", metavar="[SOURCE]", required=False)
@click.argument("second", metavar="DEST", required=False)
@click.option("--fraction", metavar="SHARE", help="Read a sample only, another one each time: 5%, or 0.05.")
@_output
def verify(
    first: str | None, second: str | None, fraction: str | None, quiet: bool, as_json: bool, **arguments: Any
) -> None:
    """Prove that DEST is what streamconv wrote (against its manifest) or, with SOURCE, what SOURCE gives."""
    from ..api import verify_checkpoint

    if not first:
        raise UsageError("DEST is missing: streamconv verify [SOURCE] DEST")
    given = {name: value for name, value in arguments.items() if value is not None} if second else {}
    with progress_bar(quiet) as on_progress:
        result = verify_checkpoint(first, second, progress=on_progress, fraction=fraction, **given)
    if as_json:
        values = {"files": result.files, "tensors": result.tensors, "bytes": result.bytes_read, "total": result.total}
        click.echo(json.dumps(values))
    else:
        what = "as its manifest says" if second is None else "byte for byte what the source gives"
        read = f"{result.bytes_read} bytes"
        if result.bytes_read < result.total:
            read = f"as far as a sample of {fraction} tells: {result.bytes_read} of {result.total} bytes"
        click.echo(
            f"{quote(second or first)} is {what}: "
            f"{counted(result.tensors, 'tensor')} in {counted(result.files, 'file')}, {read}"
        )


for _option in reversed((*_RESOURCES, _FAMILY)):
    verify = _option(verify)


@cli.command(short_help="What differs between two checkpoints.")
@click.argument("a")
@click.argument("b")
@_MAX_MEM
@_IO
@_output
def diff(a: str, b: str, quiet: bool, as_json: bool, **arguments: Any) -> None:
    """What differs between A and B, checkpoints of any format: names, shapes, dtypes, values. Ends with 7 if anything.

    Names are compared as they are: convert first, where one side has HuggingFace's and the other MindSpore's.
    """
    from ..checks.diff import diff_checkpoints

    with progress_bar(quiet) as on_progress:
        found = diff_checkpoints(a, b, progress=on_progress, **arguments)
    lines = found.json_lines() if as_json else iter([found.summary]) if found.same else found.details()
    print_lines(lines)
    if not found.same:
        raise VerificationError(found.summary)


@cli.command(short_help="The main job, both ways, on a sample made here.")
@click.option("--keep", metavar="DIR", help="Write into DIR, and leave it; a temporary directory otherwise.")
@click.option("--max-mem", default="96M", show_default=True, metavar="SIZE", help="The budget of each step.")
def demo(keep: str | None, max_mem: str) -> None:
    """Make a small Mixtral, convert it, verify it, convert it back, and show that the bytes are the same."""
    from .demo import run

    run(keep, max_mem, click.echo)
