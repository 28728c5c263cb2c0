"""Runs on disk: what survives a kill, who may write, what is found again."""

from __future__ import annotations

import builtins
import errno
import gc
import io
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from peftlab import claims, spec
from peftlab.errors import UserError
from peftlab.record import Cost, Evaluation, Metric, Record, to_json
from peftlab.slot import status_of
from peftlab.spec import RunSpec
from peftlab.store import RunStore, Slot, thin, write_atomic

TASK = """
version: 1
kind: classify
train: {dataset: some/data, split: train}
columns: {text: text, label: label}
pair: [text]
labels: [bad, good]
reference: label
grader: {name: label}
metrics: {acc: higher}
"""


def make_spec(
    folder: Path, experiment: str = "lora/small", *, seed: int = 0, task: str = "toy", **overrides: Any
) -> RunSpec:
    experiments = folder / "experiments" / experiment
    experiments.mkdir(parents=True, exist_ok=True)
    (experiments / "training_params.json").write_text(json.dumps({"model": {"id": "some/model"}}))
    yaml = folder / f"{task}.yaml"
    yaml.write_text(TASK)
    return spec.load(
        experiments, task=str(yaml), seed=seed, overrides={k.replace("__", "."): v for k, v in overrides.items()}
    )


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "results")


def record_of(run: RunSpec, *, category: Any = "main", **changes: Any) -> Record:
    plain = {
        "status": "finished",
        "category": category,
        "key": run.train_key,
        "arm": run.arm,
        "experiment": run.experiment,
        "method": run.method,
        "task": run.task.name,
        "seed": run.seed,
        "created_at": "2025-01-01T00:00:00+00:00",
        "identity": run.identity(),
        "spec": run.model_dump(mode="json"),
    }
    return Record.model_validate({**plain, **changes})


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the kernel has; only a power cut would, which no test makes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def evaluation(key: str = "e" * 16, *, mean: float = 0.5, task: str = "toy") -> Evaluation:
    metric = Metric(mean=mean, standard_error=0.1, n=3, direction="higher")
    return Evaluation(
        key=key, what="task", task=task, part="test", checkpoint=10, role="last", metrics={"acc": metric}, num_items=3
    )


def add(slot: Any, found: Evaluation) -> Evaluation:
    samples = ({"item": name, "text": "x"} for name in "abc")
    outcomes = {"acc": np.array([1.0, 0.0, found.metrics["acc"].mean])}
    stored: Evaluation = slot.add(found, samples=samples, items=list("abc"), outcomes=outcomes)
    return stored


def finish(store: RunStore, run: RunSpec, *, category: Any = "main", **changes: Any) -> Record:
    with store.claim(run, category=category) as slot:
        slot.log({"step": 1, "loss": 1.0})
        add(slot, evaluation())
        return slot.finish(record_of(run, category=category, evaluations=tuple(slot.evaluations().values()), **changes))


