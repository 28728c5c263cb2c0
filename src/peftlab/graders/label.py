"""Grades a predicted class: `Prediction.index` against the label number that is the example's reference.

It knows no class names. The formulas are counts of the confusion matrix; the tests hold them against scikit-learn.

Metrics:
    acc: The share of items whose predicted class is the label.

Metrics over all items (`corpus`), each 0 where it would be 0 / 0, as scikit-learn has it. A missing prediction is a
miss of its label and a hit of no class. With TP, FP and FN of a class:

    precision: TP / (TP + FP). recall: TP / (TP + FN). f1: 2 TP / (2 TP + FP + FN). All of the positive class 1; left
        out when a label or a prediction above 1 occurs.
    ..._macro: The mean over the classes that occur as a label or a prediction.
    ..._weighted: The mean over the classes, each weighing as many items as have its label.
    matthews_correlation: The correlation of labels and predictions as indicators of their classes (Gorodkin 2004,
        Comparing two K-category assignments; of two classes Matthews 1975):
        (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), with s items, c of them right, and for each class the t
        items that have its label and the p that are predicted so. 0 for a constant prediction.

    baseline_majority_class: The share of the most frequent label: what a model that always says it would score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from peftlab.errors import UserError, unknown_name
from peftlab.graders._jackknife import pseudo_values
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("acc",)
Counts = Counter[tuple[int, int | None]]
"""How many items have a label and a prediction (label, prediction)."""

Classes = tuple[int, ...]


# ------------------------------------------------------------------------------------------------------ one item


def _reference(example: Example) -> int:
    reference = example.reference
    if isinstance(reference, int) and reference >= 0:
        return int(reference)
    raise UserError(
        f"item {example.item}: the label {reference!r} is not a class number (0, 1, ...)",
        fix="mend 'reference' in the task file; a part whose labels are hidden (-1) cannot be scored",
    )


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """1 when the predicted class is the label, else 0; `answer` is the class number as text."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    expected = _reference(example)
    if prediction.index is None:
        return Grade(score=0.0, answer=None, valid=False)
    return Grade(score=float(prediction.index == expected), answer=str(prediction.index), valid=True)


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, float]:
    """`baseline_majority_class`."""
    if not grades:
        return {}
    labels = Counter(_reference(example) for example in examples)
    return {"baseline_majority_class": max(labels.values()) / len(grades)}


# ----------------------------------------------------------------------------------------------------- all items


def _of_class(counts: Counts, one: int) -> tuple[int, int, int]:
    """Items of a class predicted so, others predicted so, and items of it predicted otherwise."""
    hits = counts[one, one]
    predicted = sum(count for (_, guess), count in counts.items() if guess == one)
    labelled = sum(count for (label, _), count in counts.items() if label == one)
    return hits, predicted - hits, labelled - hits


def precision(counts: Counts, one: int) -> float:
    """The share of right ones among the items that are predicted to be of a class."""
    hits, wrong, _ = _of_class(counts, one)
    return hits / (hits + wrong) if hits else 0.0


def recall(counts: Counts, one: int) -> float:
    """The share of right ones among the items of a class."""
    hits, _, missed = _of_class(counts, one)
    return hits / (hits + missed) if hits else 0.0


def f1(counts: Counts, one: int) -> float:
    """The harmonic mean of a class's precision and recall."""
    hits, wrong, missed = _of_class(counts, one)
    return 2 * hits / (2 * hits + wrong + missed) if hits else 0.0


def matthews_correlation(counts: Counts) -> float:
    """The correlation of labels and predictions; 0 where either is constant."""
    total = sum(counts.values())
    right = sum(count for (label, guess), count in counts.items() if label == guess)
    labels: Counter[int | None] = Counter()
    guesses: Counter[int | None] = Counter()
    for (label, guess), count in counts.items():
        labels[label] += count
        guesses[guess] += count
    above = right * total - sum(count * guesses[label] for label, count in labels.items())
    below = [total**2 - sum(count**2 for count in found.values()) for found in (guesses, labels)]
    return above / math.sqrt(below[0] * below[1]) if all(below) else 0.0


def _macro(measure: Callable[[Counts, int], float], counts: Counts, classes: Classes) -> float:
    return sum(measure(counts, one) for one in classes) / len(classes)


def _weighted(measure: Callable[[Counts, int], float], counts: Counts, classes: Classes) -> float:
    weights = {one: sum(count for (label, _), count in counts.items() if label == one) for one in classes}
    return sum(weight * measure(counts, one) for one, weight in weights.items()) / sum(weights.values())


_BINARY = {"precision": precision, "recall": recall, "f1": f1}
METRICS = (*_BINARY, *(f"{name}_{kind}" for kind in ("macro", "weighted") for name in _BINARY), "matthews_correlation")


def measured(counts: Counts, classes: Classes) -> dict[str, float]:
    """Every metric of these counts; those of class 1 where there is none but 0 and 1."""
    found = {name: measure(counts, 1) for name, measure in _BINARY.items() if {*classes} <= {0, 1}}
    for kind, mean in (("macro", _macro), ("weighted", _weighted)):
        found.update({f"{name}_{kind}": mean(measure, counts, classes) for name, measure in _BINARY.items()})
    return {**found, "matthews_correlation": matthews_correlation(counts)}


def corpus(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, Sequence[float]]:
    """Pseudo-values of every metric. Leaving an item out depends on its label and prediction alone."""
    if not grades:
        return {}
    guesses = [None if grade.answer is None else int(grade.answer) for grade in grades]
    pairs = list(zip((_reference(example) for example in examples), guesses, strict=True))
    counts: Counts = Counter(pairs)
    classes = tuple(sorted({one for pair in counts for one in pair if one is not None}))
    without = {pair: measured(counts - Counter([pair]), classes) for pair in counts if len(pairs) > 1}
    return {
        name: pseudo_values(whole, [without[pair][name] if without else whole for pair in pairs])
        for name, whole in measured(counts, classes).items()
    }


PLUGIN = Grader(
    version=1, metric="acc", modes=MODES, grade=grade, summary=summary, corpus=corpus, corpus_metrics=METRICS
)
