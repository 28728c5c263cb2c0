"""Draws the events of a run on stderr: one live line on a terminal, plain lines at sensible intervals elsewhere.

Reads events and a clock; knows nothing of how a run works and changes nothing.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from peftlab.cli import units
from peftlab.events import Evaluated, Event, Finished, Progress, Saved, Stage, Started, Step

if TYPE_CHECKING:
    from rich.live import Live

    from peftlab.records.record import Evaluation

Clock = Callable[[], float]

REFRESH_SECONDS = 0.25
LINE_SECONDS = 10.0
LINE_SHARE = 0.1
LONG_RUN_SHARE = 0.02
"""A plain line at the first step, at every tenth of them, and after 10 s (later: 2 % of the time so far)."""

_AVERAGE_KEEPS = 0.9


class Surface(Protocol):
    """Where lines go: lines that stay, and one that passes."""

    def line(self, text: str) -> None:
        """Show a line that stays."""

    def stage(self, now: float) -> None:
        """Another part of the run begins."""

    def due(self, now: float, share: float, *, first: bool) -> bool:
        """Whether it is time to say where things stand; `share` of the present part is done."""

    def passing(self, text: str) -> None:
        """Say where things stand."""


def draw(
    events: Iterable[Event],
    *,
    out: TextIO | None = None,
    live: bool | None = None,
    verbose: bool = False,
    clock: Clock = time.monotonic,
) -> list[Evaluated | Finished]:
    """Drain a run's events and draw them; returns those that carry results.

    A generator is closed on the way out, so that a run that is interrupted while its line is drawn is recorded too.

    Args:
        events: What `runs.events` or `evaluating.evaluate` yields.
        out: Where to draw; stderr when not given.
        live: Whether to redraw one line; by default on a terminal only.
        verbose: Also say which checkpoints were written.
        clock: Seconds, for intervals between lines.
    """
    out = out or sys.stderr
    live = (out.isatty() and os.environ.get("TERM") != "dumb") if live is None else live
    results: list[Evaluated | Finished] = []
    with ExitStack() as stack:
        surface = stack.enter_context(_live_surface(out) if live else _plain_surface(out))
        if isinstance(events, Generator):
            stack.callback(events.close)
        teller = Teller(surface, verbose=verbose, clock=clock)
        for event in events:
            teller.tell(event)
            if isinstance(event, Evaluated | Finished):
                results.append(event)
    return results


class Teller:
    """Turns events into text and asks the surface when a passing line is due. Keeps moving averages of the pace."""

    def __init__(self, surface: Surface, *, verbose: bool, clock: Clock) -> None:
        self._surface = surface
        self._verbose = verbose
        self._clock = clock
        self._stage = "training"
        self._max_steps = 0
        self._pace = Pace()

    def tell(self, event: Event) -> None:
        """Draw one event."""
        if isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Stage):
            self._stage = event.text
            self._surface.stage(self._clock())
            self._surface.line(event.text)
        elif isinstance(event, Evaluated):
            self._surface.line(evaluation_text(event.evaluation) + (" (stored before)" if event.reused else ""))
        elif isinstance(event, Saved):
            if self._verbose:
                self._surface.line(f"saved step {event.step} in {units.duration(event.seconds)}: {event.folder}")
        else:
            done = "finished before, nothing computed" if event.reused else event.record.status.replace("_", " ")
            self._surface.line(f"{done}: {event.path}")

    def _started(self, event: Started) -> None:
        self._max_steps = event.max_steps
        self._surface.stage(self._clock())
        self._surface.line(f"run {event.stem}")
        for note in event.notes:
            self._surface.line(f"note: {note}")
        if event.step:
            self._surface.line(f"going on from step {event.step} of {event.max_steps}")
        if self._verbose:
            self._surface.line(f"writing to {event.folder}")

    def _step(self, step: Step) -> None:
        first = self._pace.num_steps == 0
        self._pace.add(step)
        done = step.step / self._max_steps if self._max_steps else 0.0
        if self._surface.due(self._clock(), done, first=first):
            self._surface.passing(step_text(step, self._max_steps, self._pace))

    def _progress(self, event: Progress) -> None:
        if self._surface.due(self._clock(), 0.0, first=False):
            self._surface.passing(f"{self._stage}: {event.done} of {event.total}")


@dataclass
class Pace:
    """Moving averages over the last some ten steps: how long one takes, and how many tokens it has."""

    num_steps: int = 0
    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, step: Step) -> None:
        """Count one step in."""
        self.num_steps += 1
        weight = max(1 - _AVERAGE_KEEPS, 1 / self.num_steps)
        self.seconds += weight * (step.seconds - self.seconds)
        self.tokens += weight * (step.tokens - self.tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """None when no time has passed."""
        return self.tokens / self.seconds if self.seconds > 0 else None


def step_text(step: Step, max_steps: int, pace: Pace) -> str:
    """Where training stands, in one line."""
    parts = [f"step {step.step}/{max_steps}", f"loss {step.loss:.4f}"]
    if step.method_loss is not None:
        parts.append(f"method's own loss {units.number(step.method_loss)}")
    parts.append(f"lr {step.learning_rate:.2e}")
    if pace.tokens_per_second is not None:
        parts.append(f"{units.count(pace.tokens_per_second)} tokens/s")
    left = max_steps - step.step
    if left > 0:
        parts.append(f"ETA {units.duration(left * pace.seconds)}")
    if step.memory_bytes is not None:
        parts.append(units.size(step.memory_bytes))
    return "  ".join(parts)


def evaluation_text(evaluation: Evaluation) -> str:
    """One evaluation in one line: what was scored, with which weights, and every metric."""
    rows = f"text {evaluation.task}" if evaluation.what == "text" else f"{evaluation.task} {evaluation.part}"
    rows += ", a sample" if evaluation.what == "sample" else ""
    weights = "starting model" if evaluation.checkpoint == "base" else f"step {evaluation.checkpoint}"
    if evaluation.role in ("last", "best"):
        weights += f" ({evaluation.role})"
    scores = ", ".join(
        f"{name} {units.score(metric.mean, metric.standard_error)}" for name, metric in evaluation.metrics.items()
    )
    time_taken = f", {units.duration(evaluation.seconds)}" if evaluation.seconds is not None else ""
    partial = ", part of the data only" if evaluation.partial else ""
    return f"{rows}, {weights}: {scores} ({evaluation.num_items} items{time_taken}{partial})"


# ---------------------------------------------------------------------------------------------------------- surfaces


class PlainLines:
    """For log files and pipes: every line stays, so passing ones are few."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began: float | None = None
        self._last = 0.0
        self._tenth = 0

    def line(self, text: str) -> None:
        """Print it."""
        print(text, file=self._out, flush=True)

    def stage(self, now: float) -> None:
        """Intervals start anew."""
        self._began = now if self._began is None else self._began
        self._last, self._tenth = now, 0

    def due(self, now: float, share: float, *, first: bool) -> bool:
        """At the first, the last, every tenth, and after a while."""
        elapsed = now - (self._began if self._began is not None else now)
        late = now - self._last >= max(LINE_SECONDS, LONG_RUN_SHARE * elapsed)
        tenth = math.floor(share / LINE_SHARE + 1e-9)
        if not (first or late or tenth > self._tenth):
            return False
        self._last, self._tenth = now, tenth
        return True

    def passing(self, text: str) -> None:
        """Print it."""
        self.line(text)


class LiveLine:
    """For terminals: one line at the bottom is redrawn, at most four times a second."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: float | None = None

    def line(self, text: str) -> None:
        """Print it above the live line."""
        from rich.text import Text

        self._live.console.print(Text(text), soft_wrap=True)

    def stage(self, now: float) -> None:
        """The next passing line is due at once."""
        self._last = None
        self.passing("")

    def due(self, now: float, share: float, *, first: bool) -> bool:
        """When the last drawing is a quarter of a second old."""
        if self._last is not None and now - self._last < REFRESH_SECONDS:
            return False
        self._last = now
        return True

    def passing(self, text: str) -> None:
        """Redraw the line."""
        from rich.text import Text

        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


@contextmanager
def _plain_surface(out: TextIO) -> Iterator[Surface]:
    yield PlainLines(out)


@contextmanager
def _live_surface(out: TextIO) -> Iterator[Surface]:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=out, force_terminal=True, highlight=False)
    with Live("", console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield LiveLine(live)
