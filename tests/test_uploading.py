"""Weights uploaded to a bucket after the run: what is sent, when it is cleaned, and that no failure touches the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

import peftlab as pl
import toy
from peftlab.cli import main
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Event, Finished, Stage
from peftlab.job import runs, uploading
from peftlab.records.record import Record
from peftlab.records.store import RunStore

TOKEN = "hf_abcdefghijklmnop"


class Hub:
    """Stands in for the hub's API: keeps what it is sent, or fails, at the first word or when it is sent files."""

    def __init__(self, error: Exception | None = None, *, late: bool = False) -> None:
        self.error = error
        self.late = late
        self.sent: dict[str, bytes] = {}
        self.buckets: list[str] = []

    def __call__(self) -> Hub:
        return self

    def bucket_info(self, bucket_id: str) -> None:
        self.buckets.append(bucket_id)
        if self.error is not None and not self.late:
            raise self.error

    def batch_bucket_files(self, bucket_id: str, *, add: Sequence[tuple[Path, str]]) -> None:
        assert self.buckets == [bucket_id], "looked at before anything is sent"
        if self.error is not None:
            raise self.error
        self.sent.update({name: path.read_bytes() for path, name in add})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def put(error: Exception | None = None, **options: Any) -> Hub:
        found = Hub(error, **options)
        monkeypatch.setattr(huggingface_hub, "HfApi", found)
        return found

    return put


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return pl.load(toy.write_experiment(tmp_path, train={"max_steps": 1, "evaluate": "none"}))


def drained(spec: RunSpec, store: RunStore, **options: Any) -> tuple[Record, list[str]]:
    events: list[Event] = list(uploading.events(spec, store, runs.Options(**options), bucket="me/weights"))
    assert isinstance(events[-1], Finished)
    return events[-1].record, [event.text for event in events if isinstance(event, Stage)]


def test_the_saved_adapter_is_sent_as_it_is(spec: RunSpec, tmp_path: Path, hub: Callable[..., Hub]) -> None:
    there, store = hub(), RunStore(tmp_path / "results")
    record, told = drained(spec, store)
    folder = store.folder_of(record) / "adapter"
    assert there.buckets == ["me/weights"]
    assert there.sent == {f"{record.stem}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    assert f"{record.stem}/adapter_model.safetensors" in there.sent
    assert told[-1] == f"uploaded to me/weights/{record.stem}"


def test_clean_waits_for_the_upload(spec: RunSpec, tmp_path: Path, hub: Callable[..., Hub]) -> None:
    there, store = hub(), RunStore(tmp_path / "results")
    record, _ = drained(spec, store, clean=True)
    assert f"{record.stem}/adapter_model.safetensors" in there.sent
    assert not (store.folder_of(record) / "adapter").exists()
    assert store.find(record.key)[0].status == "finished"
    again, told = drained(spec, store)
    assert again == record and told[-1].startswith("not uploaded: there are no saved weights at")


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled."),
        PermissionError(f"401 for the token {TOKEN}"),
        RuntimeError("the transfer library gave up"),
        ValueError("a bucket is no repository"),
        huggingface_hub.errors.HfHubHTTPError.__bases__[0](f"Authorization: Bearer {TOKEN} refused"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("late", [False, True])
def test_a_failed_upload_is_told_and_nothing_else(
    spec: RunSpec, tmp_path: Path, hub: Callable[..., Hub], error: Exception, late: bool
) -> None:
    hub(error, late=late)
    store = RunStore(tmp_path / "results")
    record, told = drained(spec, store, clean=True)
    assert record.status == "finished"
    assert told[-1].startswith("not uploaded: ") and told[-1].endswith("the weights stay here")
    assert TOKEN not in told[-1] and str(error).split()[0] in told[-1]
    assert (store.folder_of(record) / "adapter" / "adapter_model.safetensors").is_file(), "the only copy is kept"


def test_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: Callable[..., Hub]
) -> None:
    folder = toy.write_experiment(tmp_path, train={"max_steps": 1, "evaluate": "none"})
    monkeypatch.chdir(tmp_path)
    hub(OSError("the disk of the hub is full"))
    assert main(["run", str(folder), "--bucket_name", "me/weights", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "finished"
    assert "not uploaded: the disk of the hub is full" in err


@pytest.mark.parametrize("name", ["weights", "me/", "/weights", "a/b/c", "me/we ights", "../x", "me/..", ""])
def test_a_name_that_is_no_buckets_stops_before_anything(spec: RunSpec, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--bucket_name"):
        list(uploading.events(spec, RunStore(tmp_path / "results"), runs.Options(), bucket=name))
    assert not (tmp_path / "results").exists()
