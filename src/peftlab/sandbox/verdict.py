"""What was seen of a program, as an outcome; no process, no clock."""

from __future__ import annotations

import signal

from peftlab.sandbox.limits import Limits
from peftlab.sandbox.nursing import Ending
from peftlab.sandbox.programs import KINDS, Kind, Outcome
from peftlab.sandbox.supervising import Seen


def outcome(seen: Seen, limits: Limits) -> Outcome:
    """How the program did. It passed only if its tests' box said so with the secret and no limit was reached."""
    cpu = seen.program.cpu_seconds if seen.program else None
    kind, detail = _kind(seen, limits)
    return Outcome(kind=kind, detail=detail[:500], cpu_seconds=cpu)


def _kind(seen: Seen, limits: Limits) -> tuple[Kind, str]:
    if seen.printed > limits.output_bytes:
        return "output", f"it printed more than {limits.output_bytes} bytes"
    late = _late(seen, limits)
    if late:
        return "timeout", late
    report = seen.report
    if report is None:
        return "lost", f"its tests gave no verdict{_how(seen.tests)}"
    kind = next((one for one in KINDS if one == report["kind"]), None)
    if kind is None:
        return "lost", "its tests gave no verdict"
    if kind == "lost" and seen.program and not seen.killed:
        if seen.program.code == 128 + signal.SIGKILL:
            return "memory", "its process was killed, as the system does when memory runs out"
        return "lost", f"{report['detail']}{_how(seen.program)}"
    if kind == "passed" and (seen.program is None or seen.program.cpu_seconds is None):
        return "timeout", "it went on when its tests were through and had to be killed: what it used is not known"
    return kind, report["detail"]


def _late(seen: Seen, limits: Limits) -> str | None:
    for whose, ending in (("it", seen.program), ("its tests", seen.tests)):
        if ending is None:
            continue
        stopped = ending.code == 128 + signal.SIGXCPU
        if stopped or (ending.cpu_seconds or 0.0) > limits.cpu_seconds:
            return f"{whose} used more than {limits.cpu_seconds:g} s of CPU time"
    if seen.waited:
        return f"not done after {limits.wall_seconds:g} s on the clock: it waits, or the machine is very busy"
    return None


def _how(ending: Ending | None) -> str:
    if ending is None:
        return ""
    if ending.code > 128:
        try:
            return f" ({signal.Signals(ending.code - 128).name})"
        except ValueError:
            pass
    return f" (exit code {ending.code})"
