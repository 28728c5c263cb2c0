"""Prompts to generated answers, through an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftlab.config.examples import with_shots
from peftlab.config.spec import RunSpec
from peftlab.events import Progress
from peftlab.modelling.models import Built
from peftlab.parallel import processes
from peftlab.protocols import Example, Prediction, Prompt, find
from peftlab.rows import tokenise
from peftlab.scores import generation
from peftlab.scores.passes import Predicting


def prompts_of(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> list[Prompt]:
    """Tokenised prompts with their own limits: plain, few-shot, or in the model's chat template."""
    result = []
    for example in examples:
        text = with_shots(spec.task, example, shots)
        render = tokenise.chat_prompt if spec.generation.chat_template else tokenise.prompt_ids
        ids = render(text, built.tokenizer)
        result.append(Prompt(token_ids=ids, max_new_tokens=generation.limit(len(ids), spec.generation), text=text))
    return generation.limited(result, spec.generation, spec.batch, equal_lengths=built.equal_lengths)


def stop_strings(spec: RunSpec) -> tuple[str, ...]:
    """The declared stop strings; after few-shot examples also what separates them."""
    return (*spec.generation.stop, *((spec.task.separator,) if spec.generation.few_shot else ()))


def answer(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Predicting:
    """Generate an answer to every example, each process its share; in the order of `examples`."""
    prompts = prompts_of(built, examples, spec, shots)
    session = find("engines", spec.generation.engine).open(built)
    here = processes.world()
    answers: dict[int, list[Any]] = {}
    try:
        for batch in generation.generate(
            session,
            prompts,
            generation.options_of(built, spec.generation, stop_strings(spec)),
            batch_size=spec.batch.per_device_eval_batch_size,
            equal_lengths=built.equal_lengths,
            seed=spec.seed,
            order=spec.batch.eval_order,
            here=here,
        ):
            answers.update({index: [one.text, one.finish, one.num_tokens] for index, one in batch.items()})
            yield Progress(done=min(len(answers) * here.size, len(prompts)), total=len(prompts))
    finally:
        session.close()
    answers = processes.merged(answers)
    found = (answers[index] for index in range(len(prompts)))
    predictions = [Prediction(text=text, finish=finish, num_tokens=num_tokens) for text, finish, num_tokens in found]
    return predictions, sum(one.finish == "prompt_too_long" for one in predictions)


def rehearse(built: Built, examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> None:
    """Generate the heaviest batch once, to its full length."""
    prompts = prompts_of(built, examples, spec, shots)
    size, order = spec.batch.per_device_eval_batch_size, spec.batch.eval_order
    found = generation.batches(prompts, size, equal_lengths=built.equal_lengths, order=order)
    if not found:
        return
    heaviest = max(found, key=lambda batch: sum(_length(prompts[index]) for index in batch))
    session = find("engines", spec.generation.engine).open(built)
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
