"""Prompts to generated answers, through an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peftlab.config.examples import with_shots
from peftlab.config.spec import RunSpec
from peftlab.events import Progress
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Completion, Engine, Example, Prediction, Prompt, Session, find
from peftlab.rows import tokenise
from peftlab.scores import generation
from peftlab.scores.passes import Predicting


def prompts_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[Prompt]:
    """Tokenised prompts with their own limits: plain, few-shot, or in the model's chat template.

    Where several answers are sampled, each prompt stands so many times, one after the other.
    """
    result = []
    for example in examples:
        text = with_shots(spec.task, example, shots)
        render = tokenise.chat_prompt if spec.generation.chat_template else tokenise.prompt_ids
        ids = render(text, built.tokenizer)
        prompt = Prompt(token_ids=ids, max_new_tokens=generation.limit(len(ids), spec.generation), text=text)
        result += [prompt] * generation.copies(spec.generation)
    return generation.limited(result, spec.generation, spec.batch, equal_lengths=built.equal_lengths)


def stop_strings(spec: RunSpec) -> tuple[str, ...]:
    """The declared stop strings; after few-shot examples also what separates them."""
    return (*spec.generation.stop, *((spec.task.separator,) if spec.generation.few_shot else ()))


def opened(built: Built, spec: RunSpec) -> Session:
    """The engine that the settings name, opened on the model, or on the server that has its weights."""
    engine: Engine = find("engines", spec.generation.engine, where="generation.engine")
    return engine.open(spec.endpoint, seed=spec.seed) if engine.elsewhere else engine.open(built)


def answer(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    """Generate an answer to every example, each process its share; in the order of `examples`."""
    prompts = prompts_of(built, examples, spec, shots)
    session = opened(built, spec)
    here = processes.world()
    answers: dict[int, list[Any]] = {}
    try:
        for batch in generation.generate(
            session,
            prompts,
            generation.options_of(built, spec.generation, stop_strings(spec)),
            batch_size=session.at_once or spec.batch.per_device_eval_batch_size,
            equal_lengths=built.equal_lengths and session.at_once is None,
            seed=spec.seed,
            order=spec.batch.eval_order,
            here=here,
        ):
            answers.update({index: [_plain(each) for each in (one, *one.more)] for index, one in batch.items()})
            yield Progress(done=min(len(answers) * here.size, len(prompts)), total=len(prompts))
    finally:
        session.close()
    answers = processes.merged(answers)
    copies = generation.copies(spec.generation)
    starts = range(0, len(prompts), copies)
    predictions = [
        _prediction([said for index in range(start, start + copies) for said in answers[index]]) for start in starts
    ]
    return predictions, sum(one.finish == "prompt_too_long" for one in predictions)


def _plain(completion: Completion) -> list[Any]:
    return [completion.text, completion.finish, completion.num_tokens]


def _prediction(answers: Sequence[list[Any]]) -> Prediction:
    """All answers to one item: the first, and with it the further ones."""
    first, *more = [Prediction(text=text, finish=finish, num_tokens=num) for text, finish, num in answers]
    return replace(first, more=tuple(more))


def rehearse(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> None:
    """Generate the heaviest batch once, to its full length."""
    prompts = prompts_of(built, examples, spec, shots)
    size, order = spec.batch.per_device_eval_batch_size, spec.batch.eval_order
    found = generation.batches(prompts, size, equal_lengths=built.equal_lengths, order=order)
    if not found:
        return
    heaviest = max(found, key=lambda batch: sum(_length(prompts[index]) for index in batch))
    session = opened(built, spec)
    options = generation.options_of(built, spec.generation, stop_strings(spec), full_length=True)
    try:
        for _ in generation.generate(
            session,
            [prompts[index] for index in heaviest],
            options,
            batch_size=len(heaviest),
            equal_lengths=built.equal_lengths,
            seed=spec.seed,
        ):
            pass
    finally:
        session.close()


def _length(prompt: Prompt) -> int:
    return len(prompt.token_ids) + prompt.max_new_tokens
