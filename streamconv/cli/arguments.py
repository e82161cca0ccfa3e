"""The words of the commands: arguments and options that several of them have, and how values are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ..errors import UsageError
from ..text import did_you_mean, quote
from ..units import DEFAULT_SHARD_SIZE

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]


class Commands(click.Group):
    """A group that suggests a command when one is misspelt."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the one that looks most like it."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = did_you_mean(name, self.commands)
            raise UsageError(f"unknown command: {quote(name)}", near or "see streamconv --help")
        return super().resolve_command(ctx, args)


class WithFamilyFlags(click.Command):
    """A command that takes a family's options as flags, as MindFormers does: `--qkv_concat true`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the flags, then parse."""
        return super().parse_args(ctx, self._rewritten(args))

    def _rewritten(self, args: Sequence[str]) -> list[str]:
        own = {"--help", *(name for parameter in self.params for name in parameter.opts)}
        if all(word.partition("=")[0] in own for word in args if word.startswith("--")):
            return list(args)  # no family's table need be loaded
        from ..families import families

        flags = {f"--{name}" for f in families() for name in (*(o.name for o in f.options), *f.manual_sizes)}
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
        return rewritten


def together(*options: Decorator[Any]) -> Decorator[Any]:
    """Return one decorator that adds all of these, in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


FAMILY = click.option("--family", metavar="FILE", help="Python file that defines a model family of your own.")

MAX_MEM = click.option(
    "--max-mem",
    metavar="SIZE",
    help="Resident memory allowed, such as 16G or 512M.  [default: a quarter of what is available, at most 2G]",
)

IO = click.option(
    "--io",
    metavar="auto|read|direct|far",
    help="Read and write through the page cache; past it (direct); or past it with many requests at once (far).  "
    "[default: auto, by file system]",
)

STRATEGY = click.option(
    "--strategy",
    multiple=True,
    metavar="PATH",
    help="Strategy file of MindSpore, or a directory of them: how ranks hold tensors; repeatable.  "
    "[default: found next to the ranks' folders]",
)

STEP = click.option(
    "--step",
    metavar="STEP",
    help="Which step of a training: EPOCH_STEP, or an iteration's number.  [default: the newest complete one]",
)

WORKERS = click.option(
    "--workers", type=int, metavar="N", help="Threads.  [default: two for each core, as memory allows, at most 16]"
)

RESOURCES = together(
    MAX_MEM,
    WORKERS,
    click.option(
        "--config",
        metavar="FILE",
        help="The model's config.json if it is not next to SOURCE, or a MindFormers YAML; for families that ask for "
        "it, the directory of a checkpoint of the other side.",
    ),
    IO,
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print one machine-readable report on stdout.")

ON_CLUSTER = together(
    click.option(
        "--on",
        metavar="ray|ray://HOST:PORT",
        help="Spread the work over the nodes of a Ray cluster: that of RAY_ADDRESS, one on this machine, or that of a "
        "Ray client's server.  [default: this process alone]",
    ),
    click.option(
        "--workers-per-node", type=int, metavar="N", help="Processes on each node; only with --on.  [default: 1]"
    ),
)

QUIET = click.option("--quiet", is_flag=True, help="Suppress the progress.")

CONVERSION = together(
    click.argument("source", required=False, metavar="SOURCE"),
    click.argument("dest", required=False, metavar="DEST"),
    click.option("--input_path", hidden=True),
    click.option("--output_path", hidden=True),
    click.option("--model", metavar="NAME", help="Model family.  [default: recognised from config.json]"),
    FAMILY,
    click.option("--reverse", "--reversed", is_flag=True, help="Convert from MindSpore to HuggingFace."),
    click.option("--dtype", metavar="fp32|fp16|bf16", help="Cast every float tensor.  [default: unchanged]"),
    click.option("options", "-o", multiple=True, metavar="NAME=VALUE", help="Option of the model family; repeatable."),
    click.option(
        "--format",
        metavar="safetensors|ckpt|hf|torch",
        help="Output format.  [default: inferred from DEST and the direction]",
    ),
    click.option(
        "--max-shard-size",
        metavar="SIZE",
        help=f"Size of an output shard at most; 5GB is 5*10^9 bytes.  [default: {DEFAULT_SHARD_SIZE}]",
    ),
    click.option("--crc", is_flag=True, help="Append MindSpore's CRC to a .ckpt; MindSpore 2.3 and later read it."),
    click.option(
        "--strategy",
        multiple=True,
        metavar="PATH",
        help="Strategy file of a training, or their directory: how MindSpore's side is cut for ranks; repeatable.  "
        "[default: in reverse, those next to the ranks' folders]",
    ),
    STEP,
    click.option(
        "--dest-strategy",
        multiple=True,
        metavar="PATH",
        help="With --model raw, where --strategy is SOURCE's: the strategy of DEST; repeatable.",
    ),
    click.option("--no-links", is_flag=True, help="Write a file of its own for each rank, where ranks hold the same."),
    click.option("--overwrite", is_flag=True, help="Replace the checkpoint at DEST once the new one is complete."),
    click.option("--restart", is_flag=True, help="Start over instead of resuming an interrupted run."),
    click.option("--verify", is_flag=True, help="Compare the result with SOURCE before it gets its name."),
    RESOURCES,
)


PART = click.option(
    "--part",
    metavar="I/N",
    help="Convert only part I of N, as one of N processes that share the work; auto or auto/N takes I (and N) from "
    "Slurm's, Kubernetes', msrun's or MPI's variables. The last process to end puts the result together.",
)


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that were given; the API has the defaults of the others."""
    return {name: value for name, value in arguments.items() if value is not None and value != ()}


def one_of(positional: str | None, flag: str | None, name: str, flag_name: str, hint: str) -> str:
    """Return the value given as an argument or, in MindFormers' spelling, as a flag.

    Raises:
        UsageError: it is given twice, or not at all.
    """
    if positional and flag:
        raise UsageError(f"{name} is given twice: as an argument and as {flag_name}")
    value = positional or flag
    if not value:
        raise UsageError(f"{name} is missing", hint)
    return value


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Return the options given as `-o NAME=VALUE`.

    Raises:
        UsageError: one is not written so, or two contradict each other.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"cannot parse -o {quote(text)}", "write -o NAME=VALUE")
        if found.setdefault(name.strip(), value.strip()) != value.strip():
            raise UsageError(f"-o {quote(name.strip())} is given twice, with different values", "give one of them")
    return found
