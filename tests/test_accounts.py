"""What a record says of a run besides its scores: where the time went, how fast it was, and what made it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab import measure
from peftlab.config import loading
from peftlab.job import preflight, runs
from peftlab.loop import checkpoint
from peftlab.modelling import models, weights
from peftlab.records.payload import thin
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.rows import data
from peftlab.scores import evaluation


def run(folder: Path, results: Path, **overrides: Any) -> Record:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return runs.run(loading.load(folder, overrides=named), RunStore(results))


# --------------------------------------------------------------------------------------------------------------- time


class Clock:
    """The real clock, which jumps ahead whenever something that takes long on large models is done."""

    def __init__(self) -> None:
        self.real = time.perf_counter
        self.ahead = 0.0

    def __call__(self) -> float:
        return self.real() + self.ahead

    def slowed(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.ahead += seconds
            return function(*args, **kwargs)

        return slow

    def slowed_generator(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            self.ahead += seconds
            return (yield from function(*args, **kwargs))

        return slow


@pytest.mark.parametrize(
    "train", [{}, {"eval_steps": 4, "load_best_model_at_end": True}, {"eval_steps": 3, "evaluate": "none"}]
)
def test_the_parts_of_the_time_are_the_whole_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any]
) -> None:
    folder = toy.write_experiment(tmp_path, train=train)
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    for module, name, seconds in (
        (preflight, "check", 500),
        (data, "load", 300),
        (models, "load", 1000),
        (weights, "load", 1000),
        (weights, "save", 200),
        (checkpoint, "save", 200),
    ):
        monkeypatch.setattr(module, name, clock.slowed(getattr(module, name), seconds))
    monkeypatch.setattr(evaluation, "score", clock.slowed_generator(evaluation.score, 2000))
    started = clock()
    record = run(folder, tmp_path / "results")
    wall, parts = clock() - started, record.cost.seconds
    assert sum(parts.values()) == pytest.approx(wall, rel=0.02)
    assert parts["setup"] == pytest.approx(1500, rel=0.02) and parts["data"] == pytest.approx(300, rel=0.02)
    if train.get("evaluate") != "none":
        assert parts["start"] == pytest.approx(2000, rel=0.02) and parts["test"] == pytest.approx(3000, rel=0.02)


def test_a_curve_tells_milliseconds_and_tokens_per_second(tmp_path: Path) -> None:
    log = [{"step": 1, "tokens": 300, "seconds": 0.25, "loss": 2.0}, {"step": 2, "tokens": 90, "seconds": 0.0}]
    assert thin(log) == {
        "step": [1, 2],
        "tokens": [300, 90],
        "loss": [2.0, None],
        "milliseconds": [250.0, 0.0],
        "tokens_per_second": [1200.0, None],
    }
    record = run(toy.write_experiment(tmp_path), tmp_path / "results", train__max_steps=3, train__evaluate="none")
    assert record.curve["tokens_per_second"] == pytest.approx(
        [
            1000 * tokens / took
            for tokens, took in zip(record.curve["tokens"], record.curve["milliseconds"], strict=True)
        ],
        rel=1e-2,
    )
    assert sum(record.curve["milliseconds"]) / 1000 == pytest.approx(record.cost.seconds["train"], abs=2e-3)


# ----------------------------------------------------------------------------------------------------------------- git


def git(folder: Path, *words: str) -> str:
    author = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A work tree that holds an experiment and, as some do, its results."""
    for name in ("experiments/lora/one/notes.txt", "results/old.json", "temporary_results/old.json", "results.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("committed\n")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "dirty"),
    [
        ("results/old.json", False),
        ("temporary_results/old.json", False),
        ("results/new.json", False),
        ("results.txt", True),
        ("experiments/lora/one/notes.txt", True),
        ("experiments/lora/one/new.txt", True),
        ("new.txt", False),
    ],
)
def test_results_make_no_work_tree_dirty(tree: Path, changed: str, dirty: bool) -> None:
    places = RunStore(tree / "results").places.all()
    folder = tree / "experiments" / "lora" / "one"
    assert measure.git_snapshot(folder, apart=places)["dirty"] is False
    (tree / changed).write_text("changed\n")
    found = measure.git_snapshot(folder, apart=places)
    assert found["dirty"] is dirty and found["commit"] == git(tree, "rev-parse", "HEAD")


def test_a_run_leaves_its_results_out_of_the_dirty_flag(tree: Path) -> None:
    folder = toy.write_experiment(tree)
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "an experiment")
    (tree / "results" / "old.json").write_text("changed\n")
    record = run(folder, tree / "results", train__max_steps=1, train__evaluate="none")
    assert record.category == "main" and record.provenance["git"]["dirty"] is False


# ------------------------------------------------------------------------------------------------------------ commits


def installed(site: Path, name: str, direct_url: dict[str, Any] | None) -> None:
    """A package as pip leaves it behind."""
    (site / name).mkdir()
    (site / name / "__init__.py").write_text("")
    noted = site / f"{name}-1.0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if direct_url is not None:
        (noted / "direct_url.json").write_text(json.dumps(direct_url))


def test_packages_from_a_repository_tell_their_commit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEP 610 for what pip installed from git; the tree's own commit for what runs from a tree; else nothing."""
    site = tree / "environment" / "site"
    site.mkdir(parents=True)
    (tree / "source").mkdir()
    url = "https://example.org/repository"
    installed(site, "pl_from_git", {"url": url, "vcs_info": {"vcs": "git", "commit_id": "c" * 40}})
    installed(site, "pl_from_archive", {"url": url, "archive_info": {}})
    installed(site, "pl_from_index", None)
    installed(tree / "source", "pl_from_tree", {"url": (tree / "source").as_uri(), "dir_info": {"editable": True}})
    git(tree, "add", "source")
    git(tree, "commit", "-q", "-m", "a package")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(tree / "source"))
    names = ("pl_from_git", "pl_from_archive", "pl_from_index", "pl_from_tree", "pl_absent")
    assert importlib.metadata.version("pl_from_index") == "1.0"
    assert measure.commits(names) == {
        "pl_from_git": "c" * 40,
        "pl_from_archive": None,
        "pl_from_index": None,  # though its environment lies within a repository
        "pl_from_tree": git(tree, "rev-parse", "HEAD"),
        "pl_absent": None,
    }
    assert "peftlab" in measure.environment()["commits"]
