"""Finds what cannot work in a run before time is spent on it: grader, metrics, engine, optimizer, text, adapter.

Scores and trains nothing, and decides nothing: whatever it lets pass is looked at again where it is used.
"""

from __future__ import annotations

from peftlab import counting, models, optim, scoring, starts, texts, tracking
from peftlab.errors import UserError, unknown_name
from peftlab.protocols import find
from peftlab.spec import ADAPTER_FILE, RunSpec
from peftlab.task import measured_metrics


def check(spec: RunSpec) -> None:
    """Look at everything that is named in a run that is still to be trained.

    Raises:
        UserError: A name that does not exist, values that torch or peft refuse, or what this version cannot run yet.
    """
    refuse_unsupported(spec)
    tracking.check(spec)
    measured = measured_metrics(spec.task)
    best = spec.train.metric_for_best_model
    if best is not None and best not in measured:
        raise unknown_name("metric", best, measured, where="train.metric_for_best_model")
    if spec.task.kind == "generate":
        find("engines", spec.generation.engine, where="generation.engine")
    texts.named(spec.data.forgetting)
    if spec.adapter is not None:
        config, _ = models.adapter_config(
            spec.adapter,
            models.kind_of(spec),
            max_steps=models.UNKNOWN_BUDGET,
            where=models.adapter_place(spec),
        )
        optim.check(spec.optim, config.to_dict())
        _check_adapter(spec)
    else:
        optim.check(spec.optim, None)


def refuse_unsupported(spec: RunSpec) -> None:
    """Settings that are read, checked and part of the keys, but that no code stands behind yet.

    Raises:
        UserError: One of them is set.
    """
    if spec.unready:
        raise UserError(
            f"{spec.experiment}: this version cannot run it yet, a later one will: {'; '.join(spec.unready)}",
            fix="check and show work; or use other rows",
        )
    start = starts.unready(spec.adapter)
    if start is not None:
        raise UserError(f"{ADAPTER_FILE}: {start}; a later one will", fix="choose a start that needs no rows")
    if spec.quant.method is not None:
        why = "".join(f"\n{note}" for note in spec.notes if "quant.method" in note)
        raise UserError(
            f"quant.method = {spec.quant.method}: this version cannot load a quantised base yet; a later one will{why}",
            fix=f"train on the base as it is: quant.method=null, with model.dtype={spec.model.dtype}",
        )
    if spec.model.kv_prefix_text is not None:
        raise UserError(
            "model.kv_prefix_text: this version cannot start a trained prefix from a text yet; a later one will",
            fix="let it start at random: model.kv_prefix_text=null",
        )


def _check_adapter(spec: RunSpec) -> None:
    """Build the adapter on shapes alone; where that fails, the real weights decide (some methods need them)."""
    try:
        counting.without_weights(spec)
    except (UserError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError, OSError):
        models.adapt(scoring.load_base(spec), spec)
