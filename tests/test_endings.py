"""How a run can end: the status and the error that are recorded, and what is kept of it."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.slot import status_of
from peftlab.records.store import RunStore
from store_material import Stopped, add, evaluation, files, make_spec, quick_store, record_of


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


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


def test_long_and_odd_messages(store: RunStore, run: RunSpec) -> None:
    with pytest.raises(Stopped), store.claim(run, category="main") as slot:
        slot.put(step=1)
        raise Stopped("\udcff" + "x" * 5000)
    (record,) = store.records()
    assert store.problems == [] and record.error is not None and len(record.error) == 2000


# ------------------------------------------------------------------------------------------------- mistakes of the user


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


# ---------------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_does_not_hide_the_error(store: RunStore, run: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Stopped) as caught, store.claim(run, category="main") as slot:
        slot.put(step=1)
        monkeypatch.setattr("peftlab.records.slot.write_atomic", full)
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
            patch.setattr(
                "peftlab.records.payload.os.rename" if failing == 1 else "peftlab.records.payload.write_atomic", full
            )
            slot.finish(record_of(run, evaluations=tuple(slot.evaluations().values())))
    with store.claim(run, category="main") as slot:
        assert slot.finished is not None and len(slot.finished.evaluations) == 1
    assert [record.status for record in store.records()] == ["finished"]
    assert files(store.places.cancelled) == []
