"""The main job: idempotence, keys, seeds, evaluations made later, and what must leave the weights alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from comparing import outcome, record_file, without_times
from peftlab.config import loading, spec
from peftlab.errors import UserError
from peftlab.events import Evaluated, Finished, Saved, Stage, Started, Step
from peftlab.job import evaluating, runs
from peftlab.job.runs import Options
from peftlab.loop import checkpoint, training
from peftlab.modelling import adapting, models, weights
from peftlab.records.record import Record, from_json
from peftlab.records.store import RunStore
from peftlab.rows import data
from peftlab.scores import evaluation, grading


def run(
    folder: Path, results: Path, *, seed: int | None = None, options: Options | None = None, **overrides: Any
) -> Record:
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return runs.run(loading.load(folder, seed=seed, overrides=named), RunStore(results), options)


def evaluate(reference: str, results: Path, **more: Any) -> Record:
    found = [
        event for event in evaluating.evaluate(reference, RunStore(results), **more) if isinstance(event, Finished)
    ]
    return found[-1].record


def adapter_bytes(results: Path, record: Record) -> bytes:
    folder = RunStore(results).folder_of(record) / "adapter"
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def trains_nothing(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("nothing may be trained here")


# ----------------------------------------------------------------------------------------------------- one whole run


def test_events_of_a_run_and_its_record(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 3}, save={"save_steps": 4})
    store = RunStore(tmp_path / "results")
    events = list(runs.events(loading.load(folder), store))
    steps = [event.step for event in events if isinstance(event, Step)]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if isinstance(event, Saved)] == [4]
    assert [event.step for event in events if isinstance(event, Started)] == [0]
    assert any(isinstance(event, Stage) for event in events)
    scored = [
        (e.evaluation.role, e.evaluation.part, e.evaluation.checkpoint) for e in events if isinstance(e, Evaluated)
    ]
    assert scored == [("base", "test", "base"), ("step", "valid", 3), ("step", "valid", 6), ("last", "test", 6)]
    last = events[-1]
    assert isinstance(last, Finished)
    record = last.record
    assert (record.status, record.method, record.task, record.seed) == ("finished", "lora", "toy", 0)
    metric = record.evaluation("last").metrics  # type: ignore[union-attr]
    assert list(metric) == ["exact_match", "exact_match_flexible"] and metric["exact_match"].n == 12
    assert record.cost.train_tokens == sum(event.tokens for event in events if isinstance(event, Step))
    assert record.cost.num_trainable_parameters == 2 * 4 * (32 + 32 + 32 + 16)
    assert {"setup", "data", "train", "validation", "test", "checkpoints"} <= set(record.cost.seconds)
    assert record.cost.memory_bytes is not None and record.cost.memory_bytes["maximum"] > 1e7
    assert record.provenance["adapter_sha256"] and record.provenance["versions"]["torch"]
    assert record.curve["step"] == steps
    sample = json.loads(
        (store.folder_of(record) / "evaluations").glob("*/samples.jsonl").__next__().read_text().splitlines()[0]
    )
    assert {"item", "reference", "prediction", "grades"} <= set(sample)


def test_the_same_command_again_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    first = run(folder, tmp_path / "results")
    monkeypatch.setattr(training, "steps", trains_nothing)
    monkeypatch.setattr(models, "load", trains_nothing)
    monkeypatch.setattr(data, "load", trains_nothing)
    assert run(folder, tmp_path / "results") == first


def test_an_evaluation_setting_only_evaluates_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    first = run(folder, tmp_path / "results")
    monkeypatch.setattr(training, "steps", trains_nothing)
    second = run(folder, tmp_path / "results", generation__max_new_tokens=3)
    assert second.key == first.key
    assert len(second.evaluations) == 2 * len(first.evaluations)
    assert {found.key for found in first.evaluations} <= {found.key for found in second.evaluations}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.learning_rate", 2e-3),
        ("train.max_steps", 5),
        ("model.dtype", "bfloat16"),
        ("model.matmul_precision", "high"),
        ("data.loss_mask", "everything"),
        ("data.eos_weight", 0.5),
        ("data.train_rows", 20),
        ("data.data_seed", 1),
        ("batch.gradient_accumulation_steps", 2),
        ("train.mixed_precision", "bf16"),
    ],
)
def test_a_training_setting_is_another_run(tmp_path: Path, setting: str, value: Any) -> None:
    folder = toy.write_experiment(tmp_path)
    assert loading.load(folder).train_key != loading.load(folder, overrides={setting: value}).train_key
    assert loading.load(folder).arm != loading.load(folder, overrides={setting: value}).arm


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("batch.per_device_eval_batch_size", 3),
        ("generation.max_new_tokens", 3),
        ("generation.few_shot", 2),
        ("generation.do_sample", True),
        ("data.test_rows", 4),
    ],
)
def test_an_evaluation_setting_is_the_same_run(tmp_path: Path, setting: str, value: Any) -> None:
    folder = toy.write_experiment(tmp_path)
    plain, changed = loading.load(folder), loading.load(folder, overrides={setting: value})
    assert plain.train_key == changed.train_key
    source = plain.step_identity(6)
    assert plain.evaluation_key("test", source) != changed.evaluation_key("test", source)


@pytest.mark.parametrize(
    ("setting", "value"), [("save.save_steps", 1), ("train.evaluate", "none"), ("save.save_total_limit", 1)]
)
def test_a_setting_that_changes_no_result_is_in_no_key(tmp_path: Path, setting: str, value: Any) -> None:
    folder = toy.write_experiment(tmp_path)
    plain, changed = loading.load(folder), loading.load(folder, overrides={setting: value})
    assert plain.train_key == changed.train_key
    assert plain.evaluation_key("test", plain.step_identity(6)) == changed.evaluation_key(
        "test", plain.step_identity(6)
    )


# -------------------------------------------------------------------------------------------------------------- seeds


def test_another_seed_changes_start_order_and_dropout_and_leaves_the_rows(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, batch={"order": "shuffled"}, data={"train_rows": 20})
    one, two = run(folder, tmp_path / "one", seed=1), run(folder, tmp_path / "two", seed=2)
    assert one.arm == two.arm and one.key != two.key
    assert one.rows["fingerprints"] == two.rows["fingerprints"]
    assert one.curve["loss"] != two.curve["loss"]
    assert one.curve["tokens"] != two.curve["tokens"]  # other rows in each step
    starts = [_start(loading.load(folder, seed=seed)) for seed in (1, 2, 1)]
    assert starts[0] != starts[1] and starts[0] == starts[2]


def _start(resolved: spec.RunSpec) -> list[float]:
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    return [float(parameter.detach().abs().sum()) for parameter in built.trainable().values()]


def test_dropout_alone_follows_the_seed(tmp_path: Path) -> None:
    """Same start, same order, another dropout stream: the losses part at the first step with dropout."""
    folder = toy.write_experiment(tmp_path, batch={"order": "file"}, optim={"warmup_steps": 0})
    found = []
    for seed in (1, 2):
        resolved = loading.load(folder, seed=seed)
        built = adapting.adapt(models.load(resolved.model, "causal"), loading.load(folder, seed=0))
        from peftlab.rows.batching import Stream
        from peftlab.rows.tokenise import tokenise

        rows, _ = tokenise(data.load(resolved).train, built.tokenizer, kind="causal", max_length=64, loss_mask="answer")
        stream = Stream(rows, resolved.batch, 0)
        found.append([step.loss for step in training.steps(built, stream, resolved, training.start(built, resolved))])
    assert found[0][0] == found[1][0]  # B is zero at the start: dropout changes only the gradient
    assert found[0][1:] != found[1][1:]


def test_the_same_seed_repeats_everything(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 2})
    run(folder, tmp_path / "one", seed=3)
    run(folder, tmp_path / "two", seed=3)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")


@pytest.mark.parametrize(
    "changes",
    [
        {"train__eval_steps": 1},
        {"train__eval_steps": 2, "generation__do_sample": True},
        {"train__evaluate": "none"},
        {"save__save_steps": 1},
    ],
)
def test_evaluating_more_or_less_often_leaves_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = toy.write_experiment(tmp_path)
    plain = run(folder, tmp_path / "plain")
    other = run(folder, tmp_path / "other", **changes)
    assert adapter_bytes(tmp_path / "plain", plain) == adapter_bytes(tmp_path / "other", other)
    assert plain.curve["loss"] == other.curve["loss"]


def test_a_run_beside_another_leaves_its_bytes(tmp_path: Path) -> None:
    """Two runs interleaved step by step in one process: neither sees the other's random numbers."""
    one = toy.write_experiment(tmp_path, name="lora/one")
    two = toy.write_experiment(tmp_path, name="lora/two", optim={"learning_rate": 3e-3})
    alone = run(one, tmp_path / "alone")
    first = runs.events(loading.load(one), RunStore(tmp_path / "beside"))
    second = runs.events(loading.load(two), RunStore(tmp_path / "second"))
    record = None
    for event in first:
        next(second, None)
        if isinstance(event, Finished):
            record = event.record
    second.close()  # type: ignore[attr-defined]
    assert record is not None
    assert adapter_bytes(tmp_path / "beside", record) == adapter_bytes(tmp_path / "alone", alone)


