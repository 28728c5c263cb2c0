"""Grades a choice made by likelihood: which of an example's choices the model finds most likely.

It scores nothing itself: `Prediction.scores` holds the summed log-likelihood of each choice.

Modes (also the names of the metrics):
    acc: The choice with the largest summed log-likelihood.
    acc_norm: The choice with the largest log-likelihood per character of the choice's text, without the white space
        that separates it from the prompt. This is lm-evaluation-harness's rule: it divides by `len(choice)` of the text
        from `doc_to_choice`, to which the target delimiter is added only for scoring. Characters are Unicode code
        points, so the rule does not depend on a tokenizer.

Ties go to the lowest index. A choice whose score is NaN is never taken; when every score is NaN, nothing was chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from peftlab.errors import UserError, unknown_name
from peftlab.protocols import Example, Grade, Grader, Prediction

MODES = ("acc", "acc_norm")


def num_characters(choice: str) -> int:
    """Length of a choice without the white space before it; at least 1, so that an empty choice can be scored."""
    return max(len(choice.lstrip()), 1)


def _chosen(prediction: Prediction, example: Example, mode: str) -> int | None:
    if prediction.finish in ("prompt_too_long", "not_finite"):  # a choice has no likelihood: none is chosen
        return None
    if not prediction.scores:
        if mode == "acc_norm":
            raise UserError(
                f"item {example.item}: acc_norm needs the log-likelihood of every choice",
                fix="use an engine that returns log-likelihoods, or report the mode 'acc' alone",
            )
        return prediction.index
    assert len(prediction.scores) == len(example.choices), "one score per choice"
    scores = list(prediction.scores)
    if mode == "acc_norm":
        scores = [score / num_characters(choice) for score, choice in zip(scores, example.choices, strict=True)]
    known = [index for index, score in enumerate(scores) if not math.isnan(score)]
    return max(known, key=lambda index: scores[index], default=None)


def _reference(example: Example) -> int:
    reference = example.reference
    if isinstance(reference, int) and not isinstance(reference, bool) and 0 <= reference < len(example.choices):
        return reference
    raise UserError(
        f"item {example.item}: the reference {reference!r} is no index into its {len(example.choices)} choices",
        fix="mend 'reference' or the same-stem .py of the task",
    )


def grade(prediction: Prediction, example: Example, mode: str) -> Grade:
    """1 when the chosen index is the reference's, else 0; `answer` is the index as text."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    expected = _reference(example)
    index = _chosen(prediction, example, mode)
    if index is None:
        return Grade(score=0.0, answer=None, valid=False)
    return Grade(score=float(index == expected), answer=str(index), valid=True)


def summary(grades: Sequence[Grade], examples: Sequence[Example]) -> Mapping[str, float]:
    """What a model that ignores the question would score, and how the answers spread.

    `baseline_constant_answer` is the score of the best constant answer: the share of the most frequent reference.
    `answer_share_<i>` is the share of items answered with choice i, for every index that some item offers: a model
    that has collapsed to one letter shows here.
    """
    if not grades:
        return {}
    total = len(grades)
    references = Counter(_reference(example) for example in examples)
    answers = Counter(grade.answer for grade in grades)
    offered = max(len(example.choices) for example in examples)
    shares = {f"answer_share_{index}": answers[str(index)] / total for index in range(offered)}
    return {"baseline_constant_answer": max(references.values()) / total, **shares}


PLUGIN = Grader(version=1, metric="acc", modes=MODES, grade=grade, summary=summary)
