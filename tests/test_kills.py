"""Writers that die at any change of the file system: nothing that was stored is lost, and the next one goes on.

Kills of a real training are in test_resume.py.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.store import RunStore
from store_material import (
    add,
    check_evaluation,
    check_finished,
    evaluation,
    files,
    make_spec,
    quick_store,
    record_of,
    train,
)


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


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


# ------------------------------------------------------------------------------------------------------- real processes

SCRIPT = """
    import sys, time
    from peftlab.config import loading
    from peftlab.records.store import RunStore
    run = loading.load(sys.argv[1], task=sys.argv[2])
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
