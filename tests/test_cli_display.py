"""How events are drawn: plain lines and the live line, with a clock of our own."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from cli_material import a_record, evaluation
from peftlab.cli import display, units
from peftlab.events import Evaluated, Event, Finished, Progress, Saved, Stage, Started, Step


class Clock:
    """A clock that the events move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def step(number: int, *, loss: float = 1.5, seconds: float = 0.5) -> Step:
    return Step(
        step=number,
        loss=loss,
        method_loss=None,
        learning_rate=2e-4,
        grad_norm=1.0,
        tokens=600,
        label_tokens=300,
        seconds=seconds,
        memory_bytes=3 * 2**30,
        epoch=0.1,
    )


def a_run(clock: Clock, *, max_steps: int, seconds: float) -> Iterator[Event]:
    yield Stage(text="scoring the starting model on the test rows of additions")
    for done in range(0, 150, 10):
        clock.now += 2
        yield Progress(done=done, total=150)
    yield Evaluated(evaluation=evaluation("base", "base", 0.1), reused=True)
    yield Started(stem="lora--first", folder="f", step=0, max_steps=max_steps, notes=("a checkpoint is damaged",))
    for number in range(1, max_steps + 1):
        clock.now += seconds
        yield step(number, seconds=seconds)
    yield Saved(step=max_steps, folder="f/step-000100", seconds=0.2)
    yield Evaluated(evaluation=evaluation(max_steps, "last", 0.5))
    yield Finished(record=a_record(), path="results/x.json", reused=False)


def drawn(*, max_steps: int, seconds: float, verbose: bool = False, live: bool = False) -> str:
    clock, out = Clock(), io.StringIO()
    results = display.draw(
        a_run(clock, max_steps=max_steps, seconds=seconds), out=out, live=live, verbose=verbose, clock=clock
    )
    assert [type(one) for one in results] == [Evaluated, Evaluated, Finished]
    return out.getvalue()


def test_plain_lines_of_a_short_run() -> None:
    lines = drawn(max_steps=100, seconds=0.5).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert steps[0] == "step 1/100  loss 1.5000  lr 2.00e-04  1200 tokens/s  ETA 50 s  3.00 GiB"
    assert [line.split()[1] for line in steps] == ["1/100", *(f"{number}0/100" for number in range(1, 11))]
    assert lines[0].startswith("scoring the starting model")
    assert "additions test, starting model: exact_match 0.100 +- 0.050 (100 items) (stored before)" in lines
    assert "note: a checkpoint is damaged" in lines
    assert "additions test, step 100 (last): exact_match 0.500 +- 0.050 (100 items)" in lines
    assert lines[-1] == "finished: results/x.json"
    assert not any("step-000100" in line for line in lines)


def test_plain_lines_are_never_more_than_one_in_ten_seconds_of_a_slow_run() -> None:
    lines = drawn(max_steps=50, seconds=30).splitlines()
    assert len([line for line in lines if line.startswith("step ")]) == 50
    progress = [line for line in lines if " of 150" in line]
    assert len(progress) <= 3


def test_lines_of_a_long_run_grow_rarer() -> None:
    lines = drawn(max_steps=100_000, seconds=1).splitlines()
    assert len([line for line in lines if line.startswith("step ")]) < 350


def test_verbose_names_checkpoints() -> None:
    assert "saved step 10 in 200 ms: f/step-000100" in drawn(max_steps=10, seconds=1, verbose=True)


def test_the_live_line_is_redrawn_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    seconds, max_steps = 0.01, 1000
    text = drawn(max_steps=max_steps, seconds=seconds, live=True)
    redrawn = text.count("step ") - text.count("step 1000 (last)")
    assert 20 <= redrawn <= 4 * max_steps * seconds + 2
    assert "tokens/s" in text
    assert "finished: results/x.json" in text
    assert "\x1b[2K" in text


def test_a_generator_is_closed_when_drawing_fails() -> None:
    ended = []

    def events() -> Iterator[Event]:
        try:
            yield Stage(text="one")
            yield Stage(text="two")
        finally:
            ended.append("closed")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        display.draw(events(), out=Full(), live=False)
    assert ended == ["closed"]


def test_eta_follows_the_pace_of_the_last_steps() -> None:
    pace = display.Pace()
    pace.add(step(1, seconds=60.0))
    for number in range(2, 80):
        pace.add(step(number, seconds=1.0))
    assert pace.seconds == pytest.approx(1.0, rel=0.05)
    assert "ETA 10" in display.step_text(step(90), 100, pace)
    assert "ETA" not in display.step_text(step(100), 100, pace)


def test_own_objective_and_bad_losses_are_shown() -> None:
    pace = display.Pace()
    text = display.step_text(step(1, loss=float("nan")), 10, pace)
    assert "loss nan" in text
    assert "tokens/s" not in text


def test_drawing_a_step_takes_microseconds() -> None:
    import time

    out, clock = io.StringIO(), Clock()
    started = time.perf_counter()
    display.draw(a_run(clock, max_steps=20_000, seconds=0.01), out=out, live=False, clock=clock)
    assert (time.perf_counter() - started) / 20_000 < 100e-6


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.5, "500 ms"), (75, "1 min 15 s"), (7260, "2 h 01 min"), (90_000, "1 d 01 h")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert units.duration(seconds) == text


def test_scores_have_the_digits_that_mean_something() -> None:
    assert units.score(0.4784, 0.0137) == "0.478 +- 0.014"
    assert units.score(0.5, 0.0) == "0.500 +- 0.000"
    assert units.score(float("nan"), None) == "nan"
    assert units.bounds(0.45, None) == "-"
    assert units.size(1010 * 2**20) == "1010 MiB"
    assert units.count(999_600) == "1000 k"
