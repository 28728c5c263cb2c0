"""Folders received from others: no code of theirs runs unless the user names it, and no name leads outside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from refusals import Place, left_behind

# ----------------------------------------------------------------------------------------------------------------- code


@pytest.fixture
def outside(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that leaves a mark when it is imported; returns where."""
    mark = place.root / "imported"
    package = Path("packages/received_code")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\nPLUGIN = 'no plug-in'\n")
    monkeypatch.syspath_prepend(place.root / "packages")
    monkeypatch.delitem(sys.modules, "received_code", raising=False)
    return mark


@pytest.mark.parametrize("what", ["grader", "engine"])
def test_code_that_a_config_names_runs_only_when_the_user_names_it(place: Place, outside: Path, what: str) -> None:
    name = "received_code:PLUGIN"
    task = place.task(**({"grader": {"name": name}} if what == "grader" else {}))
    groups: dict[str, Any] = {"generation": {"engine": name}} if what == "engine" else {}
    folder = place.experiment(task=task, **groups)
    says = ("the config names code outside peftlab: 'received_code:PLUGIN'", "--plugins received_code")
    place.refuses("run", folder, says=says)
    place.refuses("run", folder, "--plugins", "peft,another", says=says)
    place.runs("check", "--no-model", folder)
    assert not outside.exists()
    kind = {"grader": "Grader", "engine": "Engine"}[what]
    place.refuses("run", folder, "--plugins", "another,received_code", says=(f"is a str, not a {kind}", "export a"))
    assert outside.exists()
    place.refuses(
        "run",
        place.experiment(name="lora/other", task=place.task(grader={"name": "received_code:NOTHING"})),
        says=("cannot load the plug-in 'received_code:NOTHING'", "check the module and attribute"),
    )


def test_code_beside_a_task_of_ones_own_is_refused_and_not_run(place: Place) -> None:
    path = place.task()
    path.with_suffix(".py").write_text("open('made', 'w')")
    folder = place.experiment(task=path)
    place.refuses("run", folder, says=("toy.py would run as part of the task", "remove the .py"))
    place.refuses("check", path, says=("toy.py would run as part of the task",))
    assert not Path("made").exists()


def test_a_received_folder_cannot_ask_for_the_models_own_code(place: Place) -> None:
    folder = place.experiment(model={"trust_remote_code": True})
    says = ("asks to run code that comes with the model (model.trust_remote_code)", "on the command line")
    place.refuses("run", folder, says=says)
    place.runs("check", "--no-model", folder, "model.trust_remote_code=true")


def test_a_received_record_cannot_ask_for_the_models_own_code(place: Place) -> None:
    place.runs("run", place.experiment(), "model.trust_remote_code=true")
    says = ("asks to run code that comes with the model", "on the command line")
    place.refuses("evaluate", place.record(), "generation.max_new_tokens=2", says=says)
    place.runs("evaluate", place.record(), "generation.max_new_tokens=2", "model.trust_remote_code=true")


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["a b", "-x", ".hidden", "x\ny", "lo;ra"])
def test_a_folder_whose_name_cannot_name_a_result(place: Place, name: str) -> None:
    place.refuses("run", place.experiment(name=f"lora/{name}"), says=("cannot name a result", "letters, digits"))


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", "."])
def test_a_new_experiment_stays_where_experiments_are(place: Place, name: str) -> None:
    place.refuses("new", "full", name, says=("cannot name an experiment", "letters, digits"))
    assert not list(place.root.rglob("training_params.json"))


def test_a_task_name_stays_inside_the_results(place: Place) -> None:
    """The names of a task's file and of its folders are in no path of the results but as one plain name."""
    path = place.task()
    odd = path.with_name("..yaml")
    path.rename(odd)
    text = place.runs("run", place.experiment(task=f"task/../task/{odd.name}"), "train.evaluate=none")
    assert "finished" in text
    found = {path.split("/")[0] for path in left_behind(place.root)}
    assert found <= {"temporary_results", "results"}
    assert not list(place.root.parent.glob("*results"))