# ---------------------------------------------------------------------------------------------- evaluations made later


@pytest.mark.parametrize("method", ["lora", "full"])
def test_train_now_evaluate_later_equals_one_go(tmp_path: Path, method: str) -> None:
    adapter = toy.LORA if method == "lora" else None
    folder = toy.write_experiment(tmp_path, adapter=adapter, train={"eval_steps": 3})
    run(folder, tmp_path / "whole")
    bare = run(folder, tmp_path / "later", train__evaluate="none")
    assert bare.evaluations == ()
    evaluate(bare.key[:8], tmp_path / "later")
    whole, later = outcome(tmp_path / "whole"), outcome(tmp_path / "later")
    assert later["record"] == whole["record"]
    kept = {name: content for name, content in later["files"].items() if not name.startswith("snapshots")}
    assert kept == whole["files"]


def test_a_named_checkpoint_is_evaluated(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 2, "evaluate": "none"})
    record = run(folder, tmp_path / "results")
    completed = evaluate(record.key, tmp_path / "results", checkpoint="4")
    assert [found.checkpoint for found in completed.evaluations if found.part == "test"] == ["base", 4]
    with pytest.raises(UserError, match="no weights of step 5"):
        evaluate(record.key, tmp_path / "results", checkpoint="5")


def test_another_task_on_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    record = run(folder, tmp_path / "results")
    other = toy.write_task(tmp_path / "other", test=7)
    monkeypatch.setattr(training, "steps", trains_nothing)
    completed = evaluate("lora/toy", tmp_path / "results", task=str(other))
    assert completed.key == record.key and completed.task == record.task
    assert [found.num_items for found in completed.evaluations if found.num_items == 7] == [7, 7]
    with pytest.raises(UserError, match=r"optim.learning_rate belongs to the training"):
        evaluate("lora/toy", tmp_path / "results", overrides={"optim.learning_rate": 1.0})


