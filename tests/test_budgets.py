"""Budgets by steps, passes, rows and tokens; when validations and checkpoints fall due."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from peftlab.config import loading
from peftlab.config.groups import BatchSettings, TrainSettings
from peftlab.config.settings import validated
from peftlab.errors import UserError
from peftlab.events import Evaluated, Event, Saved, Started, Step
from peftlab.job import runs
from peftlab.records.store import RunStore
from peftlab.rows.batching import Stream, total_steps
from peftlab.rows.tokenise import TokenRow

BATCH = BatchSettings(per_device_train_batch_size=4, order="file")


def rows(lengths: list[int]) -> list[TokenRow]:
    return [
        TokenRow(item=str(index), ids=tuple(range(length)), labels_from=1, has_eos=True, truncated=False)
        for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": 1.0}, 3),  # 10 rows in steps of 4: 4, 4, 2
        ({"num_train_epochs": 2.0}, 6),
        ({"num_train_epochs": 1.5}, 5),  # a pass, then 5 rows: 4 and 4
        ({"num_train_epochs": 0.1}, 1),
        ({"max_train_samples": 8}, 2),
        ({"max_train_samples": 10}, 3),
        ({"max_train_samples": 11}, 4),
        ({"max_train_tokens": 1}, 1),
        ({"max_train_tokens": 40}, 1),  # each row has 10 tokens
        ({"max_train_tokens": 41}, 2),
        ({"max_train_tokens": 100}, 3),
        ({"max_train_tokens": 101}, 4),
    ],
)
def test_steps_of_a_budget(budget: dict[str, Any], steps: int) -> None:
    assert total_steps(rows([10] * 10), BATCH, TrainSettings(**budget)) == steps


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    batch=st.integers(1, 7),
    samples=st.integers(1, 120),
    tokens=st.integers(1, 900),
)
def test_a_budget_is_reached_and_not_passed_by_a_step(
    lengths: list[int], batch: int, samples: int, tokens: int
) -> None:
    """Against a plain walk over the stream."""
    made = rows(lengths)
    how = BatchSettings(per_device_train_batch_size=batch)
    for budget, limit in (
        (TrainSettings(max_train_samples=samples), samples),
        (TrainSettings(max_train_tokens=tokens), tokens),
    ):
        stream, seen, steps = Stream(made, how, 0), 0, 0
        while seen < limit:
            taken = [row for micro in next(stream).micro_batches for row in micro]
            seen += len(taken) if budget.max_train_samples else sum(len(row.ids) for row in taken)
            steps += 1
        assert total_steps(made, how, budget) == steps


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 5, "num_train_epochs": 1.0}, "one budget"),
        ({"num_train_epochs": 1.0, "max_train_tokens": 5}, "one budget"),
        ({"max_steps": None}, "one budget"),
        ({"num_train_epochs": 0.0}, "greater than 0"),
        ({"eval_steps": 2, "total_eval_times": 3}, "two ways"),
        ({"eval_strategy": "epoch", "eval_steps": 2}, "leave eval_steps out"),
        ({"eval_strategy": "no", "eval_steps": 2, "load_best_model_at_end": True}, "need validations on the way"),
        ({"eval_strategy": "sometimes"}, "eval_strategy"),
    ],
)
def test_impossible_budgets(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validated(TrainSettings, values, where="here")


def events_of(tmp_path: Path, **groups: Any) -> list[Event]:
    folder = toy.write_experiment(tmp_path, **groups)
    parameters = json.loads((folder / "training_params.json").read_text())
    if any(name != "max_steps" and name in parameters["train"] for name in ("num_train_epochs", "max_train_tokens")):
        parameters["train"].pop("max_steps")
        (folder / "training_params.json").write_text(json.dumps(parameters))
    return list(runs.events(loading.load(folder), RunStore(tmp_path / "results")))


def test_two_passes_with_validations_and_checkpoints_at_their_ends(tmp_path: Path) -> None:
    """40 rows in steps of 4: a pass ends after steps 10 and 20."""
    found = events_of(
        tmp_path,
        train={"num_train_epochs": 2.0, "eval_strategy": "epoch"},
        save={"save_strategy": "epoch"},
    )
    steps = [event for event in found if isinstance(event, Step)]
    assert [event.step for event in steps if event.ends_epoch] == [10, 20] and steps[-1].step == 20
    assert steps[-1].learning_rate < steps[10].learning_rate, "the schedule ends with the budget"
    assert next(event for event in found if isinstance(event, Started)).max_steps == 20
    validated_at = [event.evaluation.checkpoint for event in found if isinstance(event, Evaluated)]
    assert validated_at == ["base", 10, 20, 20]
    assert [event.step for event in found if isinstance(event, Saved)] == [10]


def test_a_number_of_validations(tmp_path: Path) -> None:
    found = events_of(tmp_path, train={"max_steps": 7, "total_eval_times": 3})
    steps = [
        event.evaluation.checkpoint
        for event in found
        if isinstance(event, Evaluated) and event.evaluation.part == "valid"
    ]
    assert steps == [2, 5, 7]


def test_no_checkpoints_and_no_validations_when_not_wanted(tmp_path: Path) -> None:
    found = events_of(tmp_path, train={"eval_steps": 2, "eval_strategy": "no"}, save={"save_strategy": "no"})
    assert not [event for event in found if isinstance(event, Saved)]
    assert all(event.evaluation.part == "test" for event in found if isinstance(event, Evaluated))


def test_a_pass_too_short_for_its_validation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="larger than the 10 steps that the budget comes to"):
        events_of(tmp_path, train={"num_train_epochs": 1.0, "eval_steps": 11})


@pytest.mark.parametrize(("steps", "told"), [(9, True), (10, False)])
def test_a_budget_of_less_than_a_pass_says_that_nothing_is_validated(tmp_path: Path, steps: int, told: bool) -> None:
    """40 rows in steps of 4: without a validation there are no best weights to keep."""
    steered = {"max_steps": steps, "eval_strategy": "epoch", "load_best_model_at_end": True}
    events = runs.events(loading.load(toy.write_experiment(tmp_path, train=steered)), RunStore(tmp_path / "results"))
    found = list(events)
    (started,) = [event for event in found if isinstance(event, Started)]
    assert any("nothing is validated, and the last weights are kept" in note for note in started.notes) == told
    assert found[-1].record.training["role"] == ("last" if told else "best")  # type: ignore[union-attr]


def test_the_same_steps_under_two_names_train_the_same_weights(tmp_path: Path) -> None:
    """Ten steps are one pass over 40 rows in steps of 4."""
    losses = []
    for name, train in (("steps", {"max_steps": 10}), ("passes", {"num_train_epochs": 1.0})):
        found = events_of(tmp_path / name, train=train)
        losses.append([event.loss for event in found if isinstance(event, Step)])
    assert losses[0] == losses[1] and len(losses[0]) == 10
