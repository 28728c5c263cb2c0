"""While it trains: what should move moves, nothing else does, the rows are learnt, a killed run goes on as it was."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch

from peftlab.invariants.findings import Finding, compared, said, stated
from peftlab.invariants.starting import difference, same, worst
from peftlab.invariants.trial import KILLED_AT, STEPS, Trial


def gradients(trial: Trial) -> Finding:
    """Every trainable tensor is in one optimizer group, gets a gradient that is not all zero, and changes.

    From step 4 on as well, that is after an evaluation.
    """
    name, course = "gradients", trial.course
    zero = [re.compile(pattern) for pattern in stated(trial.spec, "zero_gradient") or ()]
    expected = {key for key in course.start if any(pattern.search(key) for pattern in zero)}
    dropping = bool((trial.spec.adapter or {}).get("module_dropout"))
    if dropping:  # that each has a part where nothing is dropped, the loop has seen before its first step
        expected = set(course.start)
    wrong = [
        (key for key, count in course.grouped.items() if count != 1),
        (key for key, (got, _) in course.gradients.items() if not {1, 2, 3} <= got),
        (key for key, (_, nonzero) in course.gradients.items() if not nonzero & {1, 2, 3}),
        (key for key, (_, nonzero) in course.gradients.items() if max(nonzero, default=4) < KILLED_AT + 1),
        (key for key in course.start if same(course.start[key], course.middle[key])),
    ]
    texts = (
        "in no optimizer group, or in two",
        "without a gradient",
        "with a gradient of zero in each of three steps",
        "with a gradient of zero after an evaluation",
        "unchanged after three steps",
    )
    without = set()
    for keys, text in zip(wrong, texts, strict=True):
        found = list(keys)
        if text != texts[0]:  # where zero is the mathematics, an optimizer holds it all the same
            without.update(expected.intersection(found))
            found = [key for key in found if key not in expected]
        if found:
            fix = "look at target_modules and modules_to_save: what gets no gradient is no part of the forward pass"
            if text == texts[-1] and course.start[found[0]].element_size() < 4:
                fix = (
                    "16 bits round such small steps away: raise optim.learning_rate, or train with model.dtype=float32"
                )
            return said(name, "broken", f"{_named(found)} {text}", fix=fix)
    text = f"all {len(course.start)} trainable tensors get gradients and change, after an evaluation too"
    if without:
        reason = stated(trial.spec, "zero_gradient_because")
        if dropping:
            reason = "module_dropout leaves whole modules out of a step, by chance"
        return said(name, "stated", f"{text}, but for {_named(sorted(without))}: {reason}")
    return said(name, "exact", text)


def _named(found: Iterable[str]) -> str:
    first, *others = found
    return f"{first} and {len(others)} more" if others else first


def falls(trial: Trial) -> Finding:
    """The loss of the rows that every step sees is lower after three steps."""
    before, after = trial.course.losses
    if after < before:
        return said("loss", "exact", f"the loss of {len(trial.token_rows)} rows falls: {before:.4f} to {after:.4f}")
    text = f"the loss of {len(trial.token_rows)} rows does not fall in three steps: {before:.4f} to {after:.4f}"
    return said("loss", "broken", text, fix=f"lower optim.learning_rate (now {trial.spec.optim.learning_rate:g})")


def frozen(trial: Trial) -> Finding:
    """No frozen weight of the base changes by a bit; what else a method rewrites is named."""
    name, course = "frozen", trial.course
    if trial.spec.adapter is None:
        return said(name, "exempt", "full fine-tuning freezes nothing")
    if course.moved:
        return said(name, "broken", f"{_named(course.moved)} of the base changed", fix="report it with the config")
    if course.kept:
        text = f"no weight of the base changed; the method rewrites {_named(course.kept)}, which checkpoints hold"
        return said(name, "exact", text)
    return said(name, "exact", "nothing frozen changed by a bit")


def differs(trial: Trial) -> Finding:
    """Evaluation with the trained adapter is not evaluation without it."""
    course = trial.course
    moved = difference(course.logits, trial.base_logits)
    since = difference(course.logits, course.start_logits)
    if moved > 0 and since > 0:
        return said("differs", "exact", f"evaluation with the adapter differs from the base's by {moved:.2g}")
    text = "evaluation with the trained adapter equals evaluation without it"
    return said("differs", "broken", text, fix="the adapter takes no part in the forward pass: check its targets")


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The difference of two tensors that are not the same: never 0, another precision of the same numbers included."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    return difference(one, other) if alike else math.inf


def resume(trial: Trial) -> Finding:
    """Stopped after step 3 and taken up by a fresh build, six steps end with the bytes of six steps in one go."""
    name = "resume"
    end, again = trial.course.end, trial.resumed[1]
    if end.keys() != again.keys():
        odd = _named(sorted(end.keys() ^ again.keys()))
        return said(name, "broken", f"the resumed run changed other tensors: {odd}", fix="report it with the config")
    unlike = [key for key in end if not same(end[key], again[key])]
    figure = worst(_apart(end[key], again[key]) for key in unlike)
    return compared(
        name,
        figure,
        0.0,
        what=f"step {STEPS} after a stop at step {KILLED_AT}" + (f", {_named(unlike)}" if unlike else ""),
        fix="the method keeps state that no checkpoint holds: `state` and `load_state` of its file in methods/",
    )
