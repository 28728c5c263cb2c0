"""The loop against independent references: transformers' Trainer, the library's own loss, and itself cut otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import toy
from peftlab.config import loading
from peftlab.config.groups import BatchSettings, OptimSettings
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Step
from peftlab.loop import optim, training
from peftlab.loop.loss import from_logits
from peftlab.modelling import adapting, bookkeeping, models
from peftlab.rows import data, tokenise
from peftlab.rows.batching import IGNORE, Batch, Stream, collate
from peftlab.rows.tokenise import TokenRow


def prepared(folder: Path, **overrides: Any) -> tuple[RunSpec, models.Built, list[TokenRow]]:
    resolved = loading.load(folder, overrides=overrides)
    base = models.load(resolved.model, models.kind_of(resolved), labels=resolved.task.labels, seed=resolved.seed)
    built = adapting.adapt(base, resolved)
    rows, _ = tokenise.tokenise(
        data.load(resolved).train,
        built.tokenizer,
        kind=built.kind,
        max_length=resolved.data.max_length,
        loss_mask=resolved.data.loss_mask,
    )
    return resolved, built, list(rows)


def train(folder: Path, **overrides: Any) -> tuple[list[Step], models.Built]:
    resolved, built, rows = prepared(folder, **overrides)
    stream = Stream(rows, resolved.batch, resolved.seed)
    return list(training.steps(built, stream, resolved, training.start(built, resolved))), built


def losses(steps: list[Step]) -> list[float]:
    return [step.loss for step in steps]


# ------------------------------------------------------------------------------------------------ parity with Trainer


class _InOrder(Trainer):  # type: ignore[misc]
    """Trainer that keeps the order of its rows."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def by_trainer(folder: Path, tmp_path: Path, steps: int) -> tuple[list[float], models.Built]:
    """Losses and model of transformers.Trainer from the same start, over the same rows in the same batches."""
    resolved, built, rows = prepared(folder)
    stream = Stream(rows, resolved.batch, resolved.seed)
    ordered = [row for _ in range(steps) for micro in next(stream).micro_batches for row in micro]

    def collated(chosen: list[TokenRow]) -> Mapping[str, Any]:
        batch = collate(chosen, pad_id=built.pad_id)
        plain = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.type_ids is not None:
            plain["token_type_ids"] = batch.type_ids
        return {**plain, "labels": batch.classes if batch.classes is not None else batch.labels}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=resolved.batch.per_device_train_batch_size,
        gradient_accumulation_steps=resolved.batch.gradient_accumulation_steps,
        max_steps=steps,
        learning_rate=resolved.optim.learning_rate,
        weight_decay=resolved.optim.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=optim.warmup_steps(resolved.optim, steps),
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = _InOrder(model=built.model, args=arguments, train_dataset=ordered, data_collator=collated)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], built


