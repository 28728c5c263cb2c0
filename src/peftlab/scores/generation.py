"""Sort prompts by length, batch them, hand them to an engine, restore their order.

Limits are per row, from the row's own prompt length, so that neither batch size nor neighbours change them; only with
`generation.limits=batch` (dialect s0) does the longest prompt of a batch limit its neighbours' answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

from peftlab.config.groups import BatchSettings, GenerationSettings
from peftlab.modelling import randomness
from peftlab.modelling.models import Built
from peftlab.parallel.processes import World
from peftlab.protocols import Completion, Prompt, Session


def limit(prompt_length: int, settings: GenerationSettings) -> int:
    """New tokens allowed for a prompt: the smaller of `max_new_tokens` and what `max_length` leaves."""
    if settings.max_length is None:
        return settings.max_new_tokens
    return max(0, min(settings.max_new_tokens, settings.max_length - prompt_length))


def limited(
    prompts: Sequence[Prompt], settings: GenerationSettings, batch: BatchSettings, *, equal_lengths: bool
) -> list[Prompt]:
    """The prompts with the limits that `generation.limits` asks for; each has its own limit already.

    With `batch`, `max_length` counts the padded prompt of the batch, that is its longest. What a method needs equal
    lengths for does not change the batch that is meant. A prompt that fills `max_length` by itself keeps its 0.
    """
    result = list(prompts)
    if settings.limits == "row":
        return result
    by_length = batch.eval_order == "length"
    size = batch.per_device_eval_batch_size
    for indices in batches(prompts, size, equal_lengths=equal_lengths and by_length, order=batch.eval_order):
        common = limit(max(len(prompts[index].token_ids) for index in indices), settings)
        for index in indices:
            result[index] = replace(prompts[index], max_new_tokens=common)
    return result


def options_of(built: Built, settings: GenerationSettings, stop: Sequence[str], **more: Any) -> dict[str, Any]:
    """What an engine is told besides the prompts."""
    names = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "length_penalty", "no_repeat_ngram_size")
    sampling = {name: getattr(settings, name) for name in names}
    several = settings.num_return_sequences // copies(settings)
    return {**sampling, "num_return_sequences": several, "stop": tuple(stop), "pad_id": built.pad_id, **more}


def copies(settings: GenerationSettings) -> int:
    """How often each prompt is asked: once for each sampled answer; the answers of beams come from one search.

    So the evaluation batch counts answers, whatever their number.
    """
    return settings.num_return_sequences if settings.num_beams == 1 else 1


def batches(
    prompts: Sequence[Prompt], size: int, *, equal_lengths: bool, order: Literal["length", "file"] = "length"
) -> list[list[int]]:
    """Indices of the prompts of each batch: longest prompts first (ties keep their order), or as they come.

    With `equal_lengths` (methods that drop position ids) a batch holds prompts of one length only, so that nothing is
    padded; as they come, a batch is then divided. Prompts without room for an answer are in no batch.
    """
    wanted = [index for index, prompt in enumerate(prompts) if prompt.max_new_tokens > 0]
    if order == "file":
        whole = _cut([wanted], size)
        return [part for batch in whole for part in _of_one_length(prompts, batch)] if equal_lengths else whole
    ordered = sorted(wanted, key=lambda index: -len(prompts[index].token_ids))
    return _cut(_of_one_length(prompts, ordered) if equal_lengths else [ordered], size)


def _of_one_length(prompts: Sequence[Prompt], indices: Sequence[int]) -> list[list[int]]:
    ordered = sorted(indices, key=lambda index: -len(prompts[index].token_ids))
    return [list(group) for _, group in groupby(ordered, key=lambda index: len(prompts[index].token_ids))]


def _cut(groups: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    return [list(group[start : start + size]) for group in groups for start in range(0, len(group), size)]


def generate(
    session: Session,
    prompts: Sequence[Prompt],
    options: Mapping[str, Any],
    *,
    batch_size: int,
    equal_lengths: bool,
    seed: int,
    order: Literal["length", "file"] = "length",
    here: World | None = None,
) -> Iterator[dict[int, Completion]]:
    """Yield the completions of one batch after the other, by index of the prompt.

    Of several processes each generates its share of the same batches, so that no answer depends on their number.
    Each batch draws from its own part of the stream `sampling`; the caller's random states are left as they were.
    """
    here = here or World()
    nothing = Completion(text="", token_ids=(), finish="prompt_too_long", num_tokens=0)
    nothing = replace(nothing, more=(nothing,) * (options["num_return_sequences"] - 1))
    empty = {index: nothing for index, prompt in enumerate(prompts) if prompt.max_new_tokens <= 0}
    if empty:
        yield empty
    for number, indices in enumerate(batches(prompts, batch_size, equal_lengths=equal_lengths, order=order)):
        if number % here.size != here.rank:
            continue
        with randomness.seeded(seed, "sampling", number):
            completions = session.generate([prompts[index] for index in indices], options)
        yield dict(zip(indices, completions, strict=True))