def files(*folders: Path) -> list[str]:
    """Everything in the folders but locks and the (perhaps empty) folders themselves."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(str(path.relative_to(path.anchor)) for path in found if ".locks" not in path.parts)


class Stopped(Exception):
    """Any exception that the store knows nothing of."""


# ------------------------------------------------------------------------------------------------------- one run's life


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


# ---------------------------------------------------------------------------------------------------------- ways to end


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


ENDINGS: list[tuple[BaseException, str]] = [
    (KeyboardInterrupt(), "cancelled"),
    (GeneratorExit(), "cancelled"),
    (SystemExit(1), "cancelled"),
    (MemoryError(), "out_of_memory"),
    (OutOfMemoryError("CUDA"), "out_of_memory"),
    (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: tried 8 bytes"), "out_of_memory"),
    (RuntimeError("not enough memory: you tried to allocate 8 bytes"), "out_of_memory"),
    (RuntimeError("something else"), "failed"),
    (ValueError("out of memory"), "failed"),
    (UserError("wrong"), "failed"),
]


@pytest.mark.parametrize(("error", "status"), ENDINGS, ids=lambda value: repr(value)[:30])
def test_endings(store: RunStore, run: RunSpec, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), store.claim(run, category="main") as slot:
        slot.log({"step": 1, "loss": 2.0})
        add(slot, evaluation())
        raise error
    (record,) = store.records()
    assert (record.status, record.curve) == (status, {"step": [1], "loss": [2.0]})
    named = "closed before" if isinstance(error, GeneratorExit) else type(error).__name__
    assert record.error is not None and record.error.startswith(named)
    assert [found.key for found in record.evaluations] == ["e" * 16]
    assert store.path_of(record) == store.places.cancelled / f"{run.stem}.json" and store.path_of(record).is_file()
    assert status_of(error) == status
    with store.claim(run, category="main") as slot:
        assert slot.previous == record and slot.num_parts == 2
        assert not store.path_of(record).exists()
        slot.finish(record_of(run))
    assert [found.status for found in store.records()] == ["finished"]


def test_leaving_a_generator_cancels(store: RunStore, run: RunSpec) -> None:
    def events() -> Iterator[int]:
        with store.claim(run, category="main") as slot:
            slot.log({"step": 1})
            yield 1

    for _ in events():
        break
    gc.collect()
    assert [record.status for record in store.records()] == ["cancelled"]


def test_leaving_without_a_result_cancels(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        slot.put(step=1)
    (record,) = store.records()
    assert (record.status, record.error) == ("cancelled", None)


def test_an_error_is_recorded_before_anything_was_written(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(MemoryError), store.claim(run, category="main"):
        raise MemoryError("loading the model")
    assert [(record.status, record.error) for record in store.records()] == [
        ("out_of_memory", "MemoryError: loading the model")
    ]


def test_a_user_error_before_anything_was_written_leaves_nothing(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(UserError), store.claim(run, category="main") as slot:
        slot.part_seconds("setup", 1.0)
        raise UserError("no such data set")
    assert store.records() == [] and files(*store.places.all()) == []


def test_a_user_error_after_a_file_was_written_is_recorded(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(UserError), store.claim(run, category="main") as slot:
        (slot.folder / "checkpoints").mkdir()
        raise UserError("wrong")
    assert [record.status for record in store.records()] == ["failed"]


def test_a_user_error_on_resuming_leaves_the_old_ending(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(MemoryError), store.claim(run, category="main") as slot:
        slot.put(step=1)
        raise MemoryError
    before = store.records()
    with pytest.raises(UserError), store.claim(run, category="main") as slot:
        assert not store.path_of(before[0]).exists()
        raise UserError("other versions")
    assert store.records() == before and before[0].cost.num_parts == 1


def test_long_and_odd_messages(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        slot.put(step=1)
        raise Stopped("\udcff" + "x" * 5000)
    (record,) = store.records()
    assert store.problems == [] and record.error is not None and len(record.error) == 2000


def test_a_full_disk_does_not_hide_the_error(store: RunStore, run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Stopped) as caught, store.claim(run, category="main") as slot:
        slot.put(step=1)
        monkeypatch.setattr("peftlab.slot.write_atomic", full)
        raise Stopped
    assert "No space left" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert [record.status for record in store.records()] == ["killed"]
    with store.claim(run, category="main") as slot:
        assert slot.get("step") == 1


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_in_finish_loses_nothing(
    store: RunStore, run: RunSpec, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """1: the payload cannot be moved; 2: it is moved and the record cannot be written."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"), store.claim(run, category="main") as slot:
        add(slot, evaluation())
        with monkeypatch.context() as patch:
            patch.setattr("peftlab.payload.os.rename" if failing == 1 else "peftlab.payload.write_atomic", full)
            slot.finish(record_of(run, evaluations=tuple(slot.evaluations().values())))
    with store.claim(run, category="main") as slot:
        assert slot.finished is not None and len(slot.finished.evaluations) == 1
    assert [record.status for record in store.records()] == ["finished"]
    assert files(store.places.cancelled) == []


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
    rows[333]["valid_acc"] = 0.5
    rows[334]["valid_acc"] = None
    columns = thin(rows)
    assert len(columns["step"]) == 100 and sorted(columns["step"]) == columns["step"]
    assert columns["step"][0] == 0 and columns["step"][-1] == 999 and 333 in columns["step"]
    assert columns["valid_acc"].count(0.5) == 1 and columns["valid_acc"].count(None) == 99
    assert max(b - a for a, b in zip(columns["step"], columns["step"][1:], strict=False)) < 25
    assert thin([]) == {} and thin([{"step": 1}]) == {"step": [1]}
    assert thin(rows[:5], at_most=1)["step"] == [0, 4]
    assert len(thin([{"valid_acc": 1.0}] * 300)["valid_acc"]) == 300
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


