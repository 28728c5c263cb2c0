"""Grades a predicted class: `Prediction.index` against the label number that is the example's reference.

It knows no class names, and no metric that needs more than the labels (correlations belong to regression).

Metrics:
    acc: The share of items whose predicted class is the label: (TP + TN) / n for two classes.
    f1: For two classes, of the positive class 1: 2 TP / (2 TP + FP + FN), with TP = label 1 predicted 1, FP = label 0
        predicted 1, FN = label 1 not predicted 1. 0 when there is neither a label nor a prediction 1, as GLUE's and
        scikit-learn's implementations have it. Left out when a label or a prediction above 1 occurs.
    baseline_majority_class: The share of the most frequent label: what a model that always says it would score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from peftlab.errors import UserError, unknown_name
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("acc",)


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


def f1(predicted: Sequence[int | None], labels: Sequence[int]) -> float:
    """F1 of class 1, 2 TP / (2 TP + FP + FN); 0 when there is neither a label nor a prediction 1."""
    pairs = list(zip(predicted, labels, strict=True))
    hits = sum(guess == 1 and label == 1 for guess, label in pairs)
    misses = sum((guess == 1) != (label == 1) for guess, label in pairs)
    return 2 * hits / (2 * hits + misses) if hits else 0.0


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, float]:
    """`baseline_majority_class`, and `f1` when there are two classes."""
    if not grades:
        return {}
    labels = [_reference(example) for example in examples]
    predicted = [None if grade.answer is None else int(grade.answer) for grade in grades]
    result = {"baseline_majority_class": max(Counter(labels).values()) / len(labels)}
    if {*labels, *predicted} <= {0, 1, None}:
        result["f1"] = f1(predicted, labels)
    return result


PLUGIN = Grader(version=1, metric="acc", modes=MODES, grade=grade, summary=summary)
