"""What a run can lower when memory runs out: its own settings with their values, the cheapest first.

Measures nothing and changes nothing; the advice travels as a note on the error. Its order is that of
docs/troubleshooting.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peftlab.config.spec import RunSpec
from peftlab.records.slot import ran_out_of_memory

OPENING = "to need less memory, the cheapest first:"
GENERAL = (
    "lower batch.per_device_train_batch_size (with more batch.gradient_accumulation_steps), "
    "batch.per_device_eval_batch_size or data.max_length, or set model.gradient_checkpointing=true"
)
"""For an error that no run's settings are known of."""

NOTHING = f"{OPENING}\n  a smaller model, or a machine with more memory: nothing that a setting lowers is left"


@contextmanager
def advised(spec: RunSpec, *, trains: bool) -> Iterator[None]:
    """Whatever runs out of memory inside says what of `spec` can be lowered; `trains` is false for an evaluation alone.

    The innermost advice stands.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error) and advice_on(error) is None:
            error.add_note(advice(spec, trains=trains))
        raise


def advice_on(error: BaseException) -> str | None:
    """The advice that an error carries."""
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith(OPENING)), None)


def advice(spec: RunSpec, *, trains: bool) -> str:
    """One setting to a line, as it is written on a command line, with its present value and what it costs."""
    lines = [*(_step(spec) if trains else ()), *_evaluation(spec), *(_model(spec) if trains else ())]
    return "\n  ".join([OPENING, *lines]) if lines else NOTHING


def _step(spec: RunSpec) -> Iterator[str]:
    rows, passes = spec.batch.per_device_train_batch_size, spec.batch.gradient_accumulation_steps
    if rows > 1:
        # halves of an even number give the same global batch, and so the same steps
        less, more = (rows // 2, 2 * passes) if rows % 2 == 0 else (1, rows * passes)
        yield (
            f"batch.per_device_train_batch_size={less} batch.gradient_accumulation_steps={more} "
            f"(now {rows} and {passes}): the same result, to rounding"
        )


def _evaluation(spec: RunSpec) -> Iterator[str]:
    rows = spec.batch.per_device_eval_batch_size
    if rows > 1:
        when = "if an evaluation ran out; half precision may answer otherwise, so keep it equal over what you compare"
        yield f"batch.per_device_eval_batch_size={rows // 2} (now {rows}): {when}"


def _model(spec: RunSpec) -> Iterator[str]:
    if not spec.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true (now false): about a third more time"
    if spec.model.dtype == "float32":
        yield "model.dtype=bfloat16 (now float32): coarser arithmetic"
    yield f"data.max_length lower (now {spec.data.max_length}): longer rows are cut, and learn no ending"
