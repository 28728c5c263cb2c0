"""Faults of the machine and damaged files: an honest status, nothing lost, and the next run ends with the same bytes.

Kills at every moment are in test_resume.py and test_kills.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fault_server
import toy
from comparing import outcome
from fault_server import Server, until, words_of
from peftlab import measure
from peftlab.loop import checkpoint, training
from peftlab.records import atomic, slot
from peftlab.scores import evaluation
from refusals import Place, left_behind

Change = Callable[[Path], object]
STEPS: dict[str, Any] = {"train": {"max_steps": 6}, "save": {"save_steps": 2}}


@pytest.fixture(scope="module")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.save_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def place(
    tmp_path: Path, shared_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, shared_model, capsys)


def unfinished(place: Place, results: str = "results") -> dict[str, Any]:
    """The one record of a run that did not finish."""
    [path] = (place.root / f"cancelled_{results}").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def payload(place: Place) -> Path:
    """The folder of the one run that did not finish."""
    [found] = [path for path in (place.root / "cancelled_results").iterdir() if path.is_dir()]
    return found


def recovers(place: Place, folder: Path, *words: str) -> str:
    """The same command again finishes with the bytes of a run that was never disturbed; returns its words."""
    text = place.runs("run", folder, *words)
    place.runs("run", folder, "--results", "whole")
    assert outcome(place.root / "results") == outcome(place.root / "whole")
    assert not (place.root / "cancelled_results").exists()
    return text


def stops(error: BaseException | None, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Raise `error` in place of the `call`-th call of a function, and let all others through."""
    original = getattr(module, name)
    calls = 0

    def stopped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error or AssertionError
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, stopped)


@pytest.fixture
def interrupted(place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment that was interrupted in step 6, with checkpoints of steps 2 and 4."""
    folder = place.experiment(**STEPS)
    with monkeypatch.context() as patched:
        stops(KeyboardInterrupt(), patched, training, "_update", 6)
        assert "the same command goes on" in place.says("run", folder, code=130)
    assert sorted(path.name for path in (payload(place) / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    return folder


# ------------------------------------------------------------------------------------------------------- out of memory

REFUSED = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
)


@pytest.mark.parametrize(
    ("moment", "error", "says"),
    [
        ("step 1", RuntimeError(REFUSED), "you tried to allocate 99 bytes"),
        ("step 1", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Tried to allocate 2 GiB"),
        ("step 1", RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        ("step 1", MemoryError(), "out of memory"),
        ("trying the longest batch", RuntimeError(REFUSED), "you tried to allocate 99 bytes"),
    ],
    ids=["CPU allocator", "GPU allocator", "C++", "Python", "longest batch"],
)
def test_out_of_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException, says: str
) -> None:
    folder = place.experiment(**STEPS)
    module, name = (training, "forward") if moment == "step 1" else (evaluation, "rehearse")
    with monkeypatch.context() as patched:
        stops(error, patched, module, name, 1)
        text = place.says("run", folder, code=2)
    assert "error: out of memory" in text and says in text
    assert "fix: to need less memory" in text and "data.max_length lower (now 64)" in text
    assert "batch.per_device_train_batch_size=2 batch.gradient_accumulation_steps=2 (now 4 and 1)" in text
    assert unfinished(place)["status"] == "out_of_memory"
    recovers(place, folder)


def test_another_runtime_error_keeps_its_traceback_and_is_no_lack_of_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place.experiment(**STEPS)
    stops(RuntimeError("shapes do not match"), monkeypatch, training, "forward", 1)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        place.runs("run", folder)
    assert unfinished(place)["status"] == "failed"


@pytest.mark.slow
def test_memory_that_the_kernel_refuses(place: Place, server: Server) -> None:
    """A batch of 1000 rows in a process that may not have the room for it."""
    task = toy.write_task(place.root / "task", train=1000, test=4)
    folder = place.experiment(
        task=task,
        batch={"per_device_train_batch_size": 1000},
        train={"evaluate": "none", "max_steps": 1},
        data={"allow_overlap": 1.0},
    )
    process = server.start(place.root, "run", folder, memory_megabytes=60)
    code, text = server.wait(process), words_of(place.root, process)
    assert code == 2 and "error: out of memory" in text and "Traceback" not in text, text
    assert "per_device_train_batch_size" in text
    assert unfinished(place)["status"] == "out_of_memory"
    assert server.run(place.root, "run", folder) == 0
    assert json.loads(place.record().read_text())["status"] == "finished"


# ------------------------------------------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_the_second_checkpoint(place: Place, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    folder = place.experiment(**STEPS)
    with monkeypatch.context() as patched:
        stops(OSError(number, os.strerror(number), "tensors"), patched, checkpoint, "save_file", 2)
        text = place.says("run", folder, code=2)
    assert "error: the disk is full" in text and os.strerror(number) in text and "fix: free some space" in text
    record = unfinished(place)
    assert record["status"] == "failed" and os.strerror(number) in record["error"]
    assert [path.name for path in (payload(place) / "checkpoints").iterdir()] == ["step-000002"]
    assert "going on from step 2" in recovers(place, folder)


@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_while_the_record_is_written(place: Place, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The first write is the record inside the payload, the second the record in its place."""
    folder = place.experiment(**STEPS)
    original = atomic.write_atomic
    calls = 0

    def full(path: Path, content: Any, **more: Any) -> None:
        nonlocal calls
        if path.name.startswith("finished") or path.parent.name.startswith(("temporary_", "results")):
            calls += 1
            if calls == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, content, **more)

    with monkeypatch.context() as patched:
        patched.setattr(slot, "write_atomic", full)
        patched.setattr("peftlab.records.payload.write_atomic", full)
        text = place.says("run", folder, code=2)
        assert calls >= call
    assert "error: the disk is full" in text and "No space left" in text
    recovers(place, folder)


