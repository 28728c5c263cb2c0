"""Damaged files among the results: each is named with the way out, none is overwritten or taken for another's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.records.store import RunStore
from store_material import Stopped, add, evaluation, files, finish, make_spec, quick_store


@pytest.fixture
def run(tmp_path: Path) -> RunSpec:
    return make_spec(tmp_path)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    return quick_store(tmp_path, monkeypatch)


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
