"""Sort prompts by length, batch them, hand them to an engine, restore their order.

Limits are per row, from the row's own prompt length, so that neither batch size nor neighbours change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from peftlab import randomness
from peftlab.groups import GenerationSettings
from peftlab.models import Built
from peftlab.protocols import Completion, Prompt, Session


def limit(prompt_length: int, settings: GenerationSettings) -> int:
    """New tokens allowed for a prompt: the smaller of `max_new_tokens` and what `max_length` leaves."""
    if settings.max_length is None:
        return settings.max_new_tokens
    return max(0, min(settings.max_new_tokens, settings.max_length - prompt_length))


def options_of(built: Built, settings: GenerationSettings, stop: Sequence[str], **more: Any) -> dict[str, Any]:
    """What an engine is told besides the prompts."""
    sampling = {name: getattr(settings, name) for name in ("do_sample", "temperature", "top_p", "top_k", "num_beams")}
    return {**sampling, "stop": tuple(stop), "pad_id": built.pad_id, **more}


def batches(prompts: Sequence[Prompt], size: int, *, equal_lengths: bool) -> list[list[int]]:
    """Indices of the prompts of each batch, longest prompts first; ties keep their order.

    With `equal_lengths` (methods that drop position ids) a batch holds prompts of one length only, so that nothing is
    padded. Prompts without room for an answer are in no batch.
    """
    wanted = [index for index, prompt in enumerate(prompts) if prompt.max_new_tokens > 0]
    ordered = sorted(wanted, key=lambda index: -len(prompts[index].token_ids))
    groups = [ordered]
    if equal_lengths:
        groups = [list(group) for _, group in groupby(ordered, key=lambda index: len(prompts[index].token_ids))]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def generate(
    session: Session,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    *,
    batch_size: int,
    equal_lengths: bool,
    seed: int,
) -> Iterator[dict[int, Completion]]:
    """Yield the completions of one batch after the other, by index of the prompt.

    Each batch draws from its own part of the stream `sampling`; the caller's random states are left as they were.
    """
    empty = {
        index: Completion(text="", token_ids=(), finish="prompt_too_long", num_tokens=0)
        for index, prompt in enumerate(prompts)
        if prompt.max_new_tokens <= 0
    }
    if empty:
        yield empty
    for number, indices in enumerate(batches(prompts, batch_size, equal_lengths=equal_lengths)):
        with randomness.seeded(seed, "sampling", number):
            completions = session.generate([prompts[index] for index in indices], options)
        yield dict(zip(indices, completions, strict=True))