def test_a_full_disk_is_no_reason_to_train_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.experiment(**STEPS)
    with monkeypatch.context() as patched:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "finished.json")
        stops(error, patched, slot.Slot, "finish", 1)
        place.says("run", folder, code=2)
    assert unfinished(place)["status"] == "failed"
    monkeypatch.setattr(training, "steps", lambda *args: pytest.fail("trained again"))
    place.runs("run", folder)


def test_a_limit_on_file_sizes_in_a_checkpoint(place: Place, server: Server) -> None:
    """The kernel itself refuses the bytes: a checkpoint of full fine-tuning is the largest file."""
    folder = place.experiment(adapter=None, **STEPS)
    process = server.start(place.root, "run", folder, file_kilobytes=100)
    code, text = server.wait(process), words_of(place.root, process)
    assert code == 2 and "error: the disk is full" in text and "File too large" in text, text
    assert "Traceback" not in text
    assert unfinished(place)["status"] == "failed"
    assert not list(payload(place).rglob(".*"))
    assert server.run(place.root, "run", folder) == 0
    assert server.run(place.root, "run", folder, "--results", "whole") == 0
    assert outcome(place.root / "results") == outcome(place.root / "whole")


@pytest.mark.parametrize("moment", ["checkpoint", "adapter", "record"])
def test_a_disk_that_is_really_full(place: Place, server: Server, moment: str) -> None:
    """A small file system fills up; when it has room again, the same command goes on to the same bytes."""
    steps = {**STEPS, "save": {"save_steps": 100}} if moment == "adapter" else STEPS
    folder = place.experiment(adapter=None, **steps)
    size = 4000 if moment == "record" else 150 if moment == "checkpoint" else 90
    words = ("run", str(folder), "--results", "disk/results")
    process = server.start(place.root, *words, disk_kilobytes=size, fill=moment == "record")
    code, text = server.wait(process), words_of(place.root, process)
    if code == fault_server.NOT_POSSIBLE:
        pytest.skip("no small file system can be mounted here")
    assert code == 20, text
    assert "error: the disk is full" in text and "No space left on device" in text and "Traceback" not in text
    full = place.root / "disk-when-full"
    if moment == "record":
        assert "how the run ended could not be recorded" in text
    else:
        [record] = (full / "cancelled_results").glob("*.json")
        assert json.loads(record.read_text())["status"] == "failed"
    assert not list((full / "temporary_results").glob("*.json")) and not list((full / "results").glob("*.json"))
    assert server.run(place.root, "run", folder, "--results", "whole") == 0
    assert outcome(place.root / "disk-afterwards/results") == outcome(place.root / "whole")


# ----------------------------------------------------------------------------------------------------- damaged files

