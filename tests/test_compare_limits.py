"""What cannot be compared is said to be so; many runs, and runs that went wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.errors import UserError
from peftlab.verdicts.statistics import holm
from verdict_material import NUM_ITEMS, Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_different_items_are_not_paired(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.9))
    values = lab.outcomes(0.1)
    lab.run("ia3/plain", 0, values, evaluations=(lab.evaluation("other", "last", values, items="other"),))
    (pair,) = lab.table().pairs
    assert (pair.p, pair.p_adjusted, pair.num_items, pair.winner) == (None, None, None, None)
    assert pair.claim == "not paired, so not tested (scored on different items)"
    assert pair.difference > 0.5


def test_seeds_on_different_items_are_one_arm_without_a_test(lab: Lab) -> None:
    for seed in range(3):
        values = lab.outcomes(0.5)
        found = lab.evaluation(f"r{seed}", "last", values, items=f"digest-{seed}")
        lab.run("lora/r16", seed, values, evaluations=(found,))
        lab.run("ia3/plain", seed, lab.outcomes(0.5))
    table = lab.table()
    arm = next(arm for arm in table.arms if arm.label == "lora/r16")
    assert arm.notes == ("the seeds were scored on different items",) and arm.score.method == "t over seeds"
    assert "the seeds were scored on different items" in table.pairs[0].claim


class Payload:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_outcomes_from_elsewhere_run_no_code(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.9))
    trace = lab.root / "trace"
    np.save(lab.root / "lora/r16-0" / "exact_match.npy", np.array([Payload(trace)] * NUM_ITEMS), allow_pickle=True)
    assert "cannot be read" in lab.table().arms[0].notes[0]
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["gone", "no folder", "garbage", "short", "nan", "matrix"])
def test_missing_or_damaged_outcomes_stop_nothing(lab: Lab, damage: str) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.9))
    lab.run("ia3/plain", 0, lab.outcomes(0.1))
    path = lab.root / "ia3/plain-0" / "exact_match.npy"
    if damage == "gone":
        path.unlink()
    elif damage == "no folder":
        found = lab.records[1].evaluations[0].model_copy(update={"folder": None})
        lab.records[1] = lab.records[1].model_copy(update={"evaluations": (found,)})
    elif damage == "garbage":
        path.write_bytes(path.read_bytes()[:200])
    else:
        bad = {"short": np.zeros(5), "nan": np.full(NUM_ITEMS, np.nan), "matrix": np.zeros((NUM_ITEMS, 1))}[damage]
        np.save(path, bad)
    table = lab.table()
    arm = table.arms[1]
    assert (arm.label, arm.score.method, len(arm.notes)) == ("ia3/plain", "recorded standard error", 1)
    assert table.pairs[0].p is None and table.pairs[0].claim.startswith("not paired, so not tested (ia3/plain: ")


def test_unfinished_runs_are_named_with_their_status(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.5))
    lab.run("lora/r16", 1, None, status="out_of_memory", error="Traceback\nOutOfMemoryError: 2 GiB", evaluations=())
    lab.run("lora/r16", 2, None, status="killed", error="", evaluations=())
    lab.run("lora/r16", 3, None, evaluations=(lab.evaluation("v", "last", lab.outcomes(0.5), part="valid"),))
    found = lab.compare()
    assert found.tables[0].arms[0].seeds == (0,)
    assert found.statuses == {"finished": 2, "killed": 1, "out_of_memory": 1}
    assert {one.stem.partition("--seed")[2][0]: (one.status, one.reason) for one in found.left_out} == {
        "1": ("out_of_memory", "OutOfMemoryError: 2 GiB"),
        "2": ("killed", "killed"),
        "3": ("finished", "its final weights were not scored on the test rows"),
    }
    assert lab.compare(part="valid").tables[0].arms[0].seeds == (3,)


def test_nothing_finished_is_an_empty_comparison(lab: Lab) -> None:
    lab.run("lora/r16", 0, None, status="cancelled", evaluations=())
    found = lab.compare()
    assert found.tables == () and len(found.left_out) == 1
    assert lab.compare(metric="whatever").tables == ()


def test_an_unknown_metric_names_the_nearest(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.5))
    with pytest.raises(UserError, match="unknown metric 'exact_mach'") as error:
        lab.compare(metric="exact_mach")
    assert "exact_match" in str(error.value)


def test_a_run_without_the_metric_is_named(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.5))
    values = lab.outcomes(0.5)
    lab.run("lora/r8", 0, values, evaluations=(lab.evaluation("x", "last", values, metric="f1"),))
    found = lab.compare(metric="exact_match")
    assert [one.reason for one in found.left_out] == ["its evaluation on gsm8k has no metric 'exact_match'"]


def test_directions_that_disagree_are_an_error(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.5))
    values = lab.outcomes(0.5)
    lab.run("lora/r8", 0, values, evaluations=(lab.evaluation("x", "last", values, direction="lower"),))
    with pytest.raises(UserError, match="disagree"):
        lab.compare()


def test_a_diverged_run_comes_last(lab: Lab) -> None:
    lab.run("lora/r16", 0, lab.outcomes(0.5))
    values = np.full(NUM_ITEMS, np.nan)
    lab.run("lora/hot", 0, values, evaluations=(lab.evaluation("hot", "last", values),))
    table = lab.table()
    assert [arm.label for arm in table.arms] == ["lora/r16", "lora/hot"]
    assert (table.arms[1].score.low, table.arms[1].notes) == (None, ("some outcomes are not finite numbers",))


@pytest.mark.parametrize(("count", "pairs"), [(12, 66), (13, 12)])
def test_many_arms_are_compared_with_the_best_and_the_bar_only(lab: Lab, count: int, pairs: int) -> None:
    base = lab.evaluation("base/zero", "base", lab.outcomes(0.2))
    for index in range(count):
        lab.run(f"lora/r{index}", 0, lab.outcomes(0.3 + index / 30), base)
    table = lab.table()
    among = [pair for pair in table.pairs if pair.kind == "arms"]
    assert (len(among), len(table.pairs)) == (pairs, pairs + count)
    p_values = [pair.p for pair in table.pairs]
    if count == 12:
        assert [pair.p_adjusted for pair in table.pairs] == holm(p_values)
        return
    assert all(pair.a == table.arms[0].label for pair in among)
    assert [pair.p_adjusted for pair in table.pairs] == holm(p_values, family=13 * 12 // 2 + 13)
    assert any("compared with the best arm" in note for note in table.notes)


@pytest.mark.slow
def test_ten_thousand_records_in_seconds(tmp_path: Path) -> None:
    """Every arm reads the same few files: writing ten thousand would be most of the test."""
    lab = Lab(tmp_path, num_items=200)
    base = lab.evaluation("base/zero", "base", lab.outcomes(0.2))
    found = [lab.evaluation(f"run-{index}", "last", lab.outcomes(index / 100)) for index in range(97)]
    run = lab.run("lora/r", 0, None, base, evaluations=(found[0],))
    lab.records = [
        run.model_copy(
            update={
                "key": f"{index:016x}",
                "arm": f"{index // 3:016x}",
                "seed": index % 3,
                "evaluations": (base, found[index % 97]),
            }
        )
        for index in range(10_000)
    ]
    started = time.process_time()
    table = lab.table()
    assert len(table.arms) == 3334
    assert time.process_time() - started < 10, "about 3 seconds where it was written"
