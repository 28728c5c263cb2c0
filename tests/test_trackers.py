"""What trackers are told of a run, how the real ones write it, and that none can stop a run or change its result."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import toy
from comparing import outcome
from peftlab import protocols
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Finished, Saved, Step
from peftlab.job import runs, tracking
from peftlab.loop import training
from peftlab.protocols import Tracked, Tracker, TrackerSession
from peftlab.records.record import Record
from peftlab.records.store import RunStore

BOARD = "fake_board:PLUGIN"


@dataclass
class Board:
    """A tracker that remembers what it was told, and fails on request."""

    fails: str = ""
    runs: list[Tracked] = field(default_factory=list)
    numbers: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    texts: list[tuple[int, str, list[str]]] = field(default_factory=list)
    endings: list[tuple[str, str | None]] = field(default_factory=list)

    def open(self, run: Tracked) -> TrackerSession:
        self._fail("open")
        self.runs.append(run)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "board.txt").write_text("open\n")
        return TrackerSession(numbers=self._numbers, texts=self._texts, close=self._close)

    def _numbers(self, step: int, figures: Mapping[str, float]) -> None:
        self._fail("write")
        self.numbers.append((step, dict(figures)))

    def _texts(self, step: int, name: str, found: Sequence[str]) -> None:
        self._fail("write")
        self.texts.append((step, name, list(found)))

    def _close(self, status: str, error: str | None) -> None:
        self._fail("close")
        with open(self.runs[-1].folder / "board.txt", "a") as file:  # still where it was opened
            file.write("closed\n")
        self.endings.append((status, error))

    def _fail(self, what: str) -> None:
        if self.fails == what:
            raise ConnectionError(f"the board does not {what}")

    def column(self, name: str) -> list[tuple[int, float]]:
        return [(step, found[name]) for step, found in self.numbers if name in found]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    module = ModuleType("fake_board")
    module.PLUGIN = Tracker(open=made.open)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_board", module)
    monkeypatch.setenv("PEFTLAB_PLUGINS", "fake_board")
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trackers")
    task = toy.write_task(root / "few", train=24, test=4)
    toy.write_experiment(root, task=task, train={"eval_steps": 3, "max_steps": 6})
    return root


def spec_of(place: Path, *, seed: int = 0, report_to: Any = (BOARD,), **overrides: Any) -> RunSpec:
    settings = {
        "track.report_to": report_to if isinstance(report_to, str) else list(report_to),
        "track.log_samples": 2,
        **overrides,
    }
    return loading.load(place / "experiments" / "lora" / "toy", seed=seed, overrides=settings)


def run(spec: RunSpec, folder: Path) -> Record:
    return runs.run(spec, RunStore(folder))


# ------------------------------------------------------------------------------------------------- what is reported


def test_a_board_gets_every_figure_of_the_run(place: Path, tmp_path: Path, board: Board) -> None:
    spec, store = spec_of(place), RunStore(tmp_path / "results")
    events = list(runs.events(spec, store))
    record = events[-1].record if isinstance(events[-1], Finished) else None
    assert record is not None

    steps = [event for event in events if isinstance(event, Step)]
    told = [(step, found) for step, found in board.numbers if "train/loss" in found]
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    for event, (_, found) in zip(steps, told, strict=True):
        assert found == {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/grad_norm": event.grad_norm,
            "train/tokens_per_second": event.tokens / event.seconds,
            "train/memory_bytes": event.memory_bytes,
            "train/epoch": event.epoch,
        }
    for evaluation in record.evaluations:
        step = 0 if evaluation.checkpoint == "base" else evaluation.checkpoint
        for name, metric in evaluation.metrics.items():
            assert (step, metric.mean) in board.column(f"toy/{evaluation.part}/{evaluation.role}/{name}")
    assert [step for step, _ in board.column("toy/test/base/exact_match")] == [0]
    assert [step for step, _ in board.column("toy/valid/step/exact_match")] == [3, 6]
    assert [step for step, _ in board.column("toy/test/last/exact_match")] == [6]
    saved = [(event.step, "checkpoint", [event.folder]) for event in events if isinstance(event, Saved)]
    assert [one for one in board.texts if one[1] == "checkpoint"] == saved != []
    assert board.endings == [("finished", None)]


def test_a_board_gets_samples_tags_and_settings(place: Path, tmp_path: Path, board: Board) -> None:
    record = run(spec_of(place, seed=1), tmp_path / "results")
    samples = {name: found for _, name, found in board.texts if name.startswith("samples/")}
    assert set(samples) == {"samples/toy/test/base", "samples/toy/valid/step", "samples/toy/test/last"}
    stored = RunStore(tmp_path / "results").folder_of(record) / str(record.evaluation("last").folder)  # type: ignore[union-attr]
    first = json.loads((stored / "samples.jsonl").read_text().splitlines()[0])
    shown = samples["samples/toy/test/last"]
    assert len(shown) == 2
    assert f"question: {first['columns']['question']}" in shown[0]
    assert f"text: {first['prediction']['text']}" in shown[0]

    (told,) = board.runs
    assert told.tags == {"method": "lora", "task": "toy", "model": "model-llama", "seed": "seed 1"}
    assert told.config["optim.learning_rate"] == 0.01
    assert told.config["adapter.r"] == 4
    assert told.config["adapter.target_modules"] == '["q_proj", "v_proj"]'
    assert told.id.startswith(record.key)
    assert "toy/test/last/exact_match" in told.results


def test_nothing_is_open_when_the_folder_moves(place: Path, tmp_path: Path, board: Board) -> None:
    record = run(spec_of(place, seed=2, report_to=[BOARD, BOARD]), tmp_path / "results")  # named twice is one
    (told,) = board.runs
    assert told.folder.parent.parent.parent == tmp_path / "cancelled_results"
    assert not (tmp_path / "cancelled_results").exists()
    kept = RunStore(tmp_path / "results").folder_of(record) / "trackers" / "fake_board-PLUGIN"
    assert (kept / "board.txt").read_text() == "open\nclosed\n"


def test_the_starting_score_that_another_run_made_is_told_too(place: Path, tmp_path: Path, board: Board) -> None:
    run(spec_of(place, report_to=()), tmp_path / "results")
    assert board.runs == []
    run(spec_of(place, seed=1), tmp_path / "results")
    assert [step for step, _ in board.column("toy/test/base/exact_match")] == [0]
    assert [name for _, name, _ in board.texts if "base" in name] == ["samples/toy/test/base"]


def test_a_finished_run_is_not_reported_again_and_an_added_evaluation_is(
    place: Path, tmp_path: Path, board: Board
) -> None:
    run(spec_of(place), tmp_path / "results")
    run(spec_of(place), tmp_path / "results")
    assert len(board.runs) == 1
    board.numbers.clear()
    changed: dict[str, Any] = {"generation.max_new_tokens": 3}
    run(spec_of(place, **changed), tmp_path / "results")
    assert [one.step for one in board.runs] == [0, None]
    assert board.runs[0].id == board.runs[1].id
    assert {step for step, _ in board.numbers} == {0, 6}
    assert board.endings == [("finished", None)] * 2


# ------------------------------------------------------------------------------------------------ endings and resuming


def test_a_closed_run_is_cancelled_and_goes_on_as_the_same_one(place: Path, tmp_path: Path, board: Board) -> None:
    events = runs.events(spec_of(place), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 5:
            break
    events.close()  # type: ignore[attr-defined]
    assert [status for status, _ in board.endings] == ["cancelled"]
    run(spec_of(place), tmp_path / "results")
    assert [one.step for one in board.runs] == [0, 4]
    assert len({one.id for one in board.runs}) == 1
    assert [step for step, _ in board.column("train/loss")] == [1, 2, 3, 4, 5, 5, 6]
    assert [step for step, _ in board.column("toy/valid/step/exact_match")] == [3, 6]  # the first part told of step 3
    assert board.endings[-1] == ("finished", None)


def test_a_run_started_again_is_another_one(place: Path, tmp_path: Path, board: Board) -> None:
    store = RunStore(tmp_path / "results")
    clock = iter([1_700_000_000.0, 1_700_000_100.0])
    for rerun in (False, True):
        now = next(clock)
        with store.claim(spec_of(place), category="main", rerun=rerun, clock=lambda now=now: now) as slot:  # type: ignore[misc]
            board.runs.append(tracking.described(slot.spec, slot, BOARD, step=0))
    assert len({one.id for one in board.runs}) == 2
    assert {one.id.rpartition("-")[0] for one in board.runs} == {spec_of(place).train_key}


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("boom"), "failed"), (MemoryError("no more"), "out_of_memory"), (KeyboardInterrupt(), "cancelled")],
)
def test_a_broken_run_is_reported_as_what_it_is(
    place: Path,
    tmp_path: Path,
    board: Board,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: str,
) -> None:
    whole = training.steps

    def breaks(*args: Any) -> Iterator[Step]:
        for step in whole(*args):
            yield step
            if step.step == 2:
                raise error

    monkeypatch.setattr(training, "steps", breaks)
    with pytest.raises(type(error)):
        run(spec_of(place), tmp_path / "results")
    ((told, why),) = board.endings
    assert told == status
    assert type(error).__name__ in str(why)
    record = RunStore(tmp_path / "results").records()[0]
    assert record.status == status


# ---------------------------------------------------------------------------------------------- it cannot stop a run


@pytest.fixture(scope="module")
def plain(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of the same run without a tracker."""
    folder = tmp_path_factory.mktemp("plain") / "results"
    run(spec_of(place, report_to=()), folder)
    return untracked(folder)