DAMAGE: dict[str, tuple[Change, tuple[str, ...]]] = {
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:-40]), ("is not a readable record",)),
    "empty": (lambda path: path.write_text(""), ("is not a readable record",)),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), ("is damaged", "not UTF-8")),
    "nested too deep": (lambda path: path.write_text("[" * 100_000), ("is not a readable record",)),
    "of a later version": (lambda path: _edit(path, version=2), ("record version 2", "upgrade peftlab")),
    "of no version": (lambda path: _edit(path, version="one"), ("record version 'one'",)),
    "with an unknown status": (lambda path: _edit(path, status="fnished"), ("status", "'finished'", "fnished")),
    "of another run": (lambda path: _edit(path, key="f" * 16), ("holds ffffffffffffffff",)),
    "with a name outside": (lambda path: _edit(path, experiment="../../x"), ("..--..--x", "cannot name a result")),
}


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_record_is_named_kept_and_can_be_made_again(place: Place, case: str) -> None:
    damage, says = DAMAGE[case]
    folder = place.experiment()
    place.runs("run", folder)
    record = place.record()
    damage(record)
    place.refuses("run", folder, says=(record.stem[-12:], "fix: ", *says))
    record.unlink()
    recovers(place, folder)


def test_a_damaged_record_hides_no_other(place: Place) -> None:
    place.runs("run", place.experiment())
    record = place.record()
    place.runs("run", place.experiment(name="lora/two", seed=1))
    record.write_text("{")
    text = place.runs("results")
    assert f"not readable: temporary_results/{record.name}" in text and "lora/two" in text
    place.refuses("evaluate", record, says=(str(record.name), "not a readable record", "move it away"))