# -------------------------------------------------------------------------------------------------------- who may write


def test_one_writer(store: RunStore, run: RunSpec) -> None:
    with store.claim(run, category="main") as slot:
        slot.put(step=1)
        with pytest.raises(UserError, match=rf"pid {os.getpid()} on {platform.node()}, since 20"):
            store.claim(run, category="main").__enter__()
        assert [owner.stem for owner in store.running()] == [run.stem] and store.records() == []
        slot.log({"step": 2})
    assert store.running() == [] and len(store.records()) == 1
    assert list((store.places.main / ".locks").glob("*.owner.json")) == []


def test_other_runs_are_free(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    with store.claim(run, category="main"), store.claim(make_spec(tmp_path, seed=1), category="main"):
        assert len(store.running()) == 2


@pytest.mark.parametrize(("host", "age", "free"), [("far", 299.0, False), ("far", 301.0, True), (None, 1.0, True)])
def test_another_host_is_believed_for_five_minutes(
    store: RunStore, run: RunSpec, host: str | None, age: float, free: bool
) -> None:
    now = time.time()
    locks = store.places.main / ".locks"
    locks.mkdir(parents=True)
    path = locks / f"{run.train_key}.owner.json"
    owner = {"key": run.train_key, "stem": run.stem, "pid": 7, "since": "2025", "beat": now - age}
    path.write_text(json.dumps({**owner, "host": host or platform.node()}))
    (locks / f"{run.train_key}.lock").touch()
    assert bool(store.running()) is not free
    claim = store.claim(run, category="main", clock=lambda: now)
    if free:
        with claim:
            assert json.loads(path.read_text())["host"] == platform.node()
        assert not path.exists()
    else:
        with pytest.raises(UserError, match="pid 7 on far") as caught:
            claim.__enter__()
        assert str(path) in (caught.value.fix or "") and path.exists()
        path.unlink()
        with store.claim(run, category="main"):
            pass


def test_a_reader_that_looks_is_no_other_run(store: RunStore, run: RunSpec) -> None:
    locks = store.places.main / ".locks"
    locks.mkdir(parents=True)
    look = filelock.FileLock(locks / f"{run.train_key}.lock", thread_local=False)
    look.acquire()
    threading.Timer(0.05, look.release).start()
    with store.claim(run, category="main"):
        pass


def test_a_damaged_owner_file_is_no_owner(store: RunStore, run: RunSpec) -> None:
    path = store.places.main / ".locks" / f"{run.train_key}.owner.json"
    path.parent.mkdir(parents=True)
    for damage in ("", "[]", '{"key": 1}', "\xff"):
        path.write_text(damage, encoding="latin-1")
        assert store.running() == []
        with store.claim(run, category="main"):
            pass


def test_the_heart_beats(store: RunStore, run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.005)
    moments = iter(range(1000, 1_000_000))
    path = store.places.main / ".locks" / f"{run.train_key}.owner.json"
    with store.claim(run, category="main", clock=lambda: float(next(moments))):
        first = claims.read_owner(path)
        deadline = time.monotonic() + 5
        while claims.read_owner(path) == first and time.monotonic() < deadline:
            time.sleep(0.005)
        second = claims.read_owner(path)
    assert first is not None and second is not None and second.beat > first.beat and second.since == first.since
    assert not path.exists()


# ------------------------------------------------------------------------------------------------- keys, names, aliases


def test_another_folder_with_the_same_key_is_an_alias(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    other = make_spec(tmp_path, "copy/of-small", task="renamed")
    assert other.train_key == run.train_key and other.stem != run.stem
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        slot.put(step=1)
        raise Stopped
    with store.claim(other, category="main") as slot:
        assert slot.get("step") == 1 and slot.folder.name == run.stem
        record = slot.finish(record_of(other))
    assert (record.experiment, record.task, record.aliases) == ("lora/small", "toy", ("copy/of-small",))
    third = make_spec(tmp_path, "copy/third")
    for _ in range(2):
        with store.claim(third, category="main") as slot:
            assert slot.finished is not None
            assert slot.finished.aliases == ("copy/of-small", "copy/third")
    (record,) = store.records()
    assert record.aliases == ("copy/of-small", "copy/third") and store.path_of(record).name == f"{run.stem}.json"
    with store.claim(other, category="main") as slot:
        slot.complete(record_of(other))
    (record,) = store.records()
    assert (record.experiment, record.aliases) == ("lora/small", ("copy/of-small", "copy/third"))


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


def test_names_that_lead_elsewhere_are_refused(store: RunStore, run: RunSpec) -> None:
    for task in ("../../x", "a/b", "x" * 300):
        wrong = run.model_copy(update={"task": run.task.model_copy(update={"name": task})})
        with pytest.raises(UserError, match="name a result"):
            store.claim(wrong, category="main").__enter__()
    hidden = run.model_copy(update={"experiment": "../up"})
    with pytest.raises(UserError, match="name a result"):
        store.claim(hidden, category="main").__enter__()
    assert not store.places.main.exists()


# -------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"run": {}}', "\xff"])
def test_damaged_progress_is_named_and_kept(store: RunStore, run: RunSpec, damage: str) -> None:
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        slot.log({"step": 1})
        raise Stopped
    path = slot.folder / "progress.json"
    path.write_text(damage, encoding="latin-1")
    before = files(*store.places.all())
    with pytest.raises(UserError, match=r"progress\.json is damaged") as caught:
        store.claim(run, category="main").__enter__()
    assert str(slot.folder) in (caught.value.fix or "")
    assert path.read_text(encoding="latin-1") == damage and files(*store.places.all()) == before
    assert len(store.records()) == 1
    (slot.folder.parent / f"{run.stem}.json").unlink()
    assert store.records() == [] and "damaged" in store.problems[0][1]
    path.unlink()
    with pytest.raises(UserError, match=r"progress\.json is missing"):
        store.claim(run, category="main").__enter__()
    shutil.move(slot.folder, slot.folder.with_name("away"))
    with store.claim(run, category="main") as slot:
        assert slot.curve() == []


@pytest.mark.parametrize("status", ["finished", "failed"])
@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"version": 1}', '{"version": 99}', "\xff"])
def test_a_damaged_record_is_named_and_kept(store: RunStore, run: RunSpec, status: str, damage: str) -> None:
    if status == "finished":
        path = store.path_of(finish(store, run))
    else:
        with pytest.raises(Stopped), store.claim(run, category="main") as slot:
            slot.log({"step": 1})
            raise Stopped
        path = store.places.cancelled / f"{run.stem}.json"
    path.write_text(damage, encoding="latin-1")
    with pytest.raises(UserError, match=path.name):
        store.claim(run, category="main").__enter__()
    assert path.read_text(encoding="latin-1") == damage
    assert store.records() == [] and [problem[0] for problem in store.problems] == [path]
    path.unlink()
    with store.claim(run, category="main") as slot:
        assert slot.previous is not None and slot.previous.status == "killed"
        assert [row["step"] for row in slot.curve()] == [1]


def test_a_file_of_another_key_is_not_taken(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    other = finish(store, make_spec(tmp_path, seed=1))
    os.rename(store.path_of(other), store.places.main / f"{run.stem}.json")
    with pytest.raises(UserError, match="named after the run"):
        store.claim(run, category="main").__enter__()


def test_two_payloads_of_one_run(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        slot.log({"step": 1})
        raise Stopped
    shutil.copytree(slot.folder, store.places.main / run.stem)
    with pytest.raises(UserError, match="both hold this run"):
        store.claim(run, category="main").__enter__()


def test_a_damaged_evaluation_is_named(store: RunStore, run: RunSpec) -> None:
    with store.base_slot("b" * 16, "toy") as base:
        add(base, evaluation("b" * 16))
    (base.folder / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="move the folder"):
        store.base_evaluation("b" * 16)


# ----------------------------------------------------------------------------------------------------- reading, finding


def test_records_in_order_and_equal_to_what_was_written(store: RunStore, tmp_path: Path) -> None:
    written = [
        finish(store, make_spec(tmp_path, seed=seed), curve={"loss": [0.1, 1e-300, 3.0e10 + seed]})
        for seed in (2, 0, 1)
    ]
    odd = finish(store, make_spec(tmp_path, seed=3), category="test", curve={"loss": [math.inf]})
    with pytest.raises(Stopped), store.claim(make_spec(tmp_path, seed=4), category="main"):
        raise Stopped
    records = store.records()
    assert [record.seed for record in records] == [0, 1, 2, 3, 4]
    assert records[:3] == sorted(written, key=lambda record: record.seed) and records[3] == odd
    assert gc.isenabled()


def test_strange_files_are_no_trouble(store: RunStore, run: RunSpec) -> None:
    record = finish(store, run)
    (store.places.main / "notes.txt").touch()
    (store.places.main / ".hidden.json").touch()
    (store.places.main / "some folder").mkdir()
    (store.places.main / "mine.json").write_text("{}")
    assert store.records() == [record]
    assert [path.name for path, _ in store.problems] == ["mine.json"]


def test_records_creates_nothing(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "results")
    assert (store.records(), store.running(), store.base_evaluation("b" * 16)) == ([], [], None)
    assert os.listdir(tmp_path) == []


def test_a_payload_without_its_record_shows_as_killed(store: RunStore, run: RunSpec) -> None:
    record = finish(store, run)
    store.path_of(record).unlink()
    (killed,) = store.records()
    assert killed.status == "killed" and store.folder_of(killed) == store.folder_of(record)
    with store.claim(run, category="main") as slot:
        assert slot.curve() == [{"step": 1, "loss": 1.0}] and set(slot.evaluations()) == {"e" * 16}
        slot.finish(record_of(run))
    assert [found.status for found in store.records()] == ["finished"]


def test_find(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finish(store, make_spec(tmp_path, seed=0))
    second = finish(store, make_spec(tmp_path, seed=1), category="test")
    other = finish(store, make_spec(tmp_path, "dora/small", optim__learning_rate=0.5))
    alias = make_spec(tmp_path, "lora/copy", seed=0)
    with store.claim(alias, category="main"):
        pass
    with pytest.raises(Stopped), store.claim(make_spec(tmp_path, "lora/broken", seed=9), category="main"):
        raise Stopped
    first = store.records()[1]
    assert first.aliases == ("lora/copy",)
    monkeypatch.chdir(tmp_path)
    assert store.find(str(store.path_of(first))) == [first]
    assert (
        store.find(f"results/{first.stem}.json")
        == store.find(f"results/{first.stem}/")
        == store.find(first.stem)
        == [first]
    )
    assert store.find(second.key[:6]) == [second] and store.find(other.key) == [other]
    assert store.find("lora/small") == store.find("experiments/lora/small/") == [first, second]
    assert store.find("lora/copy") == store.find("copy") == [first]
    assert store.find("dora/small") == [other]
    monkeypatch.chdir(tmp_path / "experiments" / "dora" / "small")
    assert store.find(".") == [other]
    for reference, message in {
        "small": "ambiguous",
        "lora/smal": "did you mean 'lora/small'",
        "lora/broken": "no finished run .*failed",
        first.key[:3]: "no run",
        "0" * 16: "no run",
        "": "no run",
    }.items():
        with pytest.raises(UserError, match=message):
            store.find(reference)


def test_an_ambiguous_key(store: RunStore, tmp_path: Path) -> None:
    for number in (1, 2):
        record = record_of(make_spec(tmp_path, seed=number), key=f"abcd{number}".ljust(16, "0"))
        store.places.main.mkdir(exist_ok=True)
        write_atomic(store.path_of(record), to_json(record))
    with pytest.raises(UserError, match="ambiguous"):
        store.find("abcd")
    assert len(store.find("abcd1")) == 1


def test_a_record_read_from_elsewhere_knows_its_folder(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    record = finish(store, run)
    shutil.move(store.places.main, tmp_path / "archive")
    (found,) = store.find(str(tmp_path / "archive" / f"{run.stem}.json"))
    assert found == record and store.folder_of(found) == tmp_path / "archive" / run.stem
    folder = store.evaluation_folder(found, found.evaluations[0])
    assert folder is not None and (folder / "acc.npy").is_file()


def test_folders_of_odd_results_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunStore(".").places.test == tmp_path.with_name(f"temporary_{tmp_path.name}")
    assert RunStore().places.cancelled == Path("cancelled_results")


# --------------------------------------------------------------------------------------------------------- being killed


def killed_at(number: int, work: Callable[[], None]) -> bool:
    """Do `work` in a process that SIGKILLs itself at its `number`-th change of the file system; whether it died.

    It dies before a rename, a deletion, ..., and after a file is opened, when nothing is written to it yet.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                tick()
                return function(*args, **kwargs)

            return wrapper

        def opened(path: Any, mode: str = "r", *args: Any, _open: Any = open, **kwargs: Any) -> Any:
            file = _open(path, mode, *args, **kwargs)
            if "r" not in mode:
                tick()
            return file

        try:
            for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
                setattr(os, name, guarded(getattr(os, name)))
            builtins.open = io.open = opened  # type: ignore[assignment]
            work()
            os._exit(0)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def train(store: RunStore, run: RunSpec, *, number: int = 1, rerun: bool = False) -> None:
    """A small run that goes on from where it was, as the real one does."""
    with store.claim(run, category="main", rerun=rerun) as slot:
        if slot.finished is not None:
            return
        step = slot.get("step", 0)
        slot.truncate_curve(step)
        while step < 2:
            step += 1
            slot.log({"step": step})
            slot.put(step=step)
        if not slot.evaluations():
            add(slot, evaluation())
        slot.finish(record_of(run, evaluations=tuple(slot.evaluations().values()), provenance={"number": number}))


def check_finished(store: RunStore, run: RunSpec) -> Record:
    (record,) = store.records()
    assert record.status == "finished" and store.problems == [] and store.running() == []
    payload = store.folder_of(record)
    assert sorted(os.listdir(payload)) == ["curve.jsonl", "evaluations", "progress.json"]
    assert [json.loads(line) for line in (payload / "curve.jsonl").read_text().splitlines()] == [
        {"step": step} for step in (1, 2)
    ]
    check_evaluation(store, record)
    leftovers = [name for folder in store.places.all() for name in files(folder) if "/." in name.split("results", 1)[1]]
    assert leftovers == [] and files(store.places.cancelled) == []
    return record


def check_evaluation(store: RunStore, record: Record) -> None:
    (found,) = record.evaluations
    folder = store.evaluation_folder(record, found)
    assert folder is not None
    assert np.load(folder / "acc.npy")[2] == found.metrics["acc"].mean
    assert json.loads((folder / "evaluation.json").read_text())["metrics"]["acc"]["mean"] == found.metrics["acc"].mean
    assert os.listdir(folder.parent) == [folder.name]


def test_killed_anywhere_in_a_run(tmp_path: Path, run: RunSpec) -> None:
    number = 1
    while True:
        store = RunStore(tmp_path / f"{number}" / "results")
        if not killed_at(number, lambda store=store: train(store, run)):  # type: ignore[misc]
            break
        assert [record.status for record in store.records()] in ([], ["killed"], ["finished"]), number
        assert store.problems == [], number
        train(store, run)
        check_finished(store, run)
        number += 1
    assert number > 25


def test_killed_again_and_again(store: RunStore, run: RunSpec) -> None:
    """The same run, killed ever later: the parts count, and it ends as if nothing had happened."""
    deaths = 0
    while killed_at(4 + deaths, lambda: train(store, run)):
        deaths += 1
    assert deaths > 5
    check_finished(store, run)
    with store.claim(run, category="main") as slot:
        assert 1 < slot.num_parts <= deaths + 1


def test_killed_anywhere_while_the_old_result_is_moved_aside(tmp_path: Path, run: RunSpec) -> None:
    train(RunStore(tmp_path / "ready" / "results"), run, number=1)
    number = 0
    fresh = 0
    while fresh < 5:
        number += 1
        shutil.copytree(tmp_path / "ready", tmp_path / f"{number}")
        store = RunStore(tmp_path / f"{number}" / "results")
        assert killed_at(number, lambda store=store: train(store, run, number=2, rerun=True))  # type: ignore[misc]
        train(store, run, number=3)
        record = check_finished(store, run)
        kept = [
            json.loads(path.read_text())["provenance"]["number"] for path in store.places.main.glob("*/replaced.json")
        ]
        assert (kept, record.provenance["number"]) == (([1], 3) if kept else ([], 1))
        fresh += bool(kept)
    assert number > 8


def test_killed_anywhere_while_an_evaluation_is_replaced(store: RunStore, run: RunSpec) -> None:
    train(store, run)

    def again() -> None:
        with store.claim(run, category="main") as slot:
            found = add(slot, evaluation(mean=0.75))
            slot.complete(record_of(run, evaluations=(found,)))

    number = 1
    seen = set()
    while killed_at(number, again):
        with store.claim(run, category="main") as slot:
            (found,) = slot.evaluations().values()
            seen.add(found.metrics["acc"].mean)
            slot.complete(record_of(run, evaluations=(found,)))
            check_evaluation(store, slot.finished or record_of(run))
            add(slot, evaluation(mean=0.5))
        number += 1
    assert number > 8 and seen == {0.5, 0.75}


def test_killed_anywhere_in_a_bare_model(tmp_path: Path) -> None:
    def compute(store: RunStore, mean: float) -> None:
        with store.base_slot("b" * 16, "toy") as base:
            if base.evaluation is None or base.evaluation.metrics["acc"].mean != mean:
                add(base, evaluation("b" * 16, mean=mean))

    number = 1
    died = True
    while died:
        store = RunStore(tmp_path / str(number) / "results")
        compute(store, 0.25)
        died = killed_at(number, lambda store=store: compute(store, 0.75))  # type: ignore[misc]
        with store.base_slot("b" * 16, "toy") as base:
            assert base.evaluation is not None
            assert np.load(base.folder / "acc.npy")[2] == base.evaluation.metrics["acc"].mean
        assert files(store.places.main / "base") == sorted(
            str(path.relative_to("/")) for path in [base.folder, *base.folder.iterdir()]
        )
        number += 1
    found = store.base_evaluation("b" * 16)
    assert found is not None and found.metrics["acc"].mean == 0.75 and number > 5


SCRIPT = """
    import sys, time
    from peftlab import spec
    from peftlab.store import RunStore
    run = spec.load(sys.argv[1], task=sys.argv[2])
    store = RunStore(sys.argv[3])
"""


def start(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    arguments = [str(tmp_path / "experiments/lora/small"), str(tmp_path / "toy.yaml"), str(tmp_path / "results")]
    code = textwrap.dedent(SCRIPT) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_kill_9_of_a_real_process(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
        with store.claim(run, category="main") as slot:
            slot.log({"step": 1})
            slot.part_seconds("train", 2.0)
            print("ready", flush=True)
            time.sleep(60)
        """,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match=f"pid {process.pid} ") as caught:
            store.claim(run, category="main").__enter__()
        assert f"kill {process.pid}" in (caught.value.fix or "")
        assert [owner.pid for owner in store.running()] == [process.pid]
        assert store.records() == [] and store.problems == []
    finally:
        process.kill()
        process.wait()
    assert store.running() == []
    (record,) = store.records()
    assert (record.status, record.curve, record.cost.seconds) == ("killed", {"step": [1]}, {"train": 2.0})
    assert store.folder_of(record).is_dir()
    with store.claim(run, category="main") as slot:
        assert slot.previous == record and slot.num_parts == 2
        slot.finish(record_of(run))
    assert [found.status for found in store.records()] == ["finished"]


def test_a_generator_left_open_does_not_hang_the_interpreter(store: RunStore, run: RunSpec, tmp_path: Path) -> None:
    process = start(
        tmp_path,
        """
        def events():
            with store.claim(run, category="main") as slot:
                slot.log({"step": 1})
                yield 1
        running = events()
        next(running)
        """,
    )
    process.communicate(timeout=10)
    assert process.returncode == 0
    with store.claim(run, category="main") as slot:
        assert slot.curve() == [{"step": 1}]


def test_two_processes_compute_one_bare_model_once(store: RunStore) -> None:
    def compute() -> None:
        with store.base_slot("b" * 16, "toy") as base:
            if base.evaluation is None:
                time.sleep(0.1)
                add(base, evaluation("b" * 16))
                with open(store.places.main / "computed", "a") as file:
                    file.write("x")

    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                compute()
                os._exit(0)
            finally:
                os._exit(3)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert (store.places.main / "computed").read_text() == "x"


def test_many_processes_want_one_run(store: RunStore, run: RunSpec) -> None:
    """Exactly one trains; the others are refused or find it finished; readers disturb nobody."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                if number == 3:
                    for _ in range(50):
                        store.records()
                        assert store.problems == []
                else:
                    train(store, run, number=number)
                os._exit(0)
            except UserError:
                os._exit(1)
            finally:
                os._exit(3)
        children.append(child)
    codes = [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]
    assert codes[3] == 0 and set(codes[:3]) <= {0, 1} and 0 in codes[:3]
    check_finished(store, run)


# ---------------------------------------------------------------------------------------------------------- small parts


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


def test_reading_results_needs_no_heavy_library() -> None:
    code = "import sys, peftlab.store as s; s.RunStore('no').records(); print([*{'torch', 'numpy'} & {*sys.modules}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_slot_is_public() -> None:
    assert Slot.__doc__
