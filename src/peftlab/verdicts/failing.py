"""How answers failed, in words: shares by kind, of graders that tell kinds of failure apart. Computes no score."""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.records.record import Evaluation
from peftlab.scores.grading import FAILURES


def said(evaluations: Sequence[Evaluation]) -> str | None:
    """Shares of all answers by kind, the mean over several evaluations (seeds) of one kind; None where none is known.

    Of several modes of a grader, the first. A kind that a seed does not have is 0 there.
    """
    shares = [next(iter(one.notes.get(FAILURES, {}).values()), None) for one in evaluations]
    known = [found for found in shares if found is not None]
    if not known:
        return None
    kinds = {kind for found in known for kind in found}
    means = {kind: sum(found.get(kind, 0.0) for found in known) / len(known) for kind in kinds}
    ordered = sorted(means.items(), key=lambda one: (-one[1], one[0]))
    return "answers that failed: " + ", ".join(f"{kind} {share:.1%}" for kind, share in ordered)
