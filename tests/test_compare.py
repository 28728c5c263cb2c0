"""From records and their outcomes on disk to tables, pairs and claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from peftlab.records.record import Cost
from peftlab.verdicts.arms import BareModel, Reader
from peftlab.verdicts.compare import Comparison
from peftlab.verdicts.statistics import holm, mean_over_seeds, paired_difference, paired_over_seeds, wilson
from peftlab.verdicts.table import scores, sheets
from verdict_material import NUM_ITEMS, Lab, between


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


# ---------------------------------------------------------------------------------------------------- claims


def test_two_single_runs_are_two_runs_and_no_methods(lab: Lab) -> None:
    a, b = lab.outcomes(0.8), lab.outcomes(0.3)
    lab.run("lora/r16", 0, a)
    lab.run("ia3/plain", 0, b)
    table = lab.table()
    pair = between(table, "lora/r16", "ia3/plain")
    expected = paired_difference(a, b)
    assert (pair.difference, pair.low, pair.high, pair.p) == (expected.mean, expected.low, expected.high, expected.p)
    assert (pair.num_items, pair.level, pair.winner, pair.test) == (NUM_ITEMS, "runs", "lora/r16", "exact McNemar")
    assert pair.claim == "run lora/r16 is better than run ia3/plain on these items"
    assert table.arms[0].score == wilson(float(a.sum()), NUM_ITEMS)
    assert any("about these runs, not about methods" in note for note in table.notes)


def test_equal_runs_show_no_difference(lab: Lab) -> None:
    values = lab.outcomes(0.5)
    lab.run("lora/r16", 0, values)
    lab.run("ia3/plain", 0, values)
    (pair,) = lab.table().pairs
    assert (pair.p, pair.winner) == (1, None)
    assert pair.claim == "no difference shown between run ia3/plain and run lora/r16"


@pytest.mark.parametrize(("seeds", "level"), [((2, 2), "runs"), ((1, 5), "runs"), ((3, 2), "runs"), ((3, 3), "method")])
def test_a_method_needs_three_seeds_in_both_arms(lab: Lab, seeds: tuple[int, int], level: str) -> None:
    rows = [[lab.outcomes(skill) for _ in range(count)] for skill, count in zip((0.9, 0.2), seeds, strict=True)]
    for name, arm in zip(("lora/r16", "ia3/plain"), rows, strict=True):
        for seed, values in enumerate(arm):
            lab.run(name, seed, values)
    table = lab.table()
    (pair,) = table.pairs
    a, b = np.array(rows[0]), np.array(rows[1])
    expected = paired_over_seeds(a, b) if level == "method" else paired_difference(a.mean(axis=0), b.mean(axis=0))
    assert (pair.level, pair.winner, pair.p) == (level, "lora/r16", expected.p)
    assert table.arms[0].score == mean_over_seeds(a)
    if level == "method":
        assert pair.claim == "method lora as in lora/r16 beats method ia3 as in ia3/plain (3 and 3 seeds)"
    else:
        assert "method" not in pair.claim and pair.claim.endswith("on these items")


def test_two_runs_an_arm_are_these_runs(lab: Lab) -> None:
    for seed in (0, 1):
        lab.run("lora/r16", seed, lab.outcomes(0.9))
        lab.run("ia3/plain", seed, lab.outcomes(0.1))
    (pair,) = lab.table().pairs
    assert pair.claim == "the 2 runs of lora/r16 are better than the 2 runs of ia3/plain on these items"


def test_lower_is_better_where_the_metric_says_so(lab: Lab) -> None:
    for name, loss in (("lora/r16", 1.0), ("ia3/plain", 2.0)):
        values = loss + lab.generator.normal(size=NUM_ITEMS) * 0.1
        lab.run(name, 0, values, evaluations=(lab.evaluation(name, "last", values, metric="loss", direction="lower"),))
    table = lab.table()
    assert (table.direction, table.arms[0].label, table.pairs[0].winner) == ("lower", "lora/r16", "lora/r16")
    assert table.pairs[0].difference < 0


def test_p_values_are_adjusted_over_the_table(lab: Lab) -> None:
    for index, extra in enumerate((0, 3, 7, 8)):
        lab.run(f"lora/r{index}", 0, np.arange(NUM_ITEMS) < 60 + extra)
    table = lab.table()
    assert len(table.pairs) == 6
    assert [pair.p_adjusted for pair in table.pairs] == holm([pair.p for pair in table.pairs])
    assert any(p.p is not None and p.p < 0.05 and p.winner is None for p in table.pairs), "adjusting changed a claim"
    assert any("over the 6 tested pairs" in note for note in table.notes)


# --------------------------------------------------------------------------------------------------- bare models


def test_an_arm_is_held_against_the_model_it_started_from(lab: Lab) -> None:
    base = lab.evaluation("base/zero", "base", lab.outcomes(0.2))
    lab.run("lora/r16", 0, lab.outcomes(0.8), base)
    table = lab.table()
    (arm,), (pair,) = table.arms, table.pairs
    assert arm.base is not None and arm.base.score.mean == base.metrics["exact_match"].mean
    assert (pair.kind, pair.b, pair.level, pair.winner) == ("bar", "tiny, float32, 0-shot", "runs", "lora/r16")
    assert pair.claim == "run lora/r16 is better than the bare model (tiny, float32, 0-shot) on these items"


def test_the_best_bare_model_is_the_bar(lab: Lab) -> None:
    base = lab.evaluation("base/zero", "base", lab.outcomes(0.2))
    for seed in range(3):
        lab.run("lora/r16", seed, lab.outcomes(0.4), base)
    shots = [few_shot(lab, 4, 0.9), few_shot(lab, 8, 0.7), few_shot(lab, 8, 0.99, task="another task")]
    table = lab.table(bases=shots)
    assert [row.label for row in table.bases] == [
        "tiny, float32, 4-shot",
        "tiny, float32, 8-shot",
        "tiny, float32, 0-shot",
    ]
    assert table.bars == (shots[0].evaluation.key,)
    assert {(pair.kind, pair.b): pair.winner for pair in table.pairs} == {
        ("bar", "tiny, float32, 4-shot"): "tiny, float32, 4-shot",
        ("base", "tiny, float32, 0-shot"): "lora/r16",
    }
    claim = "the bare model (tiny, float32, 4-shot) beats method lora as in lora/r16 (3 seeds)"
    assert between(table, "lora/r16", "tiny, float32, 4-shot").claim == claim
    assert any("best of 3 bare-model scores" in note and "favours the bare model" in note for note in table.notes)


def few_shot(lab: Lab, count: int, skill: float, **changes: Any) -> BareModel:
    settings = {"model": {"id": "org/tiny"}, "generation": {"few_shot": count}}
    name = f"base/{count}-{skill}"
    evaluation = lab.evaluation(name, "base", lab.outcomes(skill), settings=settings, **changes)
    return BareModel(evaluation=evaluation, folder=lab.root / name)


def test_a_bar_is_of_the_arms_own_model(lab: Lab) -> None:
    for model, skill in (("org/tiny", 0.2), ("org/large", 0.9)):
        settings = {"model": {"id": model}, "generation": {"few_shot": 0}}
        base = lab.evaluation(f"base/{model}", "base", lab.outcomes(skill), settings=settings)
        run = lab.evaluation(f"run/{model}", "last", lab.outcomes(0.5), settings=settings)
        lab.run(f"lora/{model.replace('/', '-')}", 0, None, base, evaluations=(run,))
    table = lab.table()
    bars = {pair.a: pair.b for pair in table.pairs if pair.kind == "bar"}
    assert bars == {"lora/org-tiny": "tiny, float32, 0-shot", "lora/org-large": "large, float32, 0-shot"}
    assert between(table, "lora/org-tiny", "lora/org-large").notes == ("different base models",)


def test_local_models_are_told_apart_and_each_has_its_bar(lab: Lab) -> None:
    """Two folders of one name: the digest of their content is in the label, and only the better score is a bar."""
    bare = []
    for number, content in enumerate(("a" * 64, "b" * 64)):
        model = {"id": "folder", "revision": None, "content": content}
        settings = {"model": model, "generation": {"few_shot": 0}}
        skills = (0.2, 0.4) if number else (0.9, 0.1)
        base = lab.evaluation(f"base/{number}", "base", lab.outcomes(skills[0]), settings=settings)
        more = lab.evaluation(f"base/other-{number}", "base", lab.outcomes(skills[1]), settings=settings)
        bare.append(BareModel(evaluation=more, folder=lab.root / f"base/other-{number}"))
        run = lab.evaluation(f"run/{number}", "last", lab.outcomes(0.5), settings=settings)
        lab.run(f"lora/{number}", 0, None, base, evaluations=(run,), spec={"model": {"id": f"/some/{number}/model"}})
    table = lab.table(bases=bare)
    named = {"model_id": "./models/tiny/"}
    known = lab.evaluation("base/named", "base", lab.outcomes(0.1), settings={**bare[0].evaluation.settings, **named})
    assert Reader("exact_match", lab.folder_of).base(known, None).label.startswith("tiny aaaaaa, float32")
    assert set(table.bars) == {"base/0", "base/other-1"}
    bars = {pair.a: pair.b for pair in table.pairs if pair.kind == "bar"}
    assert bars == {"lora/0": "model aaaaaa, float32, 0-shot", "lora/1": "bare model bbbbbb, float32, 0-shot"}
    (scores, *_) = sheets(lab.compare(bases=bare))
    assert sum("the bar" in row[-1] for row in scores.rows) == 2


def test_a_shared_base_is_read_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    base = lab.evaluation("base/zero", "base", lab.outcomes(0.2))
    for index in range(4):
        lab.run(f"lora/r{index}", 0, lab.outcomes(0.5), base)
    opened: list[str] = []
    read_array = np.lib.format.read_array

    def counted(file: Any, **options: Any) -> Any:
        opened.append(file.name)
        return read_array(file, **options)

    monkeypatch.setattr(np.lib.format, "read_array", counted)
    lab.compare()
    assert len(opened) == 5


# ------------------------------------------------------------------------------------------------ arms and tables


def test_the_best_kept_weights_stand_for_a_run(lab: Lab) -> None:
    values = [lab.outcomes(skill) for skill in (0.3, 0.9, 0.5)]
    roles: list[Literal["step", "best", "last"]] = ["step", "best", "last"]
    found = tuple(lab.evaluation(role, role, one) for role, one in zip(roles, values, strict=True))
    lab.run("lora/r16", 0, None, evaluations=found)
    assert lab.table().arms[0].score.mean == values[1].mean()


def test_one_table_for_each_task(lab: Lab) -> None:
    for task in ("gsm8k", "math"):
        values = lab.outcomes(0.5)
        lab.run(f"lora/{task}", 0, values, evaluations=(lab.evaluation(task, "last", values, task=task),))
    assert [(table.task, len(table.arms)) for table in lab.compare().tables] == [("gsm8k", 1), ("math", 1)]


def test_arms_of_one_name_are_told_apart_and_runs_are_counted_once(lab: Lab) -> None:
    values = lab.outcomes(0.5)
    lab.run("lora/r16", 0, values, arm="aaaaaaaaaaaa")
    lab.run("lora/r16", 0, values, arm="bbbbbbbbbbbb")
    lab.run("lora/r16", 1, values, arm="bbbbbbbbbbbb")
    lab.run("lora/r16", 1, values, arm="bbbbbbbbbbbb", category="test", created_at="2027")
    lab.run("lora/r16", 1, values, arm="bbbbbbbbbbbb", status="cancelled", created_at="2028")
    found = lab.compare()
    assert [(arm.label, arm.seeds, arm.category) for arm in found.tables[0].arms] == [
        ("lora/r16 [aaaaaaaa]", (0,), "main"),
        ("lora/r16 [bbbbbbbb]", (0, 1), "main"),
    ]
    assert found.statuses == {"finished": 3}


def test_test_runs_partial_data_and_costs_are_shown(lab: Lab) -> None:
    memory = {"maximum": 2.0**30, "before_model": 2.0**28}
    costs = [Cost(seconds={"train": 10.0 + seed}, memory_bytes=memory, num_trainable_parameters=7) for seed in (0, 1)]
    lab.run("lora/r16", 0, lab.outcomes(0.5), cost=costs[0])
    lab.run("lora/r16", 1, lab.outcomes(0.5), cost=costs[1], category="test", training={"partial": True})
    table = lab.table()
    (arm,) = table.arms
    assert (arm.category, arm.partial, arm.status) == ("main and test", True, "finished")
    assert (arm.costs.train_seconds, arm.costs.peak_memory_bytes, arm.costs.adapter_bytes) == (10.5, 3 * 2.0**28, None)
    assert any("part of the data set" in note for note in table.notes)
    assert any("category test" in note for note in table.notes)


def test_memory_is_above_the_level_before_the_model_or_unknown(lab: Lab) -> None:
    """An absolute size of one run never stands beside an increase of another."""
    known = {"maximum": 5 * 2.0**30, "before_model": 2.0**30}
    lab.run("lora/r16", 0, lab.outcomes(0.5), cost=Cost(memory_bytes=known))
    lab.run("lora/r8", 0, lab.outcomes(0.4), cost=Cost(memory_bytes={"maximum": 5 * 2.0**30}))
    lab.run("ia3/two", 0, lab.outcomes(0.3), cost=Cost(memory_bytes=known))
    lab.run("ia3/two", 1, lab.outcomes(0.3), cost=Cost(memory_bytes={"maximum": 5 * 2.0**30}))
    table = lab.table()
    assert {arm.label: arm.costs.peak_memory_bytes for arm in table.arms} == {
        "lora/r16": 4 * 2.0**30,
        "lora/r8": None,
        "ia3/two": None,
    }
    sheet = scores(table)
    assert [row[sheet.columns.index("added GiB")] for row in sheet.rows][:2] == ["4.00", "-"]


def test_unlike_settings_are_pointed_out(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.5))
    values = lab.outcomes(0.5)
    settings = {"model": {"id": "org/tiny"}, "generation": {"few_shot": 4}, "device": "cuda"}
    lab.run("lora/r8", 0, values, evaluations=(lab.evaluation("x", "last", values, settings=settings),), task="other")
    trained, scored = lab.table().pairs[0].notes
    assert trained in ("trained on different tasks (metamath, other)", "trained on different tasks (other, metamath)")
    assert scored == "scored under different settings (generation.few_shot)"


# ------------------------------------------------------------------------------------------------------ rendering


def cells(comparison: Comparison, title: str) -> Sequence[Sequence[str]]:
    (sheet,) = [sheet for sheet in sheets(comparison) if title in sheet.title]
    assert all(len(row) == len(sheet.columns) for row in sheet.rows)
    return sheet.rows


def test_sheets_say_everything_in_plain_text(lab: Lab) -> None:
    base = lab.evaluation("base/zero", "base", lab.outcomes(0.2))
    lab.run("lora/r16", 0, lab.outcomes(0.8), base, cost=Cost(adapter_bytes=2**21, num_trainable_parameters=460_800))
    lab.run("lora/r16", 1, None, status="failed", error="ValueError: no", evaluations=())
    found = lab.compare()
    arm, bare = cells(found, "exact_match (higher is better)")
    assert arm[:4] == ("lora/r16", "lora", "0", str(NUM_ITEMS)) and arm[-3:-1] == ("460,800", "2.00")
    assert bare[0] == "tiny, float32, 0-shot" and bare[-1] == "the bar"
    (pair,) = cells(found, "differences")
    assert pair[2].startswith("+0.") and pair[5] == "< 0.0001" and "is better than the bare model" in pair[-1]
    (left,) = cells(found, "Left out (runs: 1 failed, 1 finished)")
    assert left[1:] == ("failed", "ValueError: no")
