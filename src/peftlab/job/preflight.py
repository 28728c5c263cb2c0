"""Finds what cannot work in a run before time is spent on it: grader, metrics, engine, optimizer, text, adapter.

Scores and trains nothing, and decides nothing: whatever it lets pass is looked at again where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.config.groups import EndpointSettings
from peftlab.config.spec import RunSpec
from peftlab.config.task import measured_metrics
from peftlab.errors import UserError, unknown_name
from peftlab.job import tracking
from peftlab.loop import optim, training
from peftlab.modelling import adapting, beginning, counting, models, precision
from peftlab.parallel import starting
from peftlab.protocols import Engine, Grader, find
from peftlab.rows import conversations, texts, tokenise
from peftlab.rows.tokenise import TokenRow
from peftlab.scores import agreement, samples, scoring
from peftlab.scores.wanted import Wanted

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
    if agreement.is_asked(spec) and spec.train.evaluate != "none":
        engine = f"generation.engine={spec.generation.engine}"
        raise UserError(
            f"{engine}: no server has weights that are still to be trained",
            fix=f"run without it, then: peftlab evaluate {spec.experiment} {engine} endpoint.url=...",
        )
    check_engine(spec)
    if spec.task.messages:
        conversations.writing_of(models.load_tokenizer(spec.model), spec.task, spec.data.chat_template)
    elif spec.data.chat_template:  # prompts are written in it, in training and when they are asked
        tokenise.chat_prompt("?", models.load_tokenizer(spec.model))
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


def check_engine(spec: RunSpec) -> None:
    """What generates, and what it is told of a server.

    Raises:
        UserError: There is no such engine, it lacks something, or a server is named that nobody would ask.
    """
    engine: Engine | None = None
    if spec.task.kind == "generate":
        engine = find("engines", spec.generation.engine, where="generation.engine")
        if engine.elsewhere:
            engine.check(spec.endpoint, spec.generation)
            return
    given = [name for name, value in spec.endpoint if value != getattr(EndpointSettings(), name)]
    if given:
        why = f"generation.engine is {spec.generation.engine}"
        if engine is None:
            why = f"task '{spec.task.name}' ({spec.task.kind}) has no answers that are generated"
        raise UserError(
            f"endpoint.{given[0]} is set, but {why}",
            fix="name an engine that asks a server (peftlab list engines), or leave endpoint.* out",
        )


def reach(spec: RunSpec, wanted: Sequence[Wanted]) -> None:
    """Ask the servers that hold the weights of some evaluations, before rows and weights are read.

    Raises:
        UserError: One of them is not named, or does not answer for them.
    """
    names: dict[str | None, tuple[Wanted, RunSpec]] = {}
    for one in wanted:
        under = one.under(spec)
        if one.what != "text" and agreement.is_asked(under):
            names.setdefault(under.endpoint.model, (one, under))
    for name, (one, under) in names.items():
        if name is None:
            whose, key = ("the starting model", "base_model") if one.of_start else ("the trained weights", "model")
            raise UserError(
                f"endpoint.{key} is not set, and {whose} should be scored",
                fix=f"say the name that the server has for them: endpoint.{key}=...",
            )
        find("engines", under.generation.engine).open(under.endpoint, seed=under.seed).close()


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
    check_grading(spec)
    try:
        precision.check(spec.quant, models.default_device().type)
    except UserError as error:
        why = "".join(f"\n{note}" for note in spec.notes if "quant.method" in note)
        raise UserError(error.message + why, fix=error.fix) from error


def check_grading(spec: RunSpec) -> None:
    """Whether the task's grader can work here.

    Raises:
        UserError: There is no such grader, it lacks a library, or it cannot run what is answered.
    """
    if spec.task.grader is not None:
        grader: Grader = find("graders", spec.task.grader.name, where=f"task '{spec.task.name}'")
        grader.check(spec.task.grader.modes or grader.modes)
        grader.ready(spec.execution)


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