def test_a_bare_model_is_scored_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    resolved = loading.load(folder)
    record = run(folder, tmp_path / "results")
    overrides = {"batch.per_device_eval_batch_size": 5}
    monkeypatch.setattr(evaluation, "score", trains_nothing)
    found = list(
        evaluating.evaluate(
            resolved.model.id,
            RunStore(tmp_path / "results"),
            task=str(folder.parents[2] / "task-generate/toy.yaml"),
            overrides=overrides,
        )
    )
    assert isinstance(found[-1], Evaluated) and found[-1].reused
    assert found[-1].evaluation.metrics == record.evaluation("base").metrics  # type: ignore[union-attr]


def test_what_is_scored_is_the_adapter_as_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that loses the weights shows in the score, not only in the file."""
    folder = toy.write_experiment(tmp_path, optim={"learning_rate": 0.3})
    honest = run(folder, tmp_path / "honest")
    original = weights.save

    def lossy(built: models.Built, target: Path) -> None:
        kept = {name: parameter.detach().clone() for name, parameter in built.trainable().items()}
        for parameter in built.trainable().values():
            parameter.data.zero_()
        original(built, target)
        for name, parameter in built.trainable().items():
            parameter.data.copy_(kept[name])

    monkeypatch.setattr(weights, "save", lossy)
    lost = run(folder, tmp_path / "lost")
    samples = [_samples(tmp_path / name, record, "last") for name, record in (("honest", honest), ("lost", lost))]
    assert samples[0] != samples[1]
    base = _samples(tmp_path / "lost", lost, "base")
    assert [s["prediction"] for s in samples[1]] == [s["prediction"] for s in base]


def _samples(results: Path, record: Record, role: str) -> list[Any]:
    found = record.evaluation(role)
    assert found is not None and found.folder is not None
    root = results if role == "base" else RunStore(results).folder_of(record)
    return [json.loads(line) for line in (root / found.folder / "samples.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- best, early stopping


@pytest.mark.parametrize(("metric", "sign"), [("exact_match", 1), ("exact_match_flexible", -1)])
def test_best_checkpoint_and_early_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, sign: int
) -> None:
    """The first of the best by the named metric and its direction; the weights of that step are the result."""
    metrics = {"exact_match": "higher", "exact_match_flexible": "lower"}
    folder = toy.write_experiment(tmp_path, task=toy.write_task(tmp_path / "task", metrics=metrics))
    scores = iter([0.2, 0.6, 0.5, 0.6, 0.1, 0.9])
    original = grading.graded

    def graded(task: Any, examples: Any, *more: Any) -> Any:
        found = yield from original(task, examples, *more)
        if len(examples) == 8:
            found.metrics[metric] = found.metrics[metric].model_copy(update={"mean": sign * next(scores)})
        return found

    monkeypatch.setattr(grading, "graded", graded)
    record = run(
        folder,
        tmp_path / "results",
        train__max_steps=12,
        train__eval_steps=2,
        train__load_best_model_at_end=True,
        train__metric_for_best_model=metric if sign < 0 else None,
        train__early_stopping_patience=2,
    )
    assert record.training["stopped_early"] == 8 and record.training["step"] == 4 and record.training["role"] == "best"
    best = record.evaluation("best")
    assert best is not None and best.checkpoint == 4
    assert record.curve["step"][-1] == 8
    payload = RunStore(tmp_path / "results").folder_of(record)
    kept = [payload / place for place in ("adapter", "snapshots/step-000004", "snapshots/step-000008")]
    result, fourth, last = ((folder / "adapter_model.safetensors").read_bytes() for folder in kept)
    assert result == fourth != last


def test_steering_puts_validation_into_the_key(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, train={"eval_steps": 2, "load_best_model_at_end": True})
    plain = loading.load(folder)
    assert plain.train_key != loading.load(folder, overrides={"generation.max_new_tokens": 3}).train_key
    assert plain.train_key != loading.load(folder, overrides={"data.valid_rows": 3}).train_key
    assert plain.train_key == loading.load(folder, overrides={"data.test_rows": 3}).train_key


# -------------------------------------------------------------------------------------------- endings, aliases, guards


def test_closing_the_generator_early_is_cancelled_and_resumes(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 5:
            break
    events.close()  # type: ignore[attr-defined]
    [stopped] = RunStore(tmp_path / "results").records()
    assert (stopped.status, "closed before its end" in (stopped.error or "")) == ("cancelled", True)
    assert run(folder, tmp_path / "results").status == "finished"
    run(folder, tmp_path / "whole")
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


def test_out_of_memory_on_step_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    original = training.forward

    def no_room(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: tried 99 bytes")

    monkeypatch.setattr(training, "forward", no_room)
    with pytest.raises(RuntimeError):
        run(folder, tmp_path / "results")
    [stopped] = RunStore(tmp_path / "results").records()
    assert stopped.status == "out_of_memory"
    monkeypatch.setattr(training, "forward", original)
    assert run(folder, tmp_path / "results").status == "finished"


def test_the_longest_batch_is_tried_before_step_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in generation shows at once, and not after the training."""
    folder = toy.write_experiment(tmp_path)
    from peftlab.scores import generation

    original = generation.generate
    lengths = []

    def no_room(session: Any, prompts: Any, options: Any, **more: Any) -> Any:
        if options.get("full_length"):
            lengths.append(max(len(prompt.token_ids) for prompt in prompts))
            raise MemoryError("no room")
        return original(session, prompts, options, **more)

    monkeypatch.setattr(generation, "generate", no_room)
    run(folder, tmp_path / "results", train__evaluate="none")  # no rehearsal without evaluation
    with pytest.raises(MemoryError):
        run(folder, tmp_path / "results", optim__learning_rate=5e-3)
    longest = max(len(row["question"]) + 2 for row in toy.rows(12, 900))
    assert lengths == [longest]
    stopped = [record for record in RunStore(tmp_path / "results").records() if record.status != "finished"]
    assert [record.status for record in stopped] == ["out_of_memory"] and stopped[0].curve.get("step", []) == []


