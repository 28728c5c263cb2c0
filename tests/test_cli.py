"""The command line: the entry point, run and evaluate; no model is loaded here."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_material import a_record, evaluation, experiment, working_folder
from peftlab.cli import main
from peftlab.config import spec
from peftlab.events import Evaluated, Event, Finished, Started
from peftlab.records import record as records


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch)


def test_a_user_error_is_two_lines_and_exit_code_2(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "experiments/nowhere"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[0] == "error: experiment folder not found: experiments/nowhere"
    assert output.err.splitlines()[1].startswith("  fix: ")


def test_other_exceptions_keep_their_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runs(monkeypatch, raises=ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        main(["run", experiment("lora/first")])


def test_an_interrupt_says_that_the_same_command_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = fake_runs(monkeypatch, raises=KeyboardInterrupt())
    assert main(["run", experiment("lora/first")]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err.splitlines()[-1]
    assert closed == ["closed"]


def test_a_misspelt_verb_or_flag_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comparee"]) == 2
    assert "Did you mean 'compare'?" in capsys.readouterr().err
    assert main(["run", "x", "--cleann"]) == 2


def test_version_and_waiting_policy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("peftlab ")
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


# ----------------------------------------------------------------------------------------------- run and evaluate


def fake_runs(
    monkeypatch: pytest.MonkeyPatch, *, raises: BaseException | None = None, calls: list[Any] | None = None
) -> list[str]:
    """Stand in for `peftlab.job.runs`; the list returned notes that the generator was closed."""
    closed: list[str] = []

    def events(spec_: spec.RunSpec, store_: Any, options: Any) -> Iterator[Event]:
        if calls is not None:
            calls.append((spec_, options))
        try:
            yield Started(stem=spec_.stem, folder="f", step=0, max_steps=10)
            if raises is not None:
                raise raises
            yield Finished(record=a_record(), path="results/x.json", reused=False)
        finally:
            closed.append("closed")

    def evaluate(reference: str, store_: Any, **options: Any) -> Iterator[Event]:
        if calls is not None:
            calls.append((reference, options))
        yield Evaluated(evaluation=evaluation(100, "last", 0.75))

    module: Any = types.ModuleType("peftlab.job.runs")
    module.events, module.Options = events, lambda **given: given
    monkeypatch.setitem(sys.modules, "peftlab.job.runs", module)
    monkeypatch.setattr("peftlab.job.runs", module, raising=False)
    later: Any = types.ModuleType("peftlab.job.evaluating")
    later.evaluate = evaluate
    monkeypatch.setitem(sys.modules, "peftlab.job.evaluating", later)
    monkeypatch.setattr("peftlab.job.evaluating", later, raising=False)
    return closed


def test_run_hands_settings_on_and_prints_a_summary(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    fake_runs(monkeypatch, calls=calls)
    words = ["seed=3", "train.max_steps=10", "--clean", "--rerun", "--any-environment"]
    assert (
        main(["run", experiment("lora/first", parameters={"model": {"id": "org/tiny"}}), "task=additions.yaml", *words])
        == 0
    )
    given, options = calls[0]
    assert (given.seed, given.train.max_steps, given.task.name) == (3, 10, "additions")
    flags = {"clean": True, "rerun": True, "any_environment": True}
    assert options == {**flags, "resume_from_checkpoint": None}
    output = capsys.readouterr()
    assert "exact_match 0.5 (0.402 to 0.598), n 100 on additions test" in output.out
    assert "460,800 of 135,000,000 parameters (0.341 %)" in output.out
    assert "1 min 15 s" in output.out
    assert output.err.startswith("run lora--first--additions--seed3--")


def test_run_json_is_the_record_alone(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_runs(monkeypatch)
    assert main(["run", experiment("lora/first"), "--json"]) == 0
    assert records.from_json(capsys.readouterr().out, where="stdout") == a_record()


def test_evaluate_splits_runs_from_settings(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    fake_runs(monkeypatch, calls=calls)
    folder = experiment("lora/r=8")
    assert main(["evaluate", folder, "abcd", "generation.max_new_tokens=5", "--task", "t", "--checkpoint", "50"]) == 0
    assert [references for references, _ in calls] == [[folder, "abcd"]]
    asked = {"task": "t", "benchmark": (), "checkpoint": "50", "tell_stored": False}
    assert calls[0][1] == {**asked, "overrides": {"generation.max_new_tokens": 5}}
    assert "0.750 +- 0.050" in capsys.readouterr().out
    assert main(["evaluate", "abcd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["evaluation"]["metrics"]["exact_match"]["mean"] == 0.75
    monkeypatch.setattr(sys.modules["peftlab.job.evaluating"], "evaluate", lambda *_, **__: iter(()))
    assert main(["evaluate", "abcd"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err.split(";")[0]) == ("", "nothing new was scored")
    assert main(["evaluate", "abcd", "--checkpoint", "first"]) == 2
    assert main(["evaluate", "seed=1"]) == 2
    assert main(["evaluate", "abcd", "--grader", "numeric"]) == 2
    assert main(["evaluate", "abcd", "--regrade", "generation.max_new_tokens=5"]) == 2
    assert main(["evaluate", "abcd", "--regrade", "--benchmark", "glue"]) == 2
