"""Task + model to graded samples and metrics: the one way from rows to scores, whatever the task's kind.

Scores whatever `Built` it is given. Which weights are scored, and where the result is kept, is `scoring.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from peftlab.config.spec import RunSpec
from peftlab.config.task import grades_many
from peftlab.errors import UserError
from peftlab.modelling import models
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example
from peftlab.scores import answering, choosing, classifying, grading, language
from peftlab.scores.grading import Scored
from peftlab.scores.passes import Scoring, logits_of
from peftlab.scores.stored import TRUNCATED

_PREDICT = {
    "generate": answering.answer,
    "choose": choosing.choose,
    "classify": classifying.classify,
    "regress": classifying.regress,
}


def score(
    built: Built,
    examples: Sequence[Example],
    spec: RunSpec,
    *,
    shots: Sequence[Example] = (),
    keep: Callable[[Scored], object] = lambda ungraded: None,
) -> Scoring:
    """Predict and grade `examples`; yields progress, returns a `Scored`.

    `keep` is given the predictions before a grader runs what was answered, which may take long or fail; of several
    processes only the first runs it.

    Raises:
        UserError: The task's grader or engine is unknown, or nothing is left to score.
    """
    if not examples:
        raise UserError(f"task '{spec.task.name}': there are no rows to score", fix="mend the task's splits")
    models.use_arithmetic(spec.model)
    spec = _rows_alone(spec, built)
    if spec.task.kind == "text":
        return (yield from language.score_texts(built, examples, spec))
    predictions, cut = yield from _PREDICT[spec.task.kind](built, examples, spec, shots)
    if grades_many(spec.task):
        ungraded = replace(grading.ungraded(examples, predictions), notes={TRUNCATED: cut})
        if processes.world().rank:
            return ungraded
        keep(ungraded)
    found = yield from grading.graded(spec.task, examples, predictions, spec.execution)
    return replace(found, notes={**found.notes, TRUNCATED: cut})


def _rows_alone(spec: RunSpec, built: Built) -> RunSpec:
    """The spec with batches of one row, where the method mixes the rows of a batch."""
    if not built.method.rows_alone:
        return spec
    return spec.model_copy(update={"batch": spec.batch.model_copy(update={"per_device_eval_batch_size": 1})})


def rehearse(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> None:
    """Run the heaviest evaluation batch once, to its full length: out of memory shows now, not at the end."""
    spec = _rows_alone(spec, built)
    if spec.task.kind != "generate":
        modules = {"choose": choosing, "text": language}
        rows = modules.get(spec.task.kind, classifying).rows_of(built, examples, spec, shots)
        batch = language.few_tokens(spec.batch, rows) if spec.task.kind == "text" else spec.batch
        longest = sorted(rows, key=lambda row: -len(row.ids))[: batch.per_device_eval_batch_size]
        logits_of(built, longest)
        return
    answering.rehearse(built, examples, spec, shots)
