"""Programs in, outcomes out, as they finish; not how a process is isolated, nor what is seen of one."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from peftlab.errors import UserError
from peftlab.sandbox import trying, verdict, ways
from peftlab.sandbox.inside import box
from peftlab.sandbox.limits import Limits
from peftlab.sandbox.nursing import Nursery, NurseryError
from peftlab.sandbox.programs import Outcome, Program
from peftlab.sandbox.supervising import Seen, supervise

_ATTEMPTS = 3
"""How often a box or a nursery that could not be made is tried, before all ends: a program is no reason for that."""


def run(
    programs: Sequence[Program], limits: Limits, *, workers: int | None = None, allow_unsafe: bool = False
) -> Iterator[tuple[int, Outcome]]:
    """Run each program against its tests.

    Args:
        programs: What to run.
        limits: What each may use.
        workers: How many at a time; None: as many as there are cores.
        allow_unsafe: Run even where isolation cannot be had.

    Returns:
        Position in `programs` and the outcome, as they finish.

    Raises:
        UserError: Isolation cannot be had here and `allow_unsafe` is false. Raised by the call, before anything runs.
    """
    if not programs:
        return iter(())
    return run_in(trying.chosen(allow_unsafe=allow_unsafe), programs, limits, workers=workers)


def run_in(
    way: ways.Way,
    programs: Sequence[Program],
    limits: Limits,
    *,
    workers: int | None = None,
    without: Sequence[str] = (),
) -> Iterator[tuple[int, Outcome]]:
    """The same, isolated in this way, without some of its layers."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for position in range(len(programs)):
        waiting.put(position)
    done: queue.SimpleQueue[tuple[int, Outcome] | None] = queue.SimpleQueue()
    count = min(workers or len(os.sched_getaffinity(0)), len(programs))
    each = [_Nurseries(way, without) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        working = [pool.submit(_work, one, programs, limits, waiting, done) for one in each]
        try:
            while count:
                told = done.get()
                if told is None:
                    count -= 1
                    for future in working:
                        if future.done():
                            future.result()
                else:
                    yield told
            for future in working:
                future.result()
        finally:
            for one in each:
                one.stop()


def _work(
    nurseries: _Nurseries,
    programs: Sequence[Program],
    limits: Limits,
    waiting: queue.SimpleQueue[int],
    done: queue.SimpleQueue[tuple[int, Outcome] | None],
) -> None:
    """One worker: a nursery, and programs one after another."""
    with nurseries:
        try:
            while not nurseries.stopped:
                position = waiting.get_nowait()
                done.put((position, verdict.outcome(nurseries.seen(position, programs[position], limits), limits)))
        except (queue.Empty, NurseryError):
            pass  # all is done, or nobody waits for it any more
        finally:
            done.put(None)


class _Nurseries:
    """A nursery that is replaced when it fails."""

    def __init__(self, way: ways.Way, without: Sequence[str]) -> None:
        self.way, self.without = way, without
        self.nursery: Nursery | None = None
        self.stopped = False

    def stop(self) -> None:
        """End what is running, from another thread: whoever asked has left."""
        self.stopped = True
        if self.nursery:
            self.nursery.kill()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self.nursery:
            self.nursery.close()
            self.nursery = None

    def seen(self, position: int, program: Program, limits: Limits) -> Seen:
        """What is seen of a program, in a box that could be made.

        Raises:
            UserError: None could, several times.
        """
        why = ""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self.nursery = self.nursery or Nursery(self.way, self.without)
                if self.stopped:
                    raise NurseryError("nobody waits for it any more")
                seen = supervise(self.nursery, program, limits)
            except (NurseryError, OSError) as error:
                why = str(error)
            else:
                if _could_run(seen) and (attempt == _ATTEMPTS or not _silent(seen, limits)):
                    return seen
                why = seen.said or "no reason was given"
            self.__exit__()
            if self.stopped:
                raise NurseryError(why)
        raise UserError(f"program {position}: no box could be made for it: {why}", fix="peftlab doctor")


def _could_run(seen: Seen) -> bool:
    """Whether both boxes were made. What a program says of its own box comes too late to count."""
    if not seen.started:
        return seen.waited
    return seen.report is not None or seen.tests is None or seen.tests.code != box.BROKEN


def _silent(seen: Seen, limits: Limits) -> bool:
    """Whether the tests' box ended without a verdict and without having reached a limit.

    Perhaps the machine failed, and not the program: it is run again. A program that brings it about each time fails.
    """
    limited = seen.waited or seen.printed > limits.output_bytes
    return seen.report is None and not limited and seen.tests is not None and seen.tests.code != 128 + signal.SIGXCPU
