"""The command line: verbs to calls, events to lines. Decides nothing about runs or results.

`main` is the entry point and the one place where errors become exit codes: 0 done, 2 something the user can fix (a full
disk or memory included), 130 interrupted. Anything else is a mistake of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from peftlab.errors import UserError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The words after `peftlab`; None takes those of this process.

    Example:
        >>> from peftlab.cli import main
        >>> main(["--version"])  # doctest: +ELLIPSIS
        peftlab ...
        0
    """
    _wait_politely()
    from peftlab.cli.verbs import app
    from peftlab.errors import UserError

    try:
        code = _exit_code(app, arguments)
        sys.stdout.flush()
    except UserError as error:
        print(problem_text(error), file=sys.stderr)
        return 2
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except (MemoryError, RuntimeError, OSError) as error:
        machine = _machine_is_full(error)
        if machine is None:
            raise
        print(problem_text(machine), file=sys.stderr)
        return 2
    if code == INTERRUPTED:
        print("interrupted: nothing that was saved is lost; the same command goes on from there", file=sys.stderr)
    return code


def _machine_is_full(error: BaseException) -> UserError | None:
    """Out of memory or disk is the user's to mend; the run is recorded so, and the same command goes on from there."""
    from peftlab.errors import UserError
    from peftlab.records import room
    from peftlab.records.slot import ran_out_of_memory

    advice = room.advice_on(error)
    also = "".join(f"; {note}" for note in getattr(error, "__notes__", ()) if note != advice)
    if ran_out_of_memory(error):
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        return UserError(f"out of memory: {reason}{also}", fix=advice or room.GENERAL)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk is full: {error}{also}", fix="free some space; the same command goes on from there")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"no permission: {error}{also}", fix="mend the permissions, or choose another folder")
    return None


def problem_text(error: UserError) -> str:
    """The error as people read it: `error:` lines, then the fix."""
    lines = [f"error: {line}" for line in error.message.splitlines()]
    return "\n".join([*lines, f"  fix: {error.fix}"] if error.fix else lines)


def _exit_code(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    """typer ends every command with SystemExit; 130 stands for Ctrl-C."""
    try:
        app(args=arguments, prog_name="peftlab")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _wait_politely() -> None:
    """Short busy-waiting of OpenMP threads: as fast alone, and much faster where two jobs share a machine.

    Must stand in the environment before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _forget_stdout() -> None:
    """The reader went away (`| head`): keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
