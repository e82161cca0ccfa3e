"""Run the command line, and turn whatever happened into a message and an exit code."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import InterruptedRunError, StreamconvError, UsageError, memory_refused, storage_error
from ..text import in_shell, quote
from . import collector, signals
from .terminal import flush_quietly, open_missing, say

if TYPE_CHECKING:
    import click

# Nothing here multiplies matrices, and each thread of the library for that, which NumPy starts, costs memory and a
# process of what the user or the container may have.
_THREADS_OF_BLAS = "OPENBLAS_NUM_THREADS"
_SPARE = 4 << 20
_CANNOT_LOAD = ("cannot allocate memory", "failed to map segment")


def main() -> None:
    """Run the command line; ends the process with the exit code of what happened."""
    signals.install()
    open_missing()
    os.environ.setdefault(_THREADS_OF_BLAS, "1")
    collector.let_be()
    try:
        code = run()
        signals.ignore()
    except InterruptedRunError as error:
        code = error.exit_code
    for stream in (sys.stdout, sys.stderr):
        flush_quietly(stream)
    sys.exit(code)


def run() -> int:
    """Run the command in `sys.argv`; return its exit code."""
    spare = _spare()
    try:
        # Only now: what this imports takes most of the start, and a signal or a lack of memory may meet it there.
        from .commands import cli

        code = cli.main(standalone_mode=False)
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has gone (click makes that SystemExit): nothing is left to say, and no one to say it
        # to. The work itself was done before, see `terminal.say`.
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if spare is not None:
            spare.close()
        code, message, hint = _explained(error)
        if code == StreamconvError.exit_code and os.environ.get("STREAMCONV_TRACEBACK"):
            raise
        say("\n".join([f"error: {in_shell(message)}", *([f"hint: {in_shell(hint)}"] if hint else [])]))
        return code
    # What a command exits with by itself, such as `diff`, click returns.
    return code if isinstance(code, int) else 0


def _spare() -> mmap.mmap | None:
    """Return memory that is never touched: given back, it is there for the message that says that there is none."""
    with suppress(OSError):
        return mmap.mmap(-1, _SPARE)
    return None


def _help(error: click.ClickException) -> str:
    import click

    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"see {context.command_path if context else 'streamconv'} --help"


def _explained(error: BaseException) -> tuple[int, str, str]:
    """Return the exit code, the message and the hint for an error."""
    import click

    match error:
        case StreamconvError():
            return error.exit_code, *error.marked
        case click.exceptions.Abort() | KeyboardInterrupt():
            return 128 + signal.SIGINT, signals.STOPPED[signal.SIGINT], ""
        case click.ClickException():
            return UsageError.exit_code, quote(error.format_message().rstrip(".")), _help(error)
        case _ if _is_out_of_memory(error):
            return _explained(memory_refused())
        case OSError(filename=None):
            # Whatever has a name is reported where it is opened; without one it is our own output.
            return _explained(storage_error(error, "cannot write", "the report"))
    fault = f"internal error: {type(error).__name__}: {quote(error)}"
    return 1, fault, "this is a bug in streamconv; please report it (STREAMCONV_TRACEBACK=1 shows where)"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, ImportError):
        # NumPy has words of its own for this, and the loader's behind them.
        causes = f"{error} {error.__cause__} {error.__context__}".lower()
        return any(words in causes for words in _CANNOT_LOAD)
    if isinstance(error, OSError):
        return error.filename is None and error.errno == errno.ENOMEM
    return isinstance(error, MemoryError)
