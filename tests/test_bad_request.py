"""Requests that cannot be met: about finished runs and bare models, or with results where nothing can be written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from refusals import Place


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(
    finished_folder: Path, shared_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    """A place with a finished run of two seeds and one that was cleaned; made once, so tests must leave it as it is."""
    monkeypatch.chdir(finished_folder)
    place = Place(finished_folder, shared_model, capsys)
    if not Path("experiments").exists():
        folder = place.experiment()
        place.runs("run", folder)
        place.runs("run", folder, "seed=1")
        cleaned = place.experiment(name="lora/cleaned", optim={"learning_rate": 2e-2})
        place.runs("run", cleaned)
        place.runs("run", cleaned, "--clean")
    return place


def key_of(place: Place, name: str = "lora--toy--toy--seed0") -> str:
    [path] = place.root.glob(f"*results/{name}*.json")
    return str(json.loads(path.read_text())["key"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optim.learning_rate=1"], ("optim.learning_rate belongs to the training", "run it with that setting")),
        (["train.max_steps=9"], ("train.max_steps belongs to the training",)),
        (["seed=3"], ("'seed' belongs to the training",)),
        (["task=gsm8k"], ("task=... makes another run", "--task NAME")),
        (["max_new_tokens=3"], ("unknown key 'max_new_tokens'", "did you mean 'generation.max_new_tokens'?")),
        (["generation.max_new_token=3"], ("'max_new_token'", "did you mean 'max_new_tokens'?")),
        (["generatio.max_new_tokens=3"], ("unknown group 'generatio'", "nearest: generation")),
        (["generation.max_new_tokens=few"], ("'max_new_tokens' = \"few\"", "valid integer")),
        (["generation.engine=hff"], ("engine 'hff'", "did you mean 'hf'?")),
        (["--task", "gsm8kk"], ("unknown task 'gsm8kk'", "did you mean 'gsm8k'?")),
        (["--checkpoint", "banana"], ("--checkpoint banana", "last, best, or the number of a step")),
        (["--checkpoint=-1"], ("--checkpoint -1", "last, best, or the number of a step")),
        (["--checkpoint", "7"], ("no weights of step 7 were kept", "load_best_model_at_end=true")),
        (["--checkpoint", "best"], ("no validation was made", "name a step, or 'last'")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_an_evaluation_that_cannot_be(finished: Place, words: list[str], says: tuple[str, ...]) -> None:
    finished.refuses("evaluate", key_of(finished), *words, says=says)


@pytest.mark.parametrize("verb", [["evaluate"], ["results", "show"], ["compare"]], ids=" ".join)
@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("lora/toyy", ("no run 'lora/toyy'", "did you mean 'lora/toy'?")),
        ("ffffffff", ("no run 'ffffffff'", "peftlab results")),
        ("temporary_results/nosuch.json", ("no run 'temporary_results/nosuch.json'", "peftlab results")),
    ],
)
def test_a_run_that_is_not_there(finished: Place, verb: list[str], reference: str, says: tuple[str, ...]) -> None:
    finished.refuses(*verb, reference, says=says)


def test_a_reference_that_names_several_runs(finished: Place) -> None:
    says = ("'lora/toy' names 2 runs", "seed 0", "seed 1", "give the key of one")
    finished.refuses("results", "show", "lora/toy", says=says)


def test_an_ambiguous_prefix(finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree("temporary_results", tmp_path / "temporary_results")
    monkeypatch.chdir(tmp_path)
    for path in Path("temporary_results").glob("*.json"):
        plain = json.loads(path.read_text())
        path.write_text(json.dumps({**plain, "key": "abcd" + plain["key"][4:]}))
    place = Place(tmp_path, finished.model, finished._capsys)
    place.refuses("evaluate", "abcd", says=("'abcd' is ambiguous", "abcd", "give more of the key"))


def test_weights_that_were_cleaned(finished: Place) -> None:
    key = key_of(finished, "lora--cleaned")
    says = ("no saved weights at", "they were cleaned", "--rerun")
    finished.refuses("evaluate", key, "generation.max_new_tokens=2", says=says)
    assert "finished before" in finished.runs("run", "experiments/lora/cleaned")


def test_a_bare_model_needs_a_task(finished: Place) -> None:
    finished.refuses("evaluate", str(finished.model), says=("which task should", "--task NAME"))
    finished.refuses("evaluate", "package:nosuch/x", says=("which task should", "--task NAME"))
    finished.refuses("evaluate", "hub:org/tiny", "--task", "task/toy.yaml", says=("'org/tiny'", "use a local folder"))
    finished.refuses("evaluate", "seed=1", says=("no run is named", "a record's path"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compare", "--metric", "exact_mach"], ("metric 'exact_mach'", "did you mean 'exact_match'?")),
        (["compare", "--task", "toyy"], ("task 'toyy'", "tasks there: toy")),
        (["show", "gsm8kk"], ("unknown task 'gsm8kk'", "did you mean 'gsm8k'?")),
        (["new", "loraa", "x"], ("unknown method 'loraa'", "did you mean 'lora'?")),
        (["check", "nosuch.yaml"], ("nosuch.yaml", "fix: ")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_other_verbs(finished: Place, words: list[str], says: tuple[str, ...]) -> None:
    finished.refuses(*words, says=says)


@pytest.mark.parametrize("results", ["file", "file/inside", "/proc/nowhere"])
def test_a_results_folder_that_cannot_be(place: Place, results: str) -> None:
    Path("file").write_text("")
    says = (f"cannot write to the results folder {results}", "with --results")
    place.refuses("run", place.experiment(), "--results", results, says=says)
