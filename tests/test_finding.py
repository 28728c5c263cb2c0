"""Which run is meant, and what a listing shows: names and aliases, keys, paths, files that lie there."""

from __future__ import annotations

import gc
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.record import to_json
from peftlab.records.store import RunStore, write_atomic
from store_material import Stopped, finish, make_spec, quick_store, record_of


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


# ---------------------------------------------------------------------------------------------------- names and aliases


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


def test_names_that_lead_elsewhere_are_refused(store: RunStore, run: RunSpec) -> None:
    for task in ("../../x", "a/b", "x" * 300):
        wrong = run.model_copy(update={"task": run.task.model_copy(update={"name": task})})
        with pytest.raises(UserError, match="name a result"):
            store.claim(wrong, category="main").__enter__()
    hidden = run.model_copy(update={"experiment": "../up"})
    with pytest.raises(UserError, match="name a result"):
        store.claim(hidden, category="main").__enter__()
    assert not store.places.main.exists()


def test_folders_of_odd_results_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunStore(".").places.test == tmp_path.with_name(f"temporary_{tmp_path.name}")
    assert RunStore().places.cancelled == Path("cancelled_results")


# -------------------------------------------------------------------------------------------------------------- listing


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


def test_reading_results_needs_no_heavy_library() -> None:
    code = (
        "import sys, peftlab.records.store as s; s.RunStore('no').records(); "
        "print([*{'torch', 'numpy'} & {*sys.modules}])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------------------------- finding


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
