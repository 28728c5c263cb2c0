"""One run on disk from claim to result: its parts add up, a test stays a test, and a finished run is kept."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from peftlab.config.spec import RunSpec
from peftlab.records.record import Cost
from peftlab.records.store import RunStore, Slot
from store_material import Stopped, add, evaluation, files, finish, make_spec, quick_store, record_of


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


def test_life_of_a_run(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        assert slot.finished is None and slot.previous is None and slot.num_parts == 1
        assert slot.folder == store.places.cancelled / run.stem
        slot.log({"step": 1, "loss": math.nan})
        slot.put(step=1, best={"acc": math.inf})
        slot.part_seconds("train", 1.5)
        slot.part_seconds("train", 2.0)
        slot.part_seconds("test", 1.0)
        stored = add(slot, evaluation())
        assert stored.folder == f"evaluations/toy-{'e' * 12}"
        record = slot.finish(record_of(run, evaluations=(stored,), cost=Cost(seconds=slot.seconds)))
        assert slot.folder == store.places.main / run.stem
    assert store.records() == [record] and store.problems == []
    assert record.cost.seconds == {"train": 3.5, "test": 1.0}
    assert files(store.places.cancelled, store.places.test) == []
    folder = store.evaluation_folder(record, stored)
    assert folder is not None
    assert np.load(folder / "acc.npy", allow_pickle=False).tolist() == [1.0, 0.0, 0.5]
    assert json.loads((folder / "items.json").read_text()) == ["a", "b", "c"]
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 3
    with store.claim(run, category="main") as slot:
        assert slot.finished == record
        assert math.isnan(slot.curve()[0]["loss"]) and slot.get("best") == {"acc": math.inf}
        assert slot.seconds == {"train": 3.5, "test": 1.0} and slot.num_parts == 1


def test_costs_and_parts_add_up(store: RunStore, run: RunSpec) -> None:
    for part in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt), store.claim(run, category="main") as slot:
            assert slot.num_parts == part
            slot.put(step=part)
            slot.part_seconds("train", 1.0)
            raise KeyboardInterrupt
    (record,) = store.records()
    assert record.status == "cancelled" and record.cost == Cost(seconds={"train": 3.0}, num_parts=3)


def test_finish_twice_is_finish_once(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        first = slot.finish(record_of(run))
        assert slot.finish(first) == first
    assert store.records() == [first]


def test_slot_is_public() -> None:
    assert Slot.__doc__


# ------------------------------------------------------------------------------------------------------------ test runs


def test_a_test_run_lies_apart_and_is_never_relabelled(store: RunStore, run: RunSpec) -> None:
    record = finish(store, run, category="test")
    assert store.path_of(record) == store.places.test / f"{run.stem}.json"
    assert store.path_of(record).is_file() and store.folder_of(record).is_dir()
    with store.claim(run, category="main") as slot:
        assert slot.finished == record and slot.category == "test"
        slot.complete(record_of(run, category="main"))
    assert [found.category for found in store.records()] == ["test"]


def test_a_run_partly_made_as_test_stays_a_test(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="test") as slot:
        slot.log({"step": 1})
        raise Stopped
    with store.claim(run, category="main") as slot:
        record = slot.finish(record_of(run, category="main"))
    assert record.category == "test" and store.places.test in store.path_of(record).parents


def test_a_test_part_that_did_nothing_decides_nothing(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="test"):
        raise Stopped
    with store.claim(run, category="main") as slot:
        assert slot.category == "main"


# -------------------------------------------------------------------------------------------------------- finished runs


def test_a_finished_run_takes_only_evaluations(store: RunStore, run: RunSpec) -> None:
    finish(store, run)
    with store.claim(run, category="main") as slot:
        with pytest.raises(AssertionError):
            slot.log({"step": 2})
        with pytest.raises(AssertionError):
            slot.truncate_curve(0)
        with pytest.raises(AssertionError):
            slot.put(step=2)
        add(slot, evaluation("f" * 16, mean=0.75))
        slot.part_seconds("test", 2.0)
        assert set(slot.evaluations()) == {"e" * 16, "f" * 16}
        slot.complete(record_of(run, evaluations=tuple(slot.evaluations().values()), cost=Cost(seconds=slot.seconds)))
    (record,) = store.records()
    assert len(record.evaluations) == 2 and record.cost.seconds == {"test": 2.0}


def test_a_finished_run_whose_payload_is_gone(store: RunStore, run: RunSpec) -> None:
    record = finish(store, run, cost=Cost(seconds={"train": 4.0}, num_parts=2))
    shutil.rmtree(store.folder_of(record))
    with store.claim(run, category="main") as slot:
        assert slot.finished == record and slot.seconds == {"train": 4.0} and slot.num_parts == 2
        assert not slot.folder.exists()
        add(slot, evaluation("f" * 16))
        assert set(slot.evaluations()) == {"e" * 16, "f" * 16}


def test_an_error_after_the_end_changes_nothing(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        record = slot.finish(record_of(run))
        raise Stopped
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        raise Stopped
    assert store.records() == [record] and files(store.places.cancelled) == []


def test_clean_deletes_the_weights_only(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "keep").touch()
    with store.claim(run, category="main") as slot:
        slot.log({"step": 1})
        (slot.folder / "adapter").mkdir()
        (slot.folder / "adapter" / "weights").touch()
        (slot.folder / "checkpoints").symlink_to(scratch)
        slot.finish(record_of(run))
        slot.clean()
        assert sorted(os.listdir(slot.folder)) == ["curve.jsonl", "progress.json"]
    assert (scratch / "keep").exists()


def test_rerun_keeps_the_old_result(store: RunStore, run: RunSpec) -> None:
    for number in (1, 2):
        old = finish(store, run, provenance={"number": number})
        with store.claim(run, category="main", rerun=True) as slot:
            assert slot.finished is None and slot.curve() == [] and slot.evaluations() == {}
        kept = store.places.main / f"{run.stem}.replaced-{number}"
        assert json.loads((kept / "replaced.json").read_text())["provenance"] == old.provenance
        assert (kept / "curve.jsonl").is_file()
        assert store.records() == [] and store.problems == []


def test_rerun_of_an_unfinished_run_goes_on(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        slot.put(step=1)
        raise Stopped
    with store.claim(run, category="main", rerun=True) as slot:
        assert slot.get("step") == 1
