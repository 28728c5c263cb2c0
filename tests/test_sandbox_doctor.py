"""`peftlab doctor TASK`: a task's own solutions, run as if a model had written them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import toy
from peftlab.cli import main
from peftlab.sandbox import trying, ways

RIGHT, SLOW, WRONG = (
    "  return 2 * x\n",
    "  return sum(2 for _ in range(x)) + 0 * sum(range(3 * 10**6))\n",
    "  return x\n",
)


@pytest.fixture(autouse=True)
def isolated() -> None:
    if not any(trying.attempt(way, os.geteuid()).works for way in trying.PREFERRED):
        pytest.skip("nothing isolates processes here")


def task(folder: Path, *solutions: str) -> str:
    path = toy.write_task(
        folder,
        columns={"prompt": "prompt", "answer": "answer", "tests": "tests"},
        prompt="{prompt}",
        target="{answer}",
        reference="tests",
        grader={"name": "program", "modes": ["bigcode"]},
        metrics={"pass@1": "higher"},
    )
    tests = "def check(candidate):\n    assert candidate(21) == 42\n"
    lines = []
    for number, solution in enumerate(solutions):
        prompt = f"def f{number}(x):\n"
        told = {"before": prompt, "tests": tests, "entry": f"f{number}"}
        lines.append(json.dumps({"prompt": prompt, "answer": solution, "tests": told}))
    (path.parent / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split in ("train", "valid"):
        other = {"prompt": f"def {split}():\n", "answer": RIGHT, "tests": None}
        (path.parent / f"{split}.jsonl").write_text(json.dumps(other) + "\n", encoding="utf-8")
    return str(path)


def test_solutions_that_pass_with_a_wide_margin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", task(tmp_path, RIGHT, RIGHT)]) == 0
    shown = capsys.readouterr()
    assert "2 of 2 reference solutions pass" in shown.out and "the limit of" in shown.out
    assert "warning" not in shown.err


def test_a_narrow_margin_is_a_warning_and_a_wrong_solution_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peftlab.sandbox.margins.NARROW", 1e6)
    assert main(["doctor", task(tmp_path, RIGHT, SLOW), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["narrow"] and found["failed"] == 0 and found["cpu_seconds"] > 0.01
    assert main(["doctor", task(tmp_path / "wrong", RIGHT, WRONG)]) == 1
    shown = capsys.readouterr()
    assert "1 of 2 reference solutions pass" in shown.out and "assertion: AssertionError" in shown.out
    assert "execution.cpu_seconds" in shown.err


def test_where_nothing_isolates_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(way: ways.Way, user: int) -> ways.Found:
        return ways.Found(way=way, works=False, text="not here", facts={})

    monkeypatch.setattr(trying, "attempt", nothing)
    assert main(["doctor", task(tmp_path, RIGHT)]) == 2
    assert "cannot be isolated" in capsys.readouterr().err
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["programs"]["verdict"] == "note" and found["seccomp"]["verdict"] == "-"