def test_divergence_is_recorded_as_failed(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, optim={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0.0})
    with pytest.raises(UserError, match="became"):
        run(folder, tmp_path / "results")
    [record] = RunStore(tmp_path / "results").records()
    assert record.status == "failed" and "became" in (record.error or "")


def test_a_second_folder_with_the_same_identity_is_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = toy.write_experiment(tmp_path, name="lora/one"), toy.write_experiment(tmp_path, name="lora/two")
    first = run(one, tmp_path / "results")
    monkeypatch.setattr(training, "steps", trains_nothing)
    second = run(two, tmp_path / "results")
    assert second.key == first.key and second.experiment == "lora/one" and second.aliases == ("lora/two",)


def test_clean_removes_the_weights_and_later_verbs_say_so(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    record = run(folder, tmp_path / "results", options=Options(clean=True))
    payload = RunStore(tmp_path / "results").folder_of(record)
    assert not (payload / "adapter").exists() and (payload / "curve.jsonl").exists()
    with pytest.raises(UserError, match="cleaned"):
        evaluate(record.key, tmp_path / "results", overrides={"generation.max_new_tokens": 2})


def test_other_rows_under_the_same_key_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub data set without a pinned revision changed under a run: going on with other rows is refused."""
    folder = toy.write_experiment(tmp_path)
    mirror = tmp_path / "task-generate"
    entry = {"folder": ".", "splits": {name: f"{name}.jsonl" for name in ("train", "valid", "test")}, "partial": []}
    (mirror / "mirror.json").write_text(json.dumps({"some/sums": entry}))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(mirror))
    plain = json.loads((mirror / "toy.yaml").read_text())
    plain |= {part: {"dataset": "some/sums", "split": part} for part in ("train", "valid", "test")}
    (mirror / "sums.yaml").write_text(json.dumps(plain))
    resolved = loading.load(folder, task=str(mirror / "sums.yaml"))
    events = runs.events(resolved, RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Saved):
            break
    events.close()  # type: ignore[attr-defined]
    lines = (mirror / "train.jsonl").read_text().splitlines()
    (mirror / "train.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match=r"other rows: train changed"):
        runs.run(resolved, RunStore(tmp_path / "results"))


def test_a_checkpoint_of_other_versions_is_refused_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.write_experiment(tmp_path)
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Saved):
            break
    events.close()  # type: ignore[attr-defined]
    original = checkpoint.environment
    monkeypatch.setattr(checkpoint, "environment", lambda *a: {**original(*a), "versions": {"torch": "9.9"}})
    with pytest.raises(UserError, match=r"(?s)torch .* \(now 9.9\).*any-environment"):
        run(folder, tmp_path / "results")
    assert run(folder, tmp_path / "results", options=Options(any_environment=True)).status == "finished"


def test_a_corrupt_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 5:
            break
    events.close()  # type: ignore[attr-defined]
    [payload] = (path for path in (tmp_path / "cancelled_results").iterdir() if path.is_dir())
    newest = payload / "checkpoints" / "step-000004" / checkpoint.TENSORS_FILE
    newest.write_bytes(newest.read_bytes()[:-7] + b"\0" * 7)
    again = list(runs.events(loading.load(folder), RunStore(tmp_path / "results")))
    [started] = [event for event in again if isinstance(event, Started)]
    assert started.step == 2 and "step-000004 is damaged" in started.notes[0]
    run(folder, tmp_path / "whole")
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


def test_a_full_disk_during_a_checkpoint_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toy.write_experiment(tmp_path)
    original = checkpoint.save_file  # type: ignore[attr-defined]
    calls = []

    def full(tensors: Any, path: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run(folder, tmp_path / "results")
    [record] = RunStore(tmp_path / "results").records()
    assert record.status == "failed" and "No space left" in (record.error or "")
    again = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    assert [event.step for event in again if isinstance(event, Started)] == [2]
    run(folder, tmp_path / "whole")
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


def test_a_classifier_trains_and_saves_its_head(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]}
    for architecture in toy.ENCODERS:
        root = tmp_path / architecture
        folder = toy.write_experiment(root, architecture=architecture, adapter=adapter, train={"max_steps": 12})
        record = run(folder, root / "results")
        assert record.before_reason is not None and record.evaluation("base") is None
        assert "new classification head" in record.before_reason
        found = record.evaluation("last")
        assert found is not None and "baseline_majority_class" in found.baselines
        built = weights.load_trained(loading.load(folder), RunStore(root / "results").folder_of(record) / "adapter")
        fresh = models.load(loading.load(folder).model, "classify", labels=("even", "odd"))
        saved = built.model.state_dict().items()
        heads = [value for name, value in saved if "modules_to_save" in name and value.ndim == 2]
        assert heads and not any(
            head.shape == other.shape and (head == other).all()
            for head in heads
            for other in fresh.model.state_dict().values()
        )


@pytest.mark.parametrize("architecture", toy.CAUSAL)
@pytest.mark.parametrize("pad", ["<eos>", None])
def test_every_architecture_runs_and_resumes(tmp_path: Path, architecture: str, pad: str | None) -> None:
    adapter = {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "target_modules": toy.LINEARS[architecture]}
    folder = toy.write_experiment(tmp_path, architecture=architecture, adapter=adapter, pad=pad)
    run(folder, tmp_path / "whole")
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    run(folder, tmp_path / "results")
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("architecture", toy.ENCODERS)
def test_classifiers_resume(tmp_path: Path, architecture: str) -> None:
    adapter = {"peft_type": "LORA", "r": 4, "lora_dropout": 0.1, "target_modules": ["query", "value"]}
    folder = toy.write_experiment(tmp_path, architecture=architecture, adapter=adapter)
    run(folder, tmp_path / "whole")
    events = runs.events(loading.load(folder), RunStore(tmp_path / "results"))
    for event in events:
        if isinstance(event, Step) and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    run(folder, tmp_path / "results")
    assert outcome(tmp_path / "results") == outcome(tmp_path / "whole")


def test_the_json_of_a_record_reads_back(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    record = run(folder, tmp_path / "results")
    text = record_file(tmp_path / "results").read_text()
    assert from_json(text, where="the record") == record
    assert "cost" not in without_times(json.loads(text))
