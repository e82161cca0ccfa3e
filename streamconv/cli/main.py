"""Run the command line, and turn whatever happened into a message and an exit code."""

from __future__ import annotations

import os
import signal
import sys

import click

from ..errors import BudgetError, StreamconvError, UsageError, storage_error
from ..text import in_shell, quote, setting
from . import signals
from .commands import cli
from .terminal import flush_quietly, say


def main() -> None:
    """Run the command line; ends the process with the exit code of what happened."""
    signals.install()
    code = run()
    for stream in (sys.stdout, sys.stderr):
        flush_quietly(stream)
    sys.exit(code)


def run() -> int:
    """Run the command in `sys.argv`; return its exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has gone (click makes that SystemExit): nothing is left to say, and no one to say it
        # to. The work itself was done before, see `terminal.say`.
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code, message, hint = _explained(error)
        if code == StreamconvError.exit_code and os.environ.get("STREAMCONV_TRACEBACK"):
            raise
        say("\n".join([f"error: {in_shell(message)}", *([f"hint: {in_shell(hint)}"] if hint else [])]))
        return code
    # What a command exits with by itself, such as `diff`, click returns.
    return code if isinstance(code, int) else 0


def _help(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"see {context.command_path if context else 'streamconv'} --help"


def _explained(error: BaseException) -> tuple[int, str, str]:
    """Return the exit code, the message and the hint for an error."""
    match error:
        case StreamconvError():
            return error.exit_code, *error.marked
        case click.exceptions.Abort() | KeyboardInterrupt():
            return 128 + signal.SIGINT, signals.STOPPED[signal.SIGINT], ""
        case click.ClickException():
            return UsageError.exit_code, quote(error.format_message().rstrip(".")), _help(error)
        case MemoryError():
            message = "out of memory, although the limit was not reached"
            return BudgetError.exit_code, message, f"lower {setting('max_mem')}"
        case OSError(filename=None):
            # Whatever has a name is reported where it is opened; without one it is our own output.
            return _explained(storage_error(error, "cannot write", "the report"))
    fault = f"internal error: {type(error).__name__}: {quote(error)}"
    return 1, fault, "this is a bug in streamconv; please report it (STREAMCONV_TRACEBACK=1 shows where)"
