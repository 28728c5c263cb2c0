"""Several answers to an item: how they are asked for, that all are kept and graded, and what pass@K makes of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.groups import GenerationSettings
from peftlab.errors import UserError
from peftlab.events import Evaluated
from peftlab.job import evaluating, regrading, runs
from peftlab.modelling import adapting, models
from peftlab.protocols import Example, Prediction
from peftlab.records.store import RunStore
from peftlab.scores import answering, grading, stored
from peftlab.scores.passing import pass_at_k

METRICS = {"exact_match": "higher", "pass@1": "higher", "pass@2": "higher", "pass@3_flexible": "higher"}
SAMPLED = {"do_sample": True, "num_return_sequences": 3}


@pytest.mark.parametrize("answers", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_in_which_one_passes(answers: int) -> None:
    """Equation 1 of Chen et al. 2021 against what it is: every way to draw k of the answers, counted."""
    for passed in range(answers + 1):
        for k in range(1, answers + 1):
            draws = list(itertools.combinations([number < passed for number in range(answers)], k))
            assert pass_at_k(answers, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


def test_pass_at_k_is_the_product_that_the_paper_computes() -> None:
    """Its stable form, 1 - prod(1 - k / i) for i from n - c + 1 to n (figure 3 of Chen et al. 2021)."""
    for answers, passed, k in ((100, 3, 10), (200, 150, 100), (200, 1, 1), (20, 20, 5), (10, 0, 10)):
        left = answers - passed
        expected = 1.0 if left < k else 1.0 - np.prod(1.0 - k / np.arange(left + 1, answers + 1))
        assert pass_at_k(answers, passed, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_by_hand() -> None:
    """C(n-c,k)/C(n,k) worked out: 1/2; 1 - 3/10; 1 - 6/15; 1 - 0; 0; and many answers lose nothing to rounding."""
    table = [(2, 1, 1, 0.5), (5, 2, 2, 0.7), (6, 2, 2, 0.6), (5, 4, 2, 1.0), (5, 0, 3, 0.0), (4, 1, 4, 1.0)]
    for answers, passed, k, expected in table:
        assert pass_at_k(answers, passed, k) == expected
    assert pass_at_k(1000, 1, 100) == 0.1


def rows(count: int) -> list[Example]:
    return [Example(item=str(number), prompt=f"{number} =", reference=str(number)) for number in range(count)]


def said(*texts: str) -> Prediction:
    first, *more = [Prediction(text=text, num_tokens=2) for text in texts]
    return Prediction(text=first.text, num_tokens=2, more=tuple(more))


def task_of(tmp_path: Path, **changes: Any) -> tasks.Task:
    return tasks.load(str(toy.write_task(tmp_path / "task", **{"metrics": METRICS, **changes})))


def test_an_item_counts_as_the_mean_of_its_answers(tmp_path: Path) -> None:
    """Of three answers one, none and two are right: 1/3, 0 and 2/3; one of two drawn is right in 2/3, 0 and 3/3."""
    task = task_of(tmp_path)
    answers = [said("0", "7", "8"), said("7", "7", "7"), said("2", "So it is 2", "3")]
    found = grading.grade(task, rows(3), answers)
    assert found.outcomes["exact_match"].tolist() == [1 / 3, 0, 1 / 3]
    assert found.outcomes["pass@1"].tolist() == pytest.approx([1 / 3, 0, 1 / 3])
    assert found.outcomes["pass@2"].tolist() == pytest.approx([2 / 3, 0, 2 / 3])
    assert found.outcomes["pass@3_flexible"].tolist() == [1, 0, 1]
    assert found.outcomes["exact_match_flexible"].tolist() == pytest.approx([1 / 3, 0, 2 / 3])
    assert found.metrics["pass@2"].standard_error == pytest.approx(np.std([2 / 3, 0, 2 / 3], ddof=1) / 3**0.5)
    assert (found.num_tokens, found.notes["answers"]) == (18, 9)
    assert found.notes["valid_answers"] == {"strict": 8, "flexible": 9}
    assert [stored.prediction(json.loads(json.dumps(one))) for one in found.samples] == answers
    grades = found.samples[2]["grades"]["flexible"]
    assert [one["score"] for one in (grades, *grades["more"])] == [1, 1, 0]


def test_more_answers_than_there_are_is_undefined(tmp_path: Path) -> None:
    found = grading.grade(task_of(tmp_path), rows(2), [said("0"), said("7")])
    assert list(found.metrics) == ["exact_match", "pass@1", "exact_match_flexible"]
    assert found.outcomes["pass@1"].tolist() == [1, 0]
    assert found.notes["undefined"] == ["pass@2", "pass@3_flexible"] and "answers" not in found.notes
    assert "more" not in found.samples[0]["prediction"] and "more" not in found.samples[0]["grades"]["strict"]


@pytest.mark.parametrize("name", ["pass@0", "pass@", "pass@2_unknown", "pass@2x", "pass@-1"])
def test_other_names_are_no_metric(tmp_path: Path, name: str) -> None:
    task = task_of(tmp_path, metrics={"exact_match": "higher", name: "higher"})
    with pytest.raises(UserError, match=f"unknown metric '{name}'"):
        tasks.measured_metrics(task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_return_sequences": 2}, "would all be equal: add do_sample=true"),
        ({"num_return_sequences": 5, "num_beams": 4}, "a search with 4 beams has no 5 answers"),
        ({"num_return_sequences": 0, "do_sample": True}, "greater than 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**settings)


def built_and_rows(tmp_path: Path, **generation: Any) -> tuple[Any, Any, list[Example]]:
    spec = loading.load(toy.write_experiment(tmp_path, adapter=None, generation={"max_new_tokens": 5, **generation}))
    built = adapting.adapt(models.load(spec.model, "causal"), spec)
    examples = [Example(item=text, prompt=text) for text in ("1 + 2 =", "12 + 30 =", "x" * 300, "7 =")]
    return built, spec, examples


def answered(made: Any) -> tuple[list[Prediction], int]:
    while True:
        try:
            next(made)
        except StopIteration as ended:
            predictions, cut = ended.value
            return predictions, cut


def test_sampled_answers_are_drawn_apart_whatever_the_batch(tmp_path: Path) -> None:
    built, spec, examples = built_and_rows(tmp_path, **SAMPLED, max_length=200)
    predictions, cut = answered(answering.answer(built, examples, spec, ()))
    assert cut == 1 and all(len(one.more) == 2 for one in predictions)
    assert [one.finish for one in (predictions[2], *predictions[2].more)] == ["prompt_too_long"] * 3
    texts = [{one.text for one in (found, *found.more)} for found in predictions if found.text]
    assert max(map(len, texts)) > 1
    again, _ = answered(answering.answer(built, examples, spec, ()))
    assert again == predictions


def test_beams_give_the_best_answers_of_one_search(tmp_path: Path) -> None:
    """As transformers returns them when it is asked directly, for each prompt alone."""
    built, spec, examples = built_and_rows(tmp_path, num_beams=4, num_return_sequences=3, max_length=200)
    predictions, cut = answered(answering.answer(built, examples, spec, ()))
    assert cut == 1 and len(predictions[2].more) == 2
    for number in (0, 1, 3):
        ids = built.tokenizer(examples[number].prompt, return_tensors="pt", return_token_type_ids=False)
        output = built.model.generate(
            **ids, num_beams=4, num_return_sequences=3, max_new_tokens=5, do_sample=False, length_penalty=1.0
        )
        expected = built.tokenizer.batch_decode(output[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [one.text for one in (predictions[number], *predictions[number].more)] == expected


def test_a_run_keeps_all_answers_and_grades_them_again(tmp_path: Path) -> None:
    task = toy.write_task(tmp_path / "task", test=4, metrics=METRICS)
    folder = toy.write_experiment(tmp_path, task=task, train={"max_steps": 1}, generation=SAMPLED)
    store = RunStore(tmp_path / "results")
    record = runs.run(loading.load(folder), store)
    found = record.evaluations[-1]
    where = store.evaluation_folder(record, found)
    assert where is not None and set(METRICS) <= set(found.metrics)
    kept = stored.samples(where)
    assert kept is not None and all(len(one["prediction"]["more"]) == 2 for one in kept)

    right = [{**one, "prediction": {**one["prediction"], "text": one["reference"]}} for one in kept]
    (where / stored.SAMPLES).write_text("".join(json.dumps(one) + "\n" for one in right))
    events = list(regrading.regrade(str(store.path_of(record)), store))
    graded = [event.evaluation for event in events if isinstance(event, Evaluated)][-1]
    assert {name: graded.metrics[name].mean for name in METRICS} == {
        "exact_match": pytest.approx(1 / 3),
        "pass@1": pytest.approx(1 / 3),
        "pass@2": pytest.approx(2 / 3),
        "pass@3_flexible": 1,
    }

    another = {"generation.num_return_sequences": 2}
    list(evaluating.evaluate(str(store.path_of(record)), store, overrides=another))
    keys = [one.key for one in store.find(str(store.path_of(record)))[0].evaluations]
    assert len(keys) == len(set(keys)) == 2 * len(record.evaluations)