def untracked(results: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for what says or holds its reports."""
    found = outcome(results)
    del found["record"]["spec"]["track"]
    found["files"] = {name: content for name, content in found["files"].items() if not name.startswith("trackers/")}
    return found


@pytest.mark.parametrize("what", ["open", "write", "close"])
def test_a_board_that_fails_is_said_once_and_the_result_is_the_same(
    place: Path, tmp_path: Path, board: Board, caplog: pytest.LogCaptureFixture, plain: dict[str, Any], what: str
) -> None:
    board.fails = what
    with caplog.at_level(logging.WARNING):
        record = run(spec_of(place), tmp_path / "results")
    assert record.status == "finished"
    warnings = [entry.getMessage() for entry in caplog.records if entry.name == "peftlab.job.tracking"]
    assert len(warnings) == 1
    assert f"failed to {what}" in warnings[0]
    assert f"the board does not {what}" in warnings[0]
    assert untracked(tmp_path / "results") == plain


def test_one_tracker_needs_no_list(place: Path) -> None:
    assert spec_of(place, report_to="tensorboard").track.report_to == ("tensorboard",)
    assert spec_of(place, report_to="").track.report_to == ()
    assert spec_of(place, report_to="tensorboard, wandb").track.report_to == ("tensorboard", "wandb")


def test_reports_are_part_of_no_key(place: Path) -> None:
    assert spec_of(place).train_key == spec_of(place, report_to=()).train_key


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("no_such_package:PLUGIN", "--plugins no_such_package"),
        ("wandb", "pip install 'peftlab[wandb]'"),
        ("tensorboard", "pip install 'peftlab[tensorboard]'"),
    ],
)
def test_a_tracker_that_cannot_work_is_an_error_before_training(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    absent = _absent(importlib.metadata.version)
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError) as raised:
        run(spec_of(place, report_to=[name]), tmp_path / "results")
    assert "track.report_to" in str(raised.value) or ":PLUGIN" in name
    assert says in str(raised.value)
    assert not any(path.suffix == ".json" for path in tmp_path.rglob("*"))


def _absent(version: Callable[[str], str]) -> Callable[[str], str]:
    def find(name: str) -> str:
        if name in ("tensorboard", "wandb"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    return find


@pytest.mark.parametrize(
    ("mode", "known", "refused"), [("online", False, True), ("online", True, False), ("offline", False, False)]
)
def test_wandb_without_a_key_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, mode: str, known: bool, refused: bool
) -> None:
    plugin: Any = importlib.import_module("peftlab.trackers.wandb")

    def setup() -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=mode))

    def login(*, prompt: bool, verify: bool) -> bool:
        assert not prompt, "nobody may be asked while a run waits"
        return known

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(plugin, "_imported", lambda: SimpleNamespace(setup=setup, login=login))
    if refused:
        with pytest.raises(UserError, match="WANDB_MODE=offline"):
            plugin.PLUGIN.check()
    else:
        plugin.PLUGIN.check()


def test_a_library_that_is_broken_is_said_and_stops_nothing(
    place: Path, tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def check() -> None:
        raise OSError("libboard.so is torn")

    monkeypatch.setattr(sys.modules["fake_board"], "PLUGIN", Tracker(open=board.open, check=check))
    with caplog.at_level(logging.WARNING, logger=tracking.__name__):
        tracking.check(spec_of(place))
    [message] = [one.getMessage() for one in caplog.records]
    assert BOARD in message and "OSError: libboard.so is torn" in message


def test_every_tracker_of_peftlab_is_found() -> None:
    assert protocols.names("trackers") == ["tensorboard", "wandb"]


# ---------------------------------------------------------------------------------------------------- the real ones

SECRETS = {"HF_TOKEN": "hf_canary_71", "WANDB_API_KEY": "canary_72" * 5, "AWS_SECRET_ACCESS_KEY": "canary_73"}


def interrupted(spec: RunSpec, folder: Path) -> Record:
    """A run that is stopped at step 5, one after its checkpoint, and then finished."""
    events = runs.events(spec, RunStore(folder))
    for event in events:
        if isinstance(event, Step) and event.step == 5:
            break
    events.close()  # type: ignore[attr-defined]
    return run(spec, folder)


def no_secret(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_symlink()
        content = path.read_bytes() if path.is_file() else b""
        assert not any(secret.encode() in content for secret in SECRETS.values()), path


def test_tensorboard_reads_the_whole_run_back(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard extra")
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    record = interrupted(spec_of(place, report_to=["tensorboard"]), tmp_path / "results")
    folder = RunStore(tmp_path / "results").folder_of(record) / "trackers" / "tensorboard"
    assert not (tmp_path / "cancelled_results").exists()
    found = reader.EventAccumulator(str(folder))
    found.Reload()

    def column(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in found.Scalars(name)]

    def text(name: str) -> str:
        return str(found.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode())

    curve = record.curve
    assert [step for step, _ in column("train/loss")] == curve["step"] == [1, 2, 3, 4, 5, 6]  # step 5 was purged once
    assert [value for _, value in column("train/loss")] == pytest.approx(curve["loss"], rel=1e-6)
    assert [value for _, value in column("train/learning_rate")] == pytest.approx(curve["learning_rate"], rel=1e-6)
    for name in ("grad_norm", "tokens_per_second", "memory_bytes", "epoch"):
        assert len(column(f"train/{name}")) == 6
    last = record.evaluation("last")
    assert last is not None
    ((step, value),) = column("toy/test/last/exact_match")
    assert step == 6
    assert value == pytest.approx(last.metrics["exact_match"].mean)
    assert [step for step, _ in column("toy/valid/step/exact_match")] == [3, 6]
    assert "optim.learning_rate = 0.01" in text("config")
    assert "lora" in text("tags")
    assert text("status").strip() == "finished"
    assert "checkpoints/step-000004" in text("checkpoint")
    assert "question: " in text("samples/toy/test/last")
    assert "_hparams_/session_start_info" in found.summary_metadata
    no_secret(folder)


@pytest.mark.slow
def test_wandb_reads_the_whole_run_back(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra 'wandb' (90 MB) is not installed")
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        record = interrupted(spec_of(place, report_to=["wandb"]), tmp_path / "results")
    finally:
        wandb.teardown()
    folder = RunStore(tmp_path / "results").folder_of(record) / "trackers" / "wandb"
    assert not (tmp_path / "cancelled_results").exists()
    files = sorted(folder.rglob("*.wandb"))
    assert len(files) == 2
    parts = [list(wandb_records(file)) for file in files]
    ids = [one.run.run_id for part in parts for one in part if one.WhichOneof("record_type") == "run"]
    assert len(ids) >= 2
    assert len(set(ids)) == 1
    started = next(one.run for one in parts[0] if one.WhichOneof("record_type") == "run")
    assert started.display_name == record.stem
    assert {"lora", "toy", "model-llama", "seed 0"} <= set(started.tags)
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["optim.learning_rate"] == 0.01

    rows = [row for part in parts for row in wandb_rows(part)]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 5, 6]
    assert list(losses.values()) == record.curve["loss"]
    last = record.evaluation("last")
    assert last is not None
    assert [row["toy/test/last/exact_match"] for row in rows if "toy/test/last/exact_match" in row] == [
        last.metrics["exact_match"].mean
    ]
    summaries = [wandb_summary(part) for part in parts]
    assert [summary["status"] for summary in summaries] == ["cancelled", "finished"]
    assert summaries[0]["checkpoint"].endswith("checkpoints/step-000004")
    assert any(name.startswith("samples/toy/test/last") for row in rows for name in row)
    exits = [one.exit.exit_code for part in parts for one in part if one.WhichOneof("record_type") == "exit"]
    assert exits == [255, 0]
    no_secret(folder)


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: blocks of a LevelDB log that hold wandb's own protocol buffers."""
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    content, place, whole = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # the whole record, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_rows(records: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for one in records:
        if one.WhichOneof("record_type") == "history":
            yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}


def wandb_summary(records: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in records:
        if one.WhichOneof("record_type") == "summary":
            found.update({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in one.summary.update})
    return found
