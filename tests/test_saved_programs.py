"""Programs in bigcode-evaluation-harness' format, and that harness (here one that stands in for it) run on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import toy
from peftlab.cli import main
from peftlab.sandbox import running
from peftlab.sandbox.limits import Limits
from peftlab.sandbox.programs import Outcome, Program

HARNESS = """
import argparse, json, os
parser = argparse.ArgumentParser()
for name in ("model", "tasks", "load_generations_path", "metric_output_path"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--n_samples", type=int, required=True)
parser.add_argument("--allow_code_execution", action="store_true", required=True)
asked = parser.parse_args()
assert os.path.basename(os.getcwd()) == "harness"
programs = json.load(open(asked.load_generations_path))
assert all(len(row) == asked.n_samples for row in programs)
found = {asked.tasks: {"pass@1": len(programs) / 8}, "config": vars(asked)}
json.dump(found, open(asked.metric_output_path, "w"))
"""


Told = tuple[int, str, str]
Invoke = Callable[..., Told]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """A command's exit code, and what it wrote to stdout and stderr."""

    def run(*words: str) -> Told:
        code = main(words)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A working folder with a task of four rows, a tiny model, and a sandbox in which the trials end as they should."""

    def run(
        programs: Sequence[Program], limits: Limits, *, workers: int | None = None, allow_unsafe: bool = False
    ) -> Iterator[tuple[int, Outcome]]:
        for number, one in enumerate(programs):
            passed = one.code == "def one():\n    return 1\n" and one.tests.endswith("== 1")
            yield number, Outcome(kind="passed" if passed else "assertion", detail="", cpu_seconds=None)

    monkeypatch.setattr(running, "run", run)
    monkeypatch.chdir(tmp_path)
    task = toy.write_task(
        tmp_path / "task",
        test=4,
        columns={"question": "question", "tests": "tests"},
        target="{question}",
        reference="tests",
        grader={"name": "program", "modes": ["bigcode"]},
        metrics={"pass@1": "higher"},
    )
    for file in task.parent.glob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        tests = [{**one, "tests": {"before": f"# {one['question']}\n", "tests": "assert add(1) == 2"}} for one in lines]
        file.write_text("".join(json.dumps(one) + "\n" for one in tests))
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "main.py").write_text(HARNESS)
    return str(toy.save_model(tmp_path / "model"))


def test_programs_are_written_as_the_harness_reads_them(model: str, invoke: Invoke) -> None:
    """One list a row, in the order of the rows, each program with what it begins with; stored answers do as well."""
    settings = ["generation.do_sample=true", "generation.num_return_sequences=3"]
    for _ in range(2):
        code, _, said = invoke(
            "evaluate", model, "--task", "task/toy.yaml", *settings, "--save-generations", "out/g.json"
        )
        assert code == 0 and "g_toy.json" in said, said
        found = json.loads(Path("out/g_toy.json").read_text())
        begins = [f"# {row['question']}\n" for row in toy.rows(4, 900)]
        assert [len(row) for row in found] == [3] * 4
        assert all(one.startswith(begin) for row, begin in zip(found, begins, strict=True) for one in row)
        Path("out/g_toy.json").unlink()


def test_a_harness_scores_them_too(model: str, invoke: Invoke) -> None:
    words = ["evaluate", model, "--task", "task/toy.yaml", "--bigcode_eval_path", "harness", "--allow-unsafe-code"]
    code, out, said = invoke(*words)
    assert code == 0, said
    assert "toy, step base: answers that failed: assertion 100.0%" in out
    assert "by harness" in out and out.splitlines()[-1].split()[-6:] == [
        "base",
        "pass@1",
        "0.000",
        "+-",
        "0.000",
        "0.5",
    ]
    assert not list(Path().glob("generations*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bigcode_eval_path", "harness"], "isolated by nothing"),
        (["--bigcode_eval_path", "task", "--allow-unsafe-code"], "there is no main.py"),
        (["--save-generations", "g.json", "data.test_rows=2"], "a row is known by its place"),
        (["--save-generations", "model/config.json/g.json"], "cannot write"),
        (["--save-generations", "g.json", "--regrade"], "writes no programs"),
    ],
)
def test_what_cannot_be_done_is_said(model: str, invoke: Invoke, words: list[str], message: str) -> None:
    code, _, said = invoke("evaluate", model, "--task", "task/toy.yaml", *words)
    assert code == 2 and message in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit('no such task')", "ended with code 1"),
        ("print('done')", "wrote no metrics of toy"),
        (HARNESS.replace("json.dump(found", "json.dump([1]"), "wrote no metrics of toy"),
    ],
)
def test_a_harness_that_breaks_is_quoted(model: str, invoke: Invoke, text: str, message: str) -> None:
    Path("harness/main.py").write_text(text)
    words = ["--bigcode_eval_path", "harness", "--allow-unsafe-code", "--save-generations", "g.json"]
    code, _, said = invoke("evaluate", model, "--task", "task/toy.yaml", *words)
    assert code == 2 and message in said and "Traceback" not in said
    assert len(json.loads(Path("g_toy.json").read_text())) == 4


def test_answers_that_are_no_programs_are_not_written(model: str, invoke: Invoke) -> None:
    toy.write_task(Path("sums"))
    code, _, said = invoke("evaluate", model, "--task", "sums/toy.yaml", "--save-generations", "g.json")
    assert code == 2 and "no answer to what was scored is a program" in said
