"""What a user sees when something goes wrong: one line on stderr, and an exit code that is not zero."""

from __future__ import annotations

import errno
import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from mixwell.core.errors import MixwellError
from mixwell.core.interrupts import Terminate

FAILED = 2
STOPPED = 130  # what shells give a program that Ctrl-C ended
TERMINATED = 143  # and one that SIGTERM ended


def one_line(command: Callable[..., Any] | None = None, *,
             stopped: str = "stopped; run the same command to go on") -> Callable[..., Any]:
    """Run a command; what the user can mend becomes one line, what is our fault keeps its trace.

    stopped: what Ctrl-C and SIGTERM are answered with. Also a decorator with that argument alone.
    """
    if command is None:
        return functools.partial(one_line, stopped=stopped)

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        terminate = Terminate()
        usual = signal.signal(signal.SIGTERM, terminate)
        try:
            return command(*args, **kwargs)
        except MixwellError as error:
            tell(f"error: {' '.join(str(error).split())}", FAILED)
        except KeyboardInterrupt:
            tell(stopped, TERMINATED if terminate.came else STOPPED)
        except typer.Exit as end:
            if terminate.came and end.exit_code == STOPPED:
                raise typer.Exit(TERMINATED) from end
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            tell("error: no space left on the disk; free some space, then run the same command again", FAILED)
        finally:
            signal.signal(signal.SIGTERM, usual)

    return wrapped


def tell(text: str, code: int) -> None:
    """Write the line to stderr and end with `code`."""
    print(text, file=sys.stderr)
    raise typer.Exit(code)
