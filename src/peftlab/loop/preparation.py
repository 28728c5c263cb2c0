"""Everything that a training needs, built in one order on every process: rows, budget, model, optimizer, schedule.

Trains nothing and writes nothing; `runs.py` and `following.py` do the same steps with what this returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Step
from peftlab.loop import training
from peftlab.modelling import adapting, beginning, keeping
from peftlab.modelling.models import Base, Built, kind_of, pad_id_of
from peftlab.parallel import processes
from peftlab.protocols import Calibration
from peftlab.rows import batching, calibration, data, training_rows
from peftlab.rows.batching import Stream
from peftlab.rows.tokenise import TokenRow


@dataclass(frozen=True, kw_only=True)
class Due:
    """When validations and checkpoints fall due, once the number of steps is known."""

    eval_strategy: str
    eval_steps: int | None
    eval_at: frozenset[int] | None
    save_strategy: str
    save_steps: int

    @classmethod
    def of(cls, spec: RunSpec, total_steps: int) -> Due:
        """The schedule of a run of so many steps.

        Raises:
            UserError: The run would end before its first validation.
        """
        train = spec.train
        every = train.eval_steps
        if train.eval_strategy == "steps" and every is not None and every > total_steps:
            raise UserError(
                f"train.eval_steps ({every}) is larger than the {total_steps} steps that the budget comes to",
                fix="lower train.eval_steps, or set train.eval_strategy=epoch",
            )
        return cls(
            eval_strategy=train.eval_strategy,
            eval_steps=every,
            eval_at=_evenly(train.total_eval_times, total_steps) if train.total_eval_times else None,
            save_strategy=spec.save.save_strategy,
            save_steps=spec.save.save_steps,
        )

    def validation(self, step: Step) -> bool:
        """Whether the validation rows are scored after this step."""
        if self.eval_at is not None:
            return self.eval_strategy == "steps" and step.step in self.eval_at
        return _falls_due(self.eval_strategy, self.eval_steps, step)

    def checkpoint(self, step: Step) -> bool:
        """Whether a checkpoint is written after this step."""
        return _falls_due(self.save_strategy, self.save_steps, step)


def check_schedule(spec: RunSpec, rows: data.Rows) -> None:
    """See that the run reaches its first validation, and its adapter's schedule its end, before anything is scored.

    Raises:
        UserError: It does not.
    """
    steps = None
    if rows.train and spec.task.in_windows:  # how many windows it comes to, only its tokens say
        steps = spec.train.max_steps
    elif rows.train:
        size = processes.world().size
        steps = batching.counted_steps(len(rows.train), spec.batch, spec.train, world_size=size)
    if steps is None:
        return
    Due.of(spec, steps)
    if spec.adapter is not None:  # a schedule of the adapter's own has to fit into the budget
        where = adapting.adapter_place(spec)
        adapting.adapter_config(spec.adapter, kind_of(spec), max_steps=steps, where=where)


def check_start(spec: RunSpec, rows: data.Rows) -> None:
    """See that there are rows enough for the adapter's start, before anything is scored.

    Raises:
        UserError: There are not.
    """
    asked = beginning.asked(spec)
    if asked is not None and asked.start.reads_rows:
        calibration.check(spec, asked.start, rows)


def _evenly(times: int, total_steps: int) -> frozenset[int]:
    """So many steps, as far apart as they can be; the last is the end of the budget."""
    return frozenset(max(1, round(number * total_steps / times)) for number in range(1, times + 1))


def _falls_due(strategy: str, every: int | None, step: Step) -> bool:
    if strategy == "epoch":
        return step.ends_epoch
    return strategy == "steps" and every is not None and step.step % every == 0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a training starts with; `facts` counts the training rows' tokens."""

    built: Built
    stream: Stream
    state: training.State
    due: Due
    facts: Mapping[str, Any]


def _fit(rows: Sequence[TokenRow], base: Base, spec: RunSpec, *, key: str = "data.max_length") -> None:
    """A row longer than the model has positions ends in an index error somewhere inside it.

    Raises:
        UserError: There is one.
    """
    limits = (getattr(base.model.config, "max_position_embeddings", None), base.tokenizer.model_max_length)
    positions = min(limit for limit in limits if limit is not None)
    longest = max(len(row.ids) for row in rows)
    if longest > positions:
        raise UserError(
            f"{key}: the longest {'training' if key == 'data.max_length' else 'calibration'} row has {longest} tokens, "
            f"but {spec.model.id} takes {positions}",
            fix=f"set {key}={positions} or less",
        )


def prepare(spec: RunSpec, rows: data.Rows, base: Base) -> Prepared:
    """Build it all, for step 1.

    Raises:
        UserError: There are no training rows, or something does not fit together.
    """
    if not rows.train:
        raise UserError(f"task '{spec.task.name}' has no training rows", fix="name 'train' in the task file")
    here = processes.world()
    token_rows, facts = training_rows.make(
        rows.train,
        base.tokenizer,
        spec.task,
        max_length=spec.data.max_length,
        loss_mask=spec.data.loss_mask,
        chat_template=spec.data.chat_template,
        pair_separator=spec.data.pair_separator,
    )
    _fit(token_rows, base, spec)
    check_rows = adapting.method_of(spec.adapter, where=adapting.adapter_place(spec)).check_rows
    if check_rows is not None:
        check_rows(spec.adapter, [row.ids for row in token_rows])
    stream = Stream(token_rows, spec.batch, spec.seed, rank=here.rank, world_size=here.size)
    total = batching.total_steps(token_rows, spec.batch, spec.train, world_size=here.size, seed=spec.seed)
    due = Due.of(spec, total)
    found, more = _calibration(spec, rows, base)
    built = adapting.adapt(base, spec, calibration=found, total_steps=total)
    training.try_out(built, token_rows, spec)
    state = training.start(built, spec, total_steps=total)
    return Prepared(built=built, stream=stream, state=state, due=due, facts={**facts, **more})


def _calibration(spec: RunSpec, rows: data.Rows, base: Base) -> tuple[Calibration | None, dict[str, Any]]:
    """What the adapter's start may look at, and what the record says of it."""
    asked = beginning.asked(spec)
    if asked is None:
        return None, {}
    batches: Sequence[Mapping[str, Any]] = ()
    digest, facts = "", {}
    if asked.start.reads_rows:
        chosen = calibration.choose(spec, asked.start, rows, base.tokenizer)
        _fit(chosen.rows, base, spec, key="calibration.max_tokens")
        pad_id, device = pad_id_of(base.tokenizer), next(base.model.parameters()).device
        batches = calibration.Batches(chosen, pad_id=pad_id, device=device)
        digest, facts = chosen.digest, {"calibration": dict(chosen.facts)}
    found = Calibration(
        batches=batches,
        kept=keeping.keeper(spec, base, digest),
        tokenizer=base.tokenizer,
        kind=base.kind,
        text=spec.model.kv_prefix_text,
        seed=spec.seed,
    )
    return found, facts