CASES: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {**toy.LORA, "lora_dropout": 0.0}},
    "full": {"adapter": None},
    "classifier": {
        "architecture": "bert",
        "adapter": {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"]},
    },
    "lora accumulated": {
        "adapter": {**toy.LORA, "lora_dropout": 0.0},
        "batch": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_equal_transformers_trainer(tmp_path: Path, case: str) -> None:
    folder = toy.write_experiment(tmp_path, train={"max_steps": 20}, optim={"learning_rate": 3e-3}, **CASES[case])
    ours = losses(train(folder)[0])
    theirs, _ = by_trainer(folder, tmp_path / "trainer", 20)
    assert len(ours) == len(theirs) == 20
    assert len(set(ours)) == 20
    assert ours == pytest.approx(theirs, rel=1e-5)


CLASSIFIERS: dict[str, Any] = {
    "biases and head": {"peft_type": "LORA", "r": 4, "target_modules": ["query", "value"], "bias": "all"},
    "all weights": None,
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_biases_and_norms_are_exempt_from_decay_as_there(tmp_path: Path, case: str) -> None:
    """Every tensor ends where the Trainer's ends; without the exemption biases and norms do not."""
    settings = {"learning_rate": 3e-3, "weight_decay": 0.1, "decay_exempt": "bias_and_norm"}
    folder = toy.write_experiment(
        tmp_path, architecture="bert", adapter=CLASSIFIERS[case], train={"max_steps": 20}, optim=settings
    )
    losses_there, there = by_trainer(folder, tmp_path / "trainer", 20)
    steps, exempt = train(folder)
    _, decayed = train(folder, **{"optim.decay_exempt": "none"})
    assert losses(steps) == pytest.approx(losses_there, rel=1e-5)
    moved = set()
    for name, parameter in there.trainable().items():
        assert torch.allclose(exempt.trainable()[name], parameter, rtol=1e-4, atol=2e-5), name
        if not torch.allclose(decayed.trainable()[name], parameter, rtol=1e-4, atol=2e-5):
            moved.add(name)
    assert [name for name in moved if "bias" in name or "LayerNorm" in name]


# ----------------------------------------------------------------------------------------- what must not change a loss


def test_accumulation_does_not_change_the_result(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, adapter={**toy.LORA, "lora_dropout": 0.0}, train={"max_steps": 12})
    whole = losses(train(folder, **{"batch.per_device_train_batch_size": 8})[0])
    half = losses(train(folder, **{"batch.gradient_accumulation_steps": 2})[0])
    assert half == pytest.approx(whole, rel=1e-5)  # 4 x 2 equals 8 x 1
    cut = losses(train(folder, **{"batch.per_device_train_batch_size": 2, "batch.gradient_accumulation_steps": 4})[0])
    assert cut == pytest.approx(whole, rel=1e-5)


def one_loss(built: models.Built, rows: list[TokenRow]) -> list[float]:
    built.model.eval()
    with torch.no_grad():
        batch = collate(rows, pad_id=built.pad_id)
        return [
            float(from_logits(training.forward(built, one).logits[index : index + 1], _row_of(one, index)).total)
            for one in [batch]
            for index in range(len(rows))
        ]


def _row_of(batch: Batch, index: int) -> Batch:
    rows: dict[str, Any] = {
        name: value[index : index + 1] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    return dataclasses.replace(batch, **rows)


@pytest.mark.parametrize("architecture", [*toy.CAUSAL, *toy.ENCODERS])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
def test_a_row_weighs_the_same_alone_and_in_any_batch(tmp_path: Path, architecture: str, pad: str | None) -> None:
    """Neither padding, nor neighbours, nor the order in the batch change a row's loss."""
    if architecture in toy.ENCODERS and pad != "<pad>":
        pytest.skip("these encoders count positions by their own pad token")
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": toy.LINEARS[architecture]}
    folder = toy.write_experiment(tmp_path, architecture=architecture, adapter=adapter, pad=pad)
    _, built, rows = prepared(folder)
    chosen = sorted(rows[:6], key=lambda row: len(row.ids))
    assert len(chosen[0].ids) < len(chosen[-1].ids)
    alone = [one_loss(built, [row])[0] for row in chosen]
    assert one_loss(built, chosen) == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert one_loss(built, chosen[::-1]) == pytest.approx(alone[::-1], rel=1e-4, abs=1e-5)


def test_padding_never_enters_the_loss(tmp_path: Path) -> None:
    """Whatever stands under the padding, logits there have no gradient."""
    rows = [
        TokenRow(item="a", ids=(5, 6, 7, 8, 1), labels_from=2, has_eos=True, truncated=False),
        TokenRow(item="b", ids=(5, 6, 1), labels_from=1, has_eos=True, truncated=False),
    ]
    batch = collate(rows, pad_id=1)
    logits = torch.randn(2, 5, toy.SIZE, requires_grad=True)
    from_logits(logits, batch).total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, True, False], [True, True, False, False, False]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]  # the EOS is text, also as padding
    assert batch.labels is not None and batch.labels.tolist()[1] == [IGNORE, 6, 1, IGNORE, IGNORE]


def test_eos_weight(tmp_path: Path) -> None:
    """Hand-worked: the weighted mean of the token losses, the EOS at half weight."""
    rows = [
        TokenRow(item="a", ids=(5, 6, 1), labels_from=1, has_eos=True, truncated=False),
        TokenRow(item="b", ids=(5, 6, 7, 8), labels_from=2, has_eos=False, truncated=True),
    ]
    batch = collate(rows, pad_id=0, eos_weight=0.5)
    logits = torch.randn(2, 4, toy.SIZE)
    expected = torch.log_softmax(logits, -1)
    picked = [-expected[0, 0, 6], -0.5 * expected[0, 1, 1], -expected[1, 1, 7], -expected[1, 2, 8]]
    found = from_logits(logits, batch)
    assert float(found.total) == pytest.approx(float(sum(picked)), rel=1e-6)
    assert (batch.weight, found.count) == (3.5, 4)
    assert float(found.unweighted) == pytest.approx(float(picked[0] + 2 * picked[1] + picked[2] + picked[3]), rel=1e-6)


def test_segments_of_a_pair_reach_the_model(tmp_path: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 4, "target_modules": ["query"]}
    _, built, rows = prepared(toy.write_experiment(tmp_path, architecture="bert", adapter=adapter))
    one = dataclasses.replace(rows[0], type_ids=(0,) * len(rows[0].ids))
    two = dataclasses.replace(rows[0], type_ids=(0,) * (len(rows[0].ids) - 1) + (1,))
    built.model.eval()
    with torch.no_grad():
        logits = training.forward(built, collate([one, two], pad_id=built.pad_id)).logits
    assert not torch.allclose(logits[0], logits[1])


def test_trimmed_logits_give_the_same_loss(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    _, built, rows = prepared(folder)
    batch = collate(rows[:4], pad_id=built.pad_id)
    built.model.eval()
    with torch.no_grad():
        trimmed = training.forward(built, batch).logits
        whole = training.forward(built, batch, labelled=True)
    assert trimmed.shape[1] == batch.keep < whole.logits.shape[1]
    ours = from_logits(trimmed, batch)
    assert float(ours.total) == pytest.approx(float(from_logits(whole.logits, batch).total), rel=1e-6)
    assert float(ours.total) / ours.count == pytest.approx(float(whole.loss), rel=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_amp_on_and_off_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    """A run with autocast leaves nothing behind for the next one, and scales no gradient that is clipped."""
    original, seen = training.forward, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((outputs := original(*args, **kwargs)).logits.dtype)
        return outputs

    monkeypatch.setattr(training, "forward", watched)
    folder = toy.write_experiment(tmp_path)
    plain, _ = train(folder)
    mixed, _ = train(folder, **{"train.mixed_precision": precision})
    again, _ = train(folder)
    assert seen == [torch.float32] * 6 + [dtype] * 6 + [torch.float32] * 6
    assert losses(plain) == losses(again)
    assert losses(mixed) == pytest.approx(losses(plain), rel=0.05)
    assert [step.grad_norm for step in mixed] == pytest.approx([step.grad_norm for step in plain], rel=0.3)
    resolved, built, _ = prepared(folder, **{"train.mixed_precision": precision})
    assert training.start(built, resolved).scaler.is_enabled() is (precision == "fp16")


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    steps, built = train(folder, **{"model.gradient_checkpointing": True})
    assert all(layer.gradient_checkpointing for layer in built.model.modules() if hasattr(layer, "self_attn"))
    assert losses(steps) == pytest.approx(losses(train(folder)[0]), rel=1e-6)


# ------------------------------------------------------------------------------------------------------ own objectives


def test_a_methods_own_term_is_found_trained_and_reported_apart(tmp_path: Path) -> None:
    """AdaLoRA's orthogonality term exists only in a labelled loss; value by the formula of its model's forward."""
    folder = toy.write_experiment(
        tmp_path, adapter=ADALORA, batch={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    )
    resolved, built, rows = prepared(folder)
    batches = [collate(micro, pad_id=built.pad_id) for micro in next(Stream(rows, resolved.batch, 0)).micro_batches]
    sums = [from_logits(training.forward(built, batch).logits, batch) for batch in batches]
    task = torch.stack([found.total for found in sums]).sum() / sum(found.count for found in sums)
    own = _orthogonality(built.model)
    gradients = torch.autograd.grad(task + own, list(built.trainable().values()))
    state = training.start(built, resolved)
    step = next(training.steps(built, Stream(rows, resolved.batch, 0), resolved, state))
    assert state.own_objective is True
    assert step.method_loss == pytest.approx(own.item(), rel=1e-4)
    assert step.loss == pytest.approx(task.item(), rel=1e-5)
    assert step.grad_norm == pytest.approx(float(torch.cat([one.flatten() for one in gradients]).norm()), rel=1e-4)
    plain, _ = train(toy.write_experiment(tmp_path / "plain"))
    assert all(found.method_loss is None for found in plain)


ADALORA = {
    "peft_type": "ADALORA",
    "init_r": 4,
    "target_r": 2,
    "tinit": 2,
    "tfinal": 2,
    "target_modules": ["q_proj"],
}


def _orthogonality(model: Any) -> torch.Tensor:
    norms = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append(torch.norm(gram - torch.eye(len(gram)), p="fro"))
    return 0.5 * torch.stack(norms).mean()


def test_a_method_that_reallocates_is_told_of_each_step(tmp_path: Path) -> None:
    """AdaLoRA cuts its ranks to the target: two layers of four, two left of each on average."""
    _, built = train(toy.write_experiment(tmp_path, adapter={**ADALORA, "tinit": 1, "tfinal": 2, "deltaT": 1}))
    ranks = [int((value != 0).sum()) for name, value in built.trainable().items() if "lora_E" in name]
    assert len(ranks) == 2 and sum(ranks) == 4


# ------------------------------------------------------------------------------------------------------------- guards


def test_nan_ends_the_run(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, optim={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0.0})
    with pytest.raises(training.Diverged, match=r"gradient norm became \w+ at step"):
        train(folder)
    resolved, built, rows = prepared(folder)
    with torch.no_grad():
        list(built.trainable().values())[-1].fill_(math.nan)
    with pytest.raises(training.Diverged, match="the loss became nan at step 1"):
        next(training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved)))


def test_a_trainable_tensor_without_gradient_is_an_error(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    resolved, built, rows = prepared(folder)
    built.model.register_parameter("unused", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(UserError, match=r"no gradient.*unused"):
        next(training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved)))


def test_nothing_frozen_moves_and_what_moves_is_found(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    resolved, built, rows = prepared(folder)
    reference = bookkeeping.take_reference(built)
    list(training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved)))
    assert bookkeeping.moved_base_weights(built, reference) == []
    name = next(iter(built.base_names))
    with torch.no_grad():
        dict(built.model.named_parameters())[name].view(-1)[0] += 1e-3
    assert bookkeeping.moved_base_weights(built, reference) == [name]
    assert list(bookkeeping.changed_tensors(built, reference)) == [name]


def test_every_step_trains_in_train_mode_whatever_the_caller_did(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    resolved, built, rows = prepared(folder)
    found = []
    for step in training.steps(built, Stream(rows, resolved.batch, 0), resolved, training.start(built, resolved)):
        found.append(step)
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        built.model.eval()
        torch.rand(3)
    assert losses(found) == losses(train(folder)[0])


# ----------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedules_equal_transformers(kind: str) -> None:
    from transformers import get_scheduler

    settings = OptimSettings(learning_rate=0.1, lr_scheduler_type=kind, warmup_steps=0.15)  # type: ignore[arg-type]
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=math.ceil(0.15 * 30), num_training_steps=30)
    for step in range(1, 31):
        assert optim.learning_rate(settings, step, 30) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_optimizer_by_name() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(2))}
    built = optim.build(
        parameters, OptimSettings(optimizer="SGD", learning_rate=0.5, optimizer_kwargs={"momentum": 0.9})
    )
    assert isinstance(built, torch.optim.SGD) and built.param_groups[0]["momentum"] == 0.9
    with pytest.raises(UserError, match="did you mean 'AdamW'"):
        optim.build(parameters, OptimSettings(optimizer="AdamWW"))
    with pytest.raises(UserError, match="refuses its arguments"):
        optim.build(parameters, OptimSettings(optimizer_kwargs={"beta": 1}))


