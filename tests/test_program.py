"""Answers that are programs: what is run of an answer, how it is graded, and what is asked of the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab.cli import running as running_cli
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.config.groups import ExecutionSettings
from peftlab.errors import UserError
from peftlab.events import Evaluated
from peftlab.graders import program
from peftlab.job import evaluating, regrading, runs
from peftlab.modelling import models
from peftlab.protocols import Example, Prediction
from peftlab.records.store import RunStore
from peftlab.sandbox import running
from peftlab.sandbox.limits import Limits
from peftlab.sandbox.programs import Outcome, Program
from peftlab.scores import grading, stored
from peftlab.verdicts import failing
from peftlab.verdicts.compare import compare

CASES = json.loads((Path(__file__).parent / "cases" / "program.json").read_text(encoding="utf-8"))
ROWS = CASES["rows"]
NAMES = [f"{row['mode']}: {row['what']}" for row in ROWS]


def example(row: dict[str, Any]) -> Example:
    return Example(item=row["what"], reference=CASES["references"][row["reference"]])


def test_the_table_is_large_and_a_third_of_it_nasty() -> None:
    assert len(ROWS) >= 60 and 3 * sum("nasty" in row for row in ROWS) >= len(ROWS)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_what_is_run_of_an_answer(row: dict[str, Any]) -> None:
    assert program.program_of(row["said"], example(row), row["mode"]) == row["program"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", program.MODES)
def test_every_row_of_the_table_ends_as_it_says(mode: str) -> None:
    rows = [row for row in ROWS if row["mode"] == mode]
    said = [Prediction(text=row["said"]) for row in rows]
    found = dict(program.grade_all(said, list(map(example, rows)), mode, ExecutionSettings(cpu_seconds=2)))
    got = {row["what"]: found[number].why for number, row in enumerate(rows)}
    assert got == {row["what"]: row["why"] for row in rows}
    assert all(one.score == float(one.why is None) for one in found.values())


# ------------------------------------------------------------------------------------------ with a sandbox that is told


class Sandbox:
    """Says what `ends` says of a program, the last one first, and remembers how it was asked."""

    def __init__(self, ends: Callable[[Program], str]) -> None:
        self.ends = ends
        self.programs: list[Program] = []
        self.limits: Limits | None = None
        self.unsafe: list[bool] = []

    def __call__(
        self, programs: Sequence[Program], limits: Limits, *, workers: int | None = None, allow_unsafe: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        self.programs += programs
        self.limits = limits
        self.unsafe.append(allow_unsafe)
        for number in reversed(range(len(programs))):
            kind: Any = self.ends(programs[number])
            yield number, Outcome(kind=kind, detail="", cpu_seconds=0.1)


def honest(tested: Program) -> str:
    """Right where a program returns what its tests ask for; the toy's answers are mistakes of syntax."""
    if "return" not in tested.code:
        return "syntax"
    return "passed" if tested.code.strip().split()[-1] == tested.tests.split()[-1] else "assertion"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    made = Sandbox(honest)
    monkeypatch.setattr(running, "run", made)
    return made


def code_task(tmp_path: Path) -> Path:
    """Rows that ask for a function with a certain result."""
    task = toy.write_task(
        tmp_path / "task",
        test=4,
        columns={"question": "question", "tests": "tests"},
        target="{question}",
        reference="tests",
        grader={"name": "program", "modes": ["bigcode"]},
        metrics={"pass@1": "higher", "pass@2": "higher"},
    )
    for split in ("train", "valid", "test"):
        file = task.parent / f"{split}.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [json.dumps({**one, "tests": f"assert one() == {one['answer']}"}) for one in found]
        file.write_text("\n".join(lines) + "\n")
    return task


def test_one_program_runs_once_under_the_limits_that_are_set(sandbox: Sandbox) -> None:
    rows = [Example(item=str(number), reference=[f"assert one() == {number % 2}"]) for number in range(4)]
    said = [Prediction(text="def one():\n    return 1") for _ in rows]
    limits = ExecutionSettings(cpu_seconds=3.0, memory_bytes=2**28, wall_seconds=9.0, allow_unsafe_code=True)
    found = dict(program.grade_all(said, rows, "bigcode", limits))
    assert [found[number].score for number in range(4)] == [0, 1, 0, 1]
    assert len(sandbox.programs) == 2 and sandbox.unsafe == [True]
    assert sandbox.limits is not None
    assert (sandbox.limits.cpu_seconds, sandbox.limits.memory_bytes, sandbox.limits.wall_seconds) == (3, 2**28, 9)


@pytest.mark.parametrize("reference", [None, "", " ", {"entry": "f"}, {"tests": 3}, [1], {"tests": "x", "entry": 2}])
def test_a_row_without_tests_is_said(reference: Any) -> None:
    row = Example(item="seven", reference=reference)
    with pytest.raises(UserError, match=r"item seven: the reference .* holds no tests"):
        list(program.grade_all([Prediction(text="")], [row], "bigcode", ExecutionSettings()))


def test_shares_of_failures_stand_in_the_notes(sandbox: Sandbox, tmp_path: Path) -> None:
    task = tasks.load(str(code_task(tmp_path)))
    rows = examples(task, [{"question": str(number), "tests": "assert one() == 7"} for number in range(2)])
    said = [Prediction(text="def one(): return 7", more=(Prediction(text="return 8"), Prediction(text="return 9")))]
    found = grading.grade(task, rows, [*said, Prediction(text="no", more=(Prediction(text="7"), Prediction(text="")))])
    assert found.notes["failures"] == {"bigcode": {"syntax": 3 / 6, "assertion": 2 / 6}}
    assert {name: metric.mean for name, metric in found.metrics.items()} == {
        "pass@1": pytest.approx(1 / 6),
        "pass@2": pytest.approx(1 / 3),
    }
    assert "why" not in found.samples[0]["grades"]["bigcode"]
    assert found.samples[1]["grades"]["bigcode"]["why"] == "syntax"


