"""Finds what cannot work in a run before time is spent on it: grader, metrics, engine, optimizer, text, adapter.

Scores and trains nothing, and decides nothing: whatever it lets pass is looked at again where it is used.
"""

from __future__ import annotations

from peftlab.config.spec import RunSpec
from peftlab.config.task import measured_metrics
from peftlab.errors import UserError, unknown_name
from peftlab.job import tracking
from peftlab.loop import optim, training
from peftlab.modelling import adapting, beginning, counting, models, precision
from peftlab.parallel import starting
from peftlab.protocols import Grader, find
from peftlab.rows import texts
from peftlab.rows.tokenise import TokenRow
from peftlab.scores import samples, scoring

_ANY_ROW = TokenRow(item="", ids=(0, 1, 2, 3), labels_from=1, has_eos=False, truncated=False)
"""Tokens that every model has."""


def check(spec: RunSpec) -> None:
    """Look at everything that is named in a run that is still to be trained.

    Raises:
        UserError: A name that does not exist, values that torch or peft refuse, or what this version cannot run yet.
    """
    refuse_unsupported(spec)
    tracking.check(spec)
    starting.check(spec)
    measured = measured_metrics(spec.task)
    best = spec.train.metric_for_best_model
    if best is not None and best not in measured:
        raise unknown_name("metric", best, measured, where="train.metric_for_best_model")
    if spec.task.kind == "generate":
        find("engines", spec.generation.engine, where="generation.engine")
    texts.named(spec.data.forgetting)
    samples.asked(spec)
    beginning.check(spec)
    if spec.adapter is not None:
        config, _ = adapting.adapter_config(
            spec.adapter,
            models.kind_of(spec),
            max_steps=models.UNKNOWN_BUDGET,
            where=adapting.adapter_place(spec),
        )
        optim.check(spec.optim, config.to_dict())
        _check_adapter(spec)
    else:
        precision.check_trains_all(spec.quant, spec.model.dtype)
        optim.check(spec.optim, None)


def refuse_unsupported(spec: RunSpec) -> None:
    """Settings that are read, checked and part of the keys, but that no code stands behind yet, or no library here.

    Raises:
        UserError: One of them is set.
    """
    if spec.unready:
        raise UserError(
            f"{spec.experiment}: this version cannot run it yet, a later one will: {'; '.join(spec.unready)}",
            fix="check and show work; or use other rows",
        )
    if spec.task.grader is not None:
        grader: Grader = find("graders", spec.task.grader.name, where=f"task '{spec.task.name}'")
        grader.check(spec.task.grader.modes or grader.modes)
    try:
        precision.check(spec.quant, models.default_device().type)
    except UserError as error:
        why = "".join(f"\n{note}" for note in spec.notes if "quant.method" in note)
        raise UserError(error.message + why, fix=error.fix) from error


def _check_adapter(spec: RunSpec) -> None:
    """Build the adapter on shapes alone; where that fails, the real weights decide (some methods need them).

    So they do where they have few bits, which is tried out as well, and where the adapter takes their precision: what
    goes with such layers, shapes do not show.
    """
    few_bits = spec.quant.method is not None
    try:
        counting.without_weights(spec)
        told = not few_bits and (spec.model.autocast_adapter_dtype or spec.model.dtype != "float16")
    except (UserError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError, OSError):
        told = False
    if told:
        return
    built = adapting.adapt(scoring.load_base(spec), spec, shapes_only=True)
    for _ in range(2 if few_bits else 0):  # a first pass may leave a layer's state so that the next one fails
        training.try_out(built, [_ANY_ROW], spec)
