"""One program in two boxes: feeds them, waits, ends them, keeps what was seen; not what that means.

Everything that comes out of the program's box is counted or thrown away. Evidence is what the tests' box reports with
the run's secret, and what the kernel says of CPU time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peftlab.sandbox.limits import Limits
from peftlab.sandbox.nursing import Ending, Nursery, NurseryError
from peftlab.sandbox.programs import Program

_GRACE_SECONDS = 5.0
"""For a box to end by itself once the verdict is there, so that its CPU time is known."""
_REPORT_BYTES = 8192
_START_SECONDS = 30.0
"""For a killed box to be gone. The kernel needs milliseconds; a machine under load more."""


@dataclass(kw_only=True)
class Seen:
    """What was seen of one program.

    Attributes:
        report: What the tests' box reported with the secret; None: nothing that can be believed.
        printed: Bytes that the program printed.
        said: The last of what the two boxes printed, for a box that could not be made.
        program: How the program's box ended; None: it was killed and nothing is known.
        tests: The same of the tests' box.
        started: Whether the program's box was made.
        waited: Whether the wall time ran out.
        killed: Whether the program's box was ended from here.
    """

    report: dict[str, str] | None = None
    printed: int = 0
    said: str = ""
    program: Ending | None = None
    tests: Ending | None = None
    started: bool = False
    waited: bool = False
    killed: bool = False


def supervise(nursery: Nursery, program: Program, limits: Limits) -> Seen:
    """Run one program against its tests.

    Raises:
        NurseryError: The nursery is no more; its boxes are neither.
    """
    run = _Run(nursery, program, limits)
    try:
        return run.watch()
    finally:
        run.close()


@dataclass
class _Run:
    nursery: Nursery
    program: Program
    limits: Limits
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self.secret = secrets.token_hex(32)
        self.selector = selectors.DefaultSelector()
        self.texts: dict[str, bytes] = {"ready": b"", "report": b"", "said": b""}
        job = {"tests": self.program.tests, "entry": self.program.entry, "secret": self.secret}
        code = self.program.code.encode("utf-8", "surrogatepass")
        requests_in, requests_out = os.pipe()
        replies_in, replies_out = os.pipe()
        theirs = [requests_in, requests_out, replies_in, replies_out]
        tests = json.dumps(job).encode()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with contextlib.ExitStack() as given:
                for one in theirs:
                    given.callback(os.close, one)
                self.candidate = self._box("candidate", code, [requests_in, replies_out], self._printed, "ready")
                self.checker = self._box("checker", tests, [replies_in, requests_out], self._said, "report")
            self.endings: dict[int, Ending] = {}
            self.selector.register(self.nursery.socket, selectors.EVENT_READ, self._ended)
            undo.pop_all()

    def _box(self, role: str, job: bytes, channel: list[int], printed: Callable[[bytes], None], report: str) -> int:
        output_in, output_out = os.pipe()
        job_in, job_out = os.pipe()
        report_in, report_out = os.pipe()
        theirs = [output_out, job_in, *channel, report_out]
        self._read(output_in, printed)
        self._read(report_in, lambda data: self._reported(report, data))
        self._write(job_out, job)
        try:
            return self.nursery.start(role, self.limits, theirs)
        finally:
            for one in (output_out, job_in, report_out):
                os.close(one)

    # ------------------------------------------------------------------------------------------ what is read and fed

    def _read(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        def readable() -> None:
            data = os.read(descriptor, 1 << 16)
            if data:
                take(data)
            else:
                self._drop(descriptor)

        self.selector.register(descriptor, selectors.EVENT_READ, readable)

    def _write(self, descriptor: int, data: bytes) -> None:
        os.set_blocking(descriptor, False)
        left = [memoryview(data)]

        def writable() -> None:
            try:
                left[0] = left[0][os.write(descriptor, left[0]) :] if left[0] else left[0]
            except BrokenPipeError:  # it did not want it
                left[0] = memoryview(b"")
            if not left[0]:
                self._drop(descriptor)

        self.selector.register(descriptor, selectors.EVENT_WRITE, writable)

    def _drop(self, descriptor: int) -> None:
        self.selector.unregister(descriptor)
        os.close(descriptor)

    def _printed(self, data: bytes) -> None:
        self.seen.printed += len(data)
        self._said(data)

    def _said(self, data: bytes) -> None:
        self.texts["said"] = (self.texts["said"] + data)[-500:]

    def _reported(self, which: str, data: bytes) -> None:
        self.texts[which] = (self.texts[which] + data)[:_REPORT_BYTES]

    def _ended(self) -> None:
        told = self.nursery.hear(time.monotonic() + 1)
        self.endings[told["box"]] = Ending(code=told["code"], cpu_seconds=None)

    # ----------------------------------------------------------------------------------------------------- the wait

    def watch(self) -> Seen:
        """Wait until the tests' box has ended, or a limit."""
        deadline = time.monotonic() + self.limits.wall_seconds
        while self.checker not in self.endings and self.seen.printed <= self.limits.output_bytes:
            if not self._turn(deadline):
                self.seen.waited = True
                break
        self.nursery.end(self.checker)
        if not self.seen.waited and self.seen.printed <= self.limits.output_bytes:
            self._until(self.candidate, time.monotonic() + _GRACE_SECONDS)
        if self.candidate not in self.endings:
            self.seen.killed = True
            self.nursery.end(self.candidate)
        for box in (self.candidate, self.checker):
            if not self._until(box, time.monotonic() + _START_SECONDS):
                raise NurseryError("a box does not end")
        return self._told()

    def _until(self, box: int, deadline: float) -> bool:
        while box not in self.endings:
            if not self._turn(deadline):
                return False
        return True

    def _turn(self, deadline: float) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        for key, _ in self.selector.select(left):
            if key.fd in self.selector.get_map():  # an earlier one of this turn may have closed it
                key.data()
        return True

    def _told(self) -> Seen:
        # what was written before the boxes ended is still in the pipes
        while self.seen.printed <= self.limits.output_bytes:
            ready = [key for key, _ in self.selector.select(0) if key.events == selectors.EVENT_READ]
            if not ready:
                break
            for key in ready:
                key.data()
        seen = self.seen
        seen.program = self._with_time(self.candidate, "ready")
        seen.tests = self._with_time(self.checker, "report")
        seen.started = self.texts["ready"].startswith(b"ready")
        seen.said = self.texts["said"].decode(errors="replace")
        seen.report = self._believed(self.texts["report"])
        return seen

    def _with_time(self, box: int, report: str) -> Ending:
        """How a box ended, with the CPU time that its first process measured; one that was killed measures nothing."""
        last = self.texts[report].split(b"\ncpu ")[-1]
        try:
            cpu = float(last)
        except ValueError:
            cpu = None
        return Ending(code=self.endings[box].code, cpu_seconds=cpu)

    def _believed(self, report: bytes) -> dict[str, str] | None:
        try:
            told: Any = json.loads(report.split(b"\n")[0])
        except ValueError:
            return None
        if not isinstance(told, dict) or not secrets.compare_digest(str(told.get("secret")), self.secret):
            return None
        return {"kind": str(told.get("kind")), "detail": str(told.get("detail"))}

    def close(self) -> None:
        """Close what is open here."""
        for key in list(self.selector.get_map().values()):
            self.selector.unregister(key.fileobj)
            if key.fileobj is not self.nursery.socket:
                os.close(key.fd)
        self.selector.close()