def test_where_programs_cannot_be_tested_nothing_is_begun(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox that passes all, or loses all, is found out before a model is loaded."""
    spec = loading.load(toy.write_experiment(tmp_path, task=code_task(tmp_path)))
    store = RunStore(tmp_path / "results")
    monkeypatch.setattr(models, "load", lambda *given, **named: pytest.fail("a model was loaded"))
    for said in ("passed", "lost"):
        sandbox.ends = lambda tested, said=said: said  # type: ignore[misc]
        with pytest.raises(UserError, match="programs cannot be tested here: of two trials"):
            runs.run(spec, store)
    assert store.records() == []


def test_a_grading_that_fails_loses_no_answer(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was generated is there, without grades; the next call grades it and generates nothing."""
    model = str(toy.save_model(tmp_path / "model"))
    task, store = str(code_task(tmp_path)), RunStore(tmp_path / "results")

    def breaks(tested: Program) -> str:
        if "def one" in tested.code and "return 1" in tested.code:  # the trials before
            return honest(tested)
        raise UserError("the machine went to sleep")

    sandbox.ends = breaks
    with pytest.raises(UserError, match="went to sleep"):
        list(evaluating.evaluate(model, store, task=task))
    ((kept, folder),) = store.base_evaluations()
    before = stored.samples(folder)
    assert kept.metrics == {} and kept.grader is None and before is not None and len(before) == 4

    sandbox.ends = honest
    monkeypatch.setattr("peftlab.scores.answering.answer", lambda *given: pytest.fail("it was generated again"))
    (event,) = [one for one in evaluating.evaluate(model, store, task=task) if isinstance(one, Evaluated)]
    assert event.evaluation.metrics["pass@1"].mean == 0 and event.evaluation.key == kept.key
    assert event.evaluation.settings["execution"]["cpu_seconds"] == 20
    after = stored.samples(folder)
    assert after is not None and [one["prediction"] for one in after] == [one["prediction"] for one in before]


def test_only_programs_are_keyed_by_what_they_may_use(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, task=code_task(tmp_path))
    other = toy.write_experiment(tmp_path / "other")
    source = {"run": "x"}

    def key(path: Path, **limits: Any) -> str:
        overrides = {f"execution.{name}": value for name, value in limits.items()}
        return loading.load(path, overrides=overrides).evaluation_key("test", source)

    assert key(folder) == key(folder, workers=3, wall_seconds=500.0, allow_unsafe_code=True)
    assert len({key(folder), key(folder, cpu_seconds=5.0), key(folder, memory_bytes=2**29)}) == 3
    assert key(other) == key(other, cpu_seconds=5.0)
    assert loading.load(folder).train_key == loading.load(folder, overrides={"execution.cpu_seconds": 5.0}).train_key


def test_only_the_command_line_allows_programs_without_isolation(sandbox: Sandbox, tmp_path: Path) -> None:
    """Neither a file nor what was allowed once does."""
    task = code_task(tmp_path)
    asks = toy.write_experiment(tmp_path / "asks", task=task, execution={"allow_unsafe_code": True})
    with pytest.raises(UserError, match="the file asks to run what models write without isolation"):
        loading.load(asks)
    plain = toy.write_experiment(tmp_path / "plain", task=task, train={"max_steps": 1})
    store = RunStore(tmp_path / "results")
    allowed = loading.load(plain, overrides={loading.UNSAFE: True})
    record = runs.run(allowed, store)
    assert set(sandbox.unsafe) == {True}

    sandbox.unsafe.clear()
    where = str(store.path_of(record))
    list(evaluating.evaluate(where, store, overrides={"generation.max_new_tokens": 4}))
    list(regrading.regrade(where, store))
    assert set(sandbox.unsafe) == {False}
    list(regrading.regrade(where, store, allow_unsafe_code=True))
    assert sandbox.unsafe[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpu_seconds": 0.0}, "greater than 0"),
        ({"cpu_seconds": 200.0}, "wall_seconds .* is below cpu_seconds"),
        ({"memory_bytes": 1000}, "greater than or equal to"),
        ({"workers": 0}, "greater than 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExecutionSettings(**settings)


def test_ways_of_failing_are_said_in_words(sandbox: Sandbox, tmp_path: Path) -> None:
    """In a run's summary, and beside its arm on the page and in comparisons: the mean over its seeds."""
    plain = toy.write_experiment(tmp_path, task=code_task(tmp_path), train={"max_steps": 1})
    store = RunStore(tmp_path / "results")
    records = [runs.run(loading.load(plain, seed=seed), store) for seed in (0, 1)]
    assert "answers that failed: syntax 100.0%" in str(running_cli.summary(records[0], store)["score"])
    last = [record.evaluations[-1] for record in records]
    other = last[1].model_copy(update={"notes": {grading.FAILURES: {"bigcode": {"timeout": 0.5, "syntax": 0.25}}}})
    assert failing.said([last[0], other]) == "answers that failed: syntax 62.5%, timeout 25.0%"
    assert failing.said([last[0].model_copy(update={"notes": {}})]) is None
    (table,) = compare(records, store.evaluation_folder).tables
    assert "answers that failed: syntax 100.0%" in table.arms[0].notes
    assert [base.notes for base in table.bases] == [("answers that failed: syntax 100.0%",)]
