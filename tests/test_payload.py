"""The files in a run's folder: the step log, evaluations with their samples, and files that are whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.store import RunStore, thin, write_atomic
from store_material import Stopped, add, evaluation, make_spec, quick_store, record_of


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


# ------------------------------------------------------------------------------------------------------------- step log


def test_rows_after_the_checkpoint_are_dropped(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        for step in range(1, 6):
            slot.log({"step": step})
        slot.truncate_curve(3)
        slot.log({"step": 4, "second": True})
        assert slot.curve() == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "second": True}]


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2}', b"\xff"])
def test_a_torn_last_line_is_dropped_and_not_continued(store: RunStore, run: RunSpec, torn: bytes) -> None:
    with store.claim(run, category="main") as slot:
        slot.log({"step": 1})
        slot.close()
        with open(slot.folder / "curve.jsonl", "ab") as file:
            file.write(torn)
        if torn != b"\xff":
            assert slot.curve() == [{"step": 1}]
        slot.log({"step": 2, "loss": 1.0})
        assert slot.curve() == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_a_damaged_line_is_named(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(UserError, match=r"curve\.jsonl: line 2"), store.claim(run, category="main") as slot:
        slot.log({"step": 1})
        (slot.folder / "curve.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
        slot.curve()
    assert store.records() == [] and "line 2" in store.problems[0][1]


def test_thin() -> None:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1.0} for step in range(1000)]
    rows[0]["epoch"] = 0.5
    columns = thin(rows)
    assert len(columns["step"]) == 100 and sorted(columns["step"]) == columns["step"]
    assert columns["step"][0] == 0 and columns["step"][-1] == 999
    assert columns["epoch"] == [0.5] + [None] * 99
    assert max(b - a for a, b in zip(columns["step"], columns["step"][1:], strict=False)) < 25
    assert thin([]) == {} and thin([{"step": 1}]) == {"step": [1]}
    assert thin(rows[:5], at_most=1)["step"] == [0, 4]
    assert len(thin(rows[:100])["step"]) == 100 and len(thin(rows[:101])["step"]) == 100


# ---------------------------------------------------------------------------------------------------------- evaluations


def test_an_evaluation_that_fails_halfway_never_existed(store: RunStore, run: RunSpec) -> None:
    def samples() -> Iterator[dict[str, Any]]:
        yield {"item": "a"}
        raise Stopped

    with store.claim(run, category="main") as slot:
        add(slot, evaluation(mean=0.25))
        with pytest.raises(Stopped):
            slot.add(evaluation(mean=0.75), samples=samples())
        assert [found.metrics["acc"].mean for found in slot.evaluations().values()] == [0.25]
        assert os.listdir(slot.folder / "evaluations") == [f"toy-{'e' * 12}"]


def test_an_evaluation_is_replaced_whole(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        add(slot, evaluation(mean=0.25))
        slot.add(evaluation(mean=0.75))
        (found,) = slot.evaluations().values()
        assert found.metrics["acc"].mean == 0.75 and found.items is None
        assert found.folder is not None and not (slot.folder / found.folder / "acc.npy").exists()
        assert os.listdir(slot.folder / "evaluations") == [f"toy-{'e' * 12}"]


def test_objects_and_odd_lengths_are_refused(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        with pytest.raises(ValueError, match="allow_pickle"):
            slot.add(evaluation(), items=["a"], outcomes={"acc": np.array([{}], dtype=object)})
        with pytest.raises(AssertionError, match="2 outcomes for 1 items"):
            slot.add(evaluation(), items=["a"], outcomes={"acc": np.zeros(2)})
        with pytest.raises(UserError, match="cannot name"):
            slot.add(evaluation(task="../../x"))
        with pytest.raises(UserError, match="cannot name"):
            slot.add(evaluation(), items=["a"], outcomes={"../x": np.zeros(1)})
        assert slot.evaluations() == {}


def test_bare_models_are_shared(store: RunStore, run: RunSpec) -> None:
    key = "b" * 16
    assert store.base_evaluation(key) is None
    with store.base_slot(key, "toy") as base:
        assert base.evaluation is None
        stored = add(base, evaluation(key))
    assert stored.folder == f"base/toy-{'b' * 12}" and store.base_evaluation(key) == stored
    with store.base_slot(key, "another-name") as base:
        assert base.evaluation == stored
    folder = store.evaluation_folder(record_of(run), stored)
    assert folder == store.places.main / "base" / f"toy-{'b' * 12}" and (folder / "acc.npy").is_file()
    assert store.records() == [] and store.problems == []


def test_a_record_cannot_point_outside(store: RunStore, run: RunSpec) -> None:
    for folder in ("../../etc", "/etc", "base/../../x"):
        with pytest.raises(UserError, match="outside"):
            store.evaluation_folder(record_of(run), evaluation().model_copy(update={"folder": folder}))
    with pytest.raises(UserError, match="cannot name"):
        store.path_of(record_of(run, task="/../../x"))


# ------------------------------------------------------------------------------------------------------------- one file


def test_write_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    write_atomic(path, b"new", durable=False)
    assert path.read_bytes() == b"new"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "newer")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]