# --------------------------------------------------------------------------------------------------------------- order


def rows_of(lengths: list[int]) -> list[TokenRow]:
    return [
        TokenRow(item=str(index), ids=tuple(range(size)), labels_from=0, has_eos=False, truncated=False)
        for index, size in enumerate(lengths)
    ]


Settings = Callable[..., BatchSettings]


@pytest.mark.parametrize("order", ["bucketed", "shuffled", "file"])
@pytest.mark.parametrize("count", [1, 7, 40, 83])
def test_every_row_once_an_epoch_tail_included(order: Any, count: int) -> None:
    settings = BatchSettings(per_device_train_batch_size=4, bucket_batches=3, order=order)
    stream = Stream(rows_of([index % 11 + 1 for index in range(count)]), settings, seed=3)
    seen: list[str] = []
    while stream.epoch < 2:
        seen += [row.item for micro in next(stream).micro_batches for row in micro]
    first, second = seen[:count], seen[count:]
    assert sorted(first, key=int) == sorted(second, key=int) == [str(index) for index in range(count)]
    assert order == "file" or count < 20 or first != second


def test_buckets_are_sorted_longest_first_and_steps_do_not_depend_on_accumulation() -> None:
    lengths = [index * 37 % 101 + 1 for index in range(100)]
    one = Stream(rows_of(lengths), BatchSettings(per_device_train_batch_size=8, bucket_batches=3), seed=0)
    cut = BatchSettings(per_device_train_batch_size=2, gradient_accumulation_steps=4, bucket_batches=3)
    two = Stream(rows_of(lengths), cut, seed=0)
    for index in range(12):
        whole = [row.item for row in next(one).micro_batches[0]]
        parts = next(two).micro_batches
        assert [row.item for micro in parts for row in micro] == whole
        sizes = [lengths[int(item)] for item in whole]
        assert sizes == sorted(sizes, reverse=True), index


def test_ranks_share_each_step_without_a_row_lost_or_doubled() -> None:
    rows = rows_of([index % 9 + 1 for index in range(45)])
    settings = BatchSettings(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    streams = [Stream(rows, settings, seed=1, rank=rank, world_size=3) for rank in range(3)]
    seen = [row.item for _ in range(4) for stream in streams for micro in next(stream).micro_batches for row in micro]
    assert sorted(map(int, seen)) == list(range(45))


def test_the_position_is_restored() -> None:
    settings = BatchSettings(per_device_train_batch_size=4)
    rows = rows_of([index % 9 + 1 for index in range(18)])
    whole = Stream(rows, settings, seed=5)
    expected = [next(whole) for _ in range(12)]
    for stop in range(12):
        first, later = Stream(rows, settings, seed=5), Stream(rows, settings, seed=5)
        begun = [next(first) for _ in range(stop)]
        later.restore(first.state())
        assert begun + [next(later) for _ in range(12 - stop)] == expected