def test_a_record_that_points_outside_reads_nothing_there(place: Place) -> None:
    place.runs("run", place.experiment())
    record = place.record()
    plain = json.loads(record.read_text())
    plain["evaluations"][0]["folder"] = "../../../etc"
    record.write_text(json.dumps(plain))
    place.refuses("results", "show", plain["key"], says=("names a folder outside: ../../../etc", "do not use"))


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[" * 100_000, b'{"run": {}}'], ids=repr)
def test_a_damaged_progress_file_is_named_and_kept(place: Place, interrupted: Path, content: bytes) -> None:
    path = payload(place) / "progress.json"
    good = path.read_bytes()
    path.write_bytes(content)
    place.refuses("run", interrupted, says=("progress.json is damaged", "move the folder", payload(place).name))
    path.write_bytes(good)
    assert "going on from step 4" in recovers(place, interrupted)


def test_a_progress_file_that_is_gone(place: Place, interrupted: Path) -> None:
    (payload(place) / "progress.json").unlink()
    place.refuses("run", interrupted, says=("progress.json is missing", "move the folder"))


TENSORS, STATE = checkpoint.TENSORS_FILE, checkpoint.STATE_FILE
CHECKPOINTS: dict[str, Change] = {
    "altered tensors": lambda newest: _flip(newest / TENSORS),
    "torn tensors": lambda newest: os.truncate(newest / TENSORS, 1000),
    "no tensors": lambda newest: (newest / TENSORS).unlink(),
    "a torn state": lambda newest: os.truncate(newest / STATE, 100),
    "a state that is a list": lambda newest: (newest / STATE).write_text("[]"),
    "an empty state": lambda newest: (newest / STATE).write_text("{}"),
    "a state nested too deep": lambda newest: (newest / STATE).write_text("[" * 100_000),
}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_damaged_checkpoint_is_said_and_an_earlier_one_taken(place: Place, interrupted: Path, case: str) -> None:
    CHECKPOINTS[case](payload(place) / "checkpoints/step-000004")
    text = recovers(place, interrupted)
    assert "checkpoint step-000004 is damaged" in text and "going on from step 2" in text


def test_two_damaged_checkpoints_mean_the_beginning(place: Place, interrupted: Path) -> None:
    for path in (payload(place) / "checkpoints").iterdir():
        (path / TENSORS).unlink()
    text = recovers(place, interrupted)
    assert text.count("is damaged") == 2 and "going on from" not in text


@pytest.mark.parametrize("what", ["versions", "threads"])
def test_a_checkpoint_of_another_environment(
    place: Place, interrupted: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "versions":
        original = measure.versions
        monkeypatch.setattr(measure, "versions", lambda *args: {**original(*args), "torch": "9.9"})
        says = (f"torch {torch.__version__} (now 9.9)",)
    else:
        threads = torch.get_num_threads()
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
        says = (f"threads {threads} (now {threads + 1})",)
    place.refuses("run", interrupted, says=("step-000004 was written with", *says, "--any-environment"))
    assert "going on from step 4" in place.runs("run", interrupted, "--any-environment")


@pytest.mark.parametrize("damage", ["{", "", "[]"])
def test_a_damaged_evaluation_is_named(place: Place, interrupted: Path, damage: str) -> None:
    [path] = Path("results/base").glob("*/evaluation.json")
    good = path.read_text()
    path.write_text(damage)
    place.refuses("run", interrupted, says=("evaluation.json is damaged", "move the folder", path.parent.name))
    path.write_text(good)
    recovers(place, interrupted)


@pytest.mark.parametrize("damage", ["torn", "altered"])
def test_weights_that_were_altered_after_the_run(place: Place, damage: str) -> None:
    """Numbers of other weights must not come into the record."""
    place.runs("run", place.experiment())
    record = place.record()
    path = record.with_suffix("") / "adapter/adapter_model.safetensors"
    os.truncate(path, 1000) if damage == "torn" else _flip(path)
    says = ("the weights in", "are not those that the training wrote", "--rerun")
    place.refuses("evaluate", record, "generation.max_new_tokens=2", says=says)


def test_a_saved_adapter_that_cannot_be_read(place: Place) -> None:
    place.runs("run", place.experiment())
    record = place.record()
    (record.with_suffix("") / "adapter/adapter_config.json").unlink()
    text = place.says("evaluate", record, "generation.max_new_tokens=2", code=2)
    assert "cannot load the saved adapter" in text and "--rerun" in text


# --------------------------------------------------------------------------------------------- interrupts, two writers


def test_interrupted_before_step_1(place: Place, server: Server) -> None:
    """A real SIGINT while the run is being set up."""
    folder = place.experiment(**STEPS)
    process = server.start(place.root, "run", folder, pause="setup")
    until(place.root / "paused")
    os.kill(process, signal.SIGINT)
    code, text = server.wait(process), words_of(place.root, process)
    assert code == 130 and "the same command goes on from there" in text and "Traceback" not in text
    assert unfinished(place)["status"] == "cancelled"
    assert not unfinished(place)["curve"]
    assert server.run(place.root, "run", folder) == 0
    assert server.run(place.root, "run", folder, "--results", "whole") == 0
    assert outcome(place.root / "results") == outcome(place.root / "whole")


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_step_1(place: Place, server: Server, signal_sent: signal.Signals) -> None:
    folder = place.experiment(**STEPS)
    process = server.start(place.root, "run", folder, pause="step")
    until(place.root / "paused")
    os.kill(process, signal_sent)
    assert server.wait(process) == (130 if signal_sent == signal.SIGINT else -signal_sent)
    stopped = [line.split() for line in place.runs("results").splitlines() if "lora/toy" in line]
    assert stopped[0][3] == ("cancelled" if signal_sent == signal.SIGINT else "killed")
    assert server.run(place.root, "run", folder) == 0
    assert server.run(place.root, "run", folder, "--results", "whole") == 0
    assert outcome(place.root / "results") == outcome(place.root / "whole")


def test_a_second_process_on_one_key(place: Place, server: Server) -> None:
    folder = place.experiment(**STEPS)
    first = server.start(place.root, "run", folder, pause="step")
    until(place.root / "paused")
    before = left_behind(place.root)
    second = server.start(place.root, "run", folder)
    assert server.wait(second) == 2
    text = words_of(place.root, second)
    assert "is being run by another process" in text and f"pid {first}" in text and f"kill {first}" in text
    assert "Traceback" not in text and left_behind(place.root) == before
    assert server.run(place.root, "run", folder, "seed=1", "--results", "other") == 0
    (place.root / "go").touch()
    assert server.wait(first) == 0
    assert server.run(place.root, "run", folder, "--results", "whole") == 0
    assert outcome(place.root / "results") == outcome(place.root / "whole")


def test_evaluating_a_run_that_is_being_run(place: Place, server: Server) -> None:
    folder = place.experiment(**STEPS)
    first = server.start(place.root, "run", folder, pause="step")
    until(place.root / "paused")
    place.refuses("evaluate", "lora/toy", "generation.max_new_tokens=2", says=("no run 'lora/toy'",))
    (place.root / "go").touch()
    assert server.wait(first) == 0


def test_a_loss_that_is_no_number(place: Place) -> None:
    folder = place.experiment(optim={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0.0}, **STEPS)
    text = place.says("run", folder, code=2)
    assert "became nan at step" in text and "fix: lower optim.learning_rate" in text
    record = unfinished(place)
    assert record["status"] == "failed" and "became nan at step" in record["error"]
