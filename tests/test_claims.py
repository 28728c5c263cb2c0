"""Who may write: one process per run, others are refused or wait, readers disturb nobody.

Writers that die are in test_kills.py.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from pathlib import Path

import filelock
import pytest

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records import claims
from peftlab.records.store import RunStore
from store_material import add, check_finished, evaluation, make_spec, quick_store, train


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


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


# ---------------------------------------------------------------------------------------------------- several processes


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
