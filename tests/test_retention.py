"""The general suite before and after training: the same rows for every run, stored beside the score, shown with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from comparing import record_file
from fork_runner import Runner
from peftlab.cli import running
from peftlab.config import benchmarks, loading, task
from peftlab.errors import UserError
from peftlab.events import Evaluated
from peftlab.job import evaluating, runs
from peftlab.loop import training
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.report import contents
from peftlab.rows import sources
from peftlab.scores import samples
from peftlab.verdicts import columns, table
from peftlab.verdicts.compare import compare


def suite(root: Path, **more: Any) -> Path:
    """Five rows each of a task that chooses and of one that writes."""
    folder = root / "suite"
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"question": f"{n} + {n}", "answer": n % 2, "choices": ["odd", "even", "both"]} for n in range(9)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"dataset": str(folder), "split": "test"}
    plain = {"version": 1, "test": source, "prompt": "{question} is"}
    choose = {"kind": "choose", "columns": {"question": "question", "choices": "choices", "answer": "answer"}}
    graded: dict[str, Any] = {
        "target": " {choice}",
        "choices": "choices",
        "grader": {"name": "choice"},
        "metrics": {"acc": "higher"},
    }
    (folder / "chosen.yaml").write_text(json.dumps({**plain, **choose, **graded}))
    write = {"kind": "generate", "columns": {"question": "question", "answer": "answer"}, "target": " {answer}"}
    graded = {"max_new_tokens": 3, "grader": {"name": "numeric"}, "metrics": {"exact_match": "higher"}}
    (folder / "written.yaml").write_text(json.dumps({**plain, **write, **graded}))
    named = root / "small.yaml"
    tasks = [str(folder / "chosen.yaml"), str(folder / "written.yaml")]
    named.write_text(json.dumps({"tasks": tasks, "rows": 5, **more}))
    return named


def run(folder: Path, results: Path, **overrides: Any) -> Record:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return runs.run(loading.load(folder, overrides=named), RunStore(results))


def test_it_is_scored_before_and_after_on_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, results = suite(tmp_path), tmp_path / "results"
    folder = toy.write_experiment(tmp_path, data={"retention": str(named)}, train={"max_steps": 2})
    record = run(folder, results)
    found = [one for one in record.evaluations if one.what == "sample"]
    assert sorted((one.task, one.role, one.num_items, one.settings["benchmark"]) for one in found) == [
        (name, role, 5, "small") for name in ("chosen", "written") for role in ("base", "last")
    ]
    kept = record.training["retention"]
    by_hand = 0.0
    for name, metric in (("chosen", "acc"), ("written", "exact_match")):
        mean = {one.role: one.metrics[metric].mean for one in found if one.task == name}
        assert kept["tasks"][name] == {"metric": metric, "before": mean["base"], "after": mean["last"]}
        by_hand += (mean["last"] - mean["base"]) / 2
    assert kept["change"] == pytest.approx(by_hand) and kept["reason"] is None
    first = {one.task: one.items for one in found}
    other = run(folder, results, seed=1, data__data_seed=7, data__max_length=40, generation__max_new_tokens=2)
    second = [one for one in other.evaluations if one.what == "sample"]
    assert {one.task: one.items for one in second} == first
    starts = [
        {one.key for one in each.evaluations if one.what == "sample" and one.role == "base"} for each in (record, other)
    ]
    assert starts[0] == starts[1]  # scored once
    monkeypatch.setattr(training, "steps", None)
    assert run(folder, results) == record


def test_evaluating_the_benchmark_finds_what_the_run_stored(tmp_path: Path) -> None:
    named, results = suite(tmp_path), tmp_path / "results"
    folder = toy.write_experiment(tmp_path, data={"retention": str(named)}, train={"max_steps": 1})
    record = run(folder, results)
    events = list(evaluating.evaluate(record.key, RunStore(results), benchmark=str(named)))
    made = [event for event in events if isinstance(event, Evaluated)]
    assert len(made) == 4 and all(event.reused for event in made)
    model = record.spec["model"]["id"]
    same = {"batch.per_device_eval_batch_size": 5}
    events = list(evaluating.evaluate(model, RunStore(results), benchmark=str(named), overrides=same))
    made = [event for event in events if isinstance(event, Evaluated)]
    assert len(made) == 2 and all(event.reused for event in made)


def test_it_stands_beside_the_score(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, data={"retention": str(suite(tmp_path))}, train={"max_steps": 1})
    record = run(folder, tmp_path / "results")
    kept = {**record.training["retention"], "change": -0.125}
    record = record.model_copy(update={"training": {**record.training, "retention": kept}})
    store = RunStore(tmp_path / "results")
    said = str(running.summary(record, store)["general suite"])
    assert said.startswith("small: change -0.1250, mean over 2 tasks\nacc ") and "on chosen (start " in said
    assert columns.values(record)["retention"] == -0.125
    comparison = compare([record], store.evaluation_folder)
    assert [one.task for one in comparison.tables] == ["toy"]  # a sample is no table of its own
    sheet = table.scores(comparison.tables[0])
    place = sheet.columns.index("retention")
    assert [row[place] for row in sheet.rows] == ["-0.1250", *"-" * (len(sheet.rows) - 1)] and {
        len(row) for row in sheet.rows
    } == {len(sheet.columns)}
    page = contents.page(comparison, [record], folder="f", version="0")
    assert page.sheets[0].rows[0].values[[one.name for one in page.sheets[0].columns].index("retention")] == -0.125


def test_what_cannot_be_had_is_left_out_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sources.MIRROR_VARIABLE, raising=False)
    own = suite(tmp_path)
    there = benchmarks.load(str(own)).tasks[0]
    far = {**json.loads(Path(there).read_text()), "test": {"dataset": "org/rows", "split": "test"}}
    away = tmp_path / "away.yaml"
    away.write_text(json.dumps(far))
    own.write_text(json.dumps({"tasks": [there, str(away)], "rows": 5}))
    folder = toy.write_experiment(tmp_path, data={"retention": str(own)}, train={"max_steps": 1})
    kept = run(folder, tmp_path / "results").training["retention"]
    assert list(kept["tasks"]) == ["chosen"] and kept["change"] is None
    assert kept["reason"] == "PEFTLAB_MIRROR names no mirror that holds org/rows"


def test_a_model_with_a_head_is_not_asked(tmp_path: Path) -> None:
    head = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}
    folder = toy.write_experiment(tmp_path, architecture="bert", adapter=head, data={"retention": "general"})
    spec = loading.load(folder)
    assert samples.asked(spec) == ()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("genral", "data.retention: unknown benchmark 'genral'"),
        ("commonsense", "says no number of rows"),
        ("lower", "less acc of .* is better"),
    ],
)
def test_a_mistake_is_found_before_anything_is_scored(tmp_path: Path, named: str, words: str) -> None:
    if named == "lower":
        path = suite(tmp_path)
        there = Path(benchmarks.load(str(path)).tasks[0])
        there.write_text(json.dumps({**json.loads(there.read_text()), "metrics": {"acc": "lower"}}))
        named = str(path)
    folder = toy.write_experiment(tmp_path, data={"retention": named})
    with pytest.raises(UserError, match=words):
        run(folder, tmp_path / "results")
    assert RunStore(tmp_path / "results").records() == [] and not list(tmp_path.glob("*results/*--*"))


def test_by_default_the_general_suite_is_asked_for(tmp_path: Path) -> None:
    spec = loading.bare("org/model", task="gsm8k")
    asked = samples.asked(spec)
    assert [one.named for one in asked] == ["piqa", "winogrande", "arc_easy"]
    under = samples.spec_of(spec, asked[0])
    assert under.task.test is not None and under.task.test.sample == 200 and under.task.train is None
    assert under.task.name in task.available()


@pytest.mark.slow
def test_two_processes_score_it_as_one_does(tmp_path: Path) -> None:
    """Before training and after it, in batches that both processes have a share of: the follower reads its rows too."""
    folder = toy.write_experiment(
        tmp_path,
        adapter={**toy.LORA, "lora_dropout": 0.0},
        data={"retention": str(suite(tmp_path))},
        batch={"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2},
        train={"max_steps": 4},
    )
    runner = Runner()
    try:
        assert runner.run(folder, tmp_path / "one", overrides={"batch.gradient_accumulation_steps": 2}) == 0
        assert runner.launch(2, folder, tmp_path / "two") == [0, 0]
    finally:
        runner.close()
    records = [json.loads(record_file(tmp_path / name).read_text()) for name in ("one", "two")]
    assert [record["spec"]["launch"]["num_processes"] for record in records] == [1, 2]
    assert records[0]["training"]["retention"] == records[1]["training"]["retention"]
    assert records[0]["training"]["retention"]["reason"] is None
    sides = []
    for name, record in zip(("one", "two"), records, strict=True):
        found = {}
        for one in (one for one in record["evaluations"] if one["what"] == "sample"):
            place = tmp_path / name if one["role"] == "base" else record_file(tmp_path / name).with_suffix("")
            lines = (place / one["folder"] / "samples.jsonl").read_text().splitlines()
            said = [json.loads(line)["prediction"] for line in lines]
            answers = [(each.get("text"), each.get("index")) for each in said]
            found[one["task"], one["role"]] = one["items"], answers, [each.get("scores", []) for each in said]
        sides.append(found)
    first, second = sides
    assert first.keys() == second.keys() and len(first) == 4
    for which, (items, answers, scores) in first.items():
        assert second[which][:2] == (items, answers) and len(answers) == 5, which
        for mine, other in zip(scores, second[which][2], strict=True):
            assert other == pytest.approx(mine, rel=1e-3, abs=1e-3), which
