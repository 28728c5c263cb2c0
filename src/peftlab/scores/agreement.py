"""Whether an engine that works elsewhere has the weights that are to be scored: asked before its scores are used.

The reference engine answers some items with our own weights, the other engine the same ones; both greedily, and a few
tokens each. Decides nothing about which evaluations are made. docs/design/evaluation.md has the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from scipy.stats import binom

from peftlab import measure
from peftlab.config.examples import with_shots
from peftlab.config.groups import GenerationSettings
from peftlab.config.spec import RunSpec
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.events import Progress, Stage
from peftlab.modelling import models
from peftlab.modelling.conversion import cache_folder
from peftlab.modelling.models import Built
from peftlab.protocols import Engine, Example, Prompt, find
from peftlab.records.atomic import write_atomic
from peftlab.scores import answering, generation

ITEMS, TOKENS = 50, 32
"""How many items are asked, spread over the rows, and how many tokens of each answer are compared.

Two programs round differently, so long greedy answers part sooner or later; few tokens tell weights apart as well.
"""

SHARE, LEVEL = 0.8, 0.001
"""Of the items that must be answered alike; and how improbable that must be for answers to other prompts."""

Answers = list[str]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What two sets of answers to the same items have in common.

    Attributes:
        items: How many were asked.
        same: How many both answer alike.
        chance: The share of pairs of *different* items whose answers are alike.
        misplaced: Items answered as the reference answers another one, and not as it answers this.
        changed: Items that the reference answers otherwise with the starting model; None: that is what is scored.
        seen: Of those, how many answers are nearer to the scored weights' than to the starting model's.
        hidden: The other way round.
    """

    items: int
    same: int
    chance: float
    misplaced: int
    changed: int | None = None
    seen: int = 0
    hidden: int = 0


def is_asked(spec: RunSpec) -> bool:
    """Whether answers under this spec come from an engine that has weights of its own."""
    if spec.task.kind != "generate":
        return False
    engine: Engine = find("engines", spec.generation.engine, where="generation.engine")
    return engine.elsewhere


def chosen(examples: Sequence[Example]) -> list[Example]:
    """The items that are asked: spread evenly over the rows, all where there are few."""
    count = min(ITEMS, len(examples))
    return [examples[index * len(examples) // count] for index in range(count)]


def answers_here(
    load: Callable[[], Built], examples: Sequence[Example], spec: RunSpec, shots: Sequence[Example], *, source: Any
) -> Answers:
    """The reference engine's answers, kept in the cache folder: they depend on our own weights and machine alone.

    Args:
        load: Gives the weights; not called where the answers are known.
        examples: The rows that are scored.
        spec: What they are scored under.
        shots: Worked examples.
        source: Plain data that names the weights.
    """
    spec, asked = _plain(spec, GenerationSettings().engine), chosen(examples)
    known = {
        "weights": source,
        "prompts": [with_shots(spec.task, one, shots) for one in asked],
        "generation": spec.generation.model_dump(mode="json"),
        "batch": spec.batch.model_dump(mode="json"),
        "tokens": TOKENS,
        "commit": models.commit_of(spec.model),
        "device": models.default_device().type,
        "versions": measure.versions(measure.RESUME_PACKAGES),
    }
    path = cache_folder() / "agreement" / f"{digest(known)}.json"
    try:
        found = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, list) or len(found) != len(asked):
        found = _answers(load(), asked, spec, shots)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(found))
        except OSError:
            pass  # then they are made again
    return [str(one) for one in found]


def reached(
    built: Built,
    examples: Sequence[Example],
    spec: RunSpec,
    shots: Sequence[Example],
    *,
    source: Any,
    start: Answers | None,
) -> Generator[Progress | Stage, None, dict[str, Any]]:
    """Ask both engines, and say how far they agree; returns what the record keeps of it.

    Args:
        built: Our own weights.
        examples: The rows that are to be scored.
        spec: Under which; names the engine and the server.
        shots: Worked examples.
        source: Plain data that names the weights.
        start: The reference engine's answers with the starting model; None: that is what is scored.

    Raises:
        UserError: They do not agree, or it cannot be seen that the server has the trained weights.
    """
    reference, engine = GenerationSettings().engine, spec.generation.engine
    count = len(chosen(examples))
    yield Stage(text=f"comparing {engine} with {reference} on {count} items")
    ours = answers_here(lambda: built, examples, spec, shots, source=source)
    theirs = _answers(built, chosen(examples), _plain(spec, engine), shots)
    told = compare(theirs, ours, start)
    trouble = unlike(told, model=str(spec.endpoint.model), engine=engine, reference=reference)
    if trouble is not None:
        raise trouble
    said = f"{engine} answers {told.same} of {told.items} items as {reference} does"
    found = {"with": reference, "tokens": TOKENS, "items": told.items, "same": told.same, "chance": told.chance}
    if told.changed is not None:
        said += f"; the trained weights show in {told.seen} of the {told.changed} that they change"
        found |= {"changed": told.changed, "seen": told.seen, "hidden": told.hidden}
    yield Stage(text=said)
    return found


# ---------------------------------------------------------------------------------------------------------- comparing


def compare(theirs: Answers, ours: Answers, start: Answers | None) -> Told:
    """Hold answers against the reference engine's, item by item; white space around an answer does not count."""
    theirs, ours = [one.strip() for one in theirs], [one.strip() for one in ours]
    count = len(ours)
    same = [one == other for one, other in zip(theirs, ours, strict=True)]
    crossed = sum(one == other for one in theirs for other in ours) - sum(same)
    told = Told(
        items=count,
        same=sum(same),
        chance=crossed / (count * (count - 1)) if count > 1 else 1.0,
        misplaced=sum(one in ours and not alike for one, alike in zip(theirs, same, strict=True)),
    )
    if start is None:
        return told
    start = [one.strip() for one in start]
    triples = [three for three in zip(theirs, ours, start, strict=True) if three[1] != three[2]]
    nearer = [_shared(one, ours_) - _shared(one, start_) for one, ours_, start_ in triples]
    return replace(
        told, changed=len(triples), seen=sum(lead > 0 for lead in nearer), hidden=sum(lead < 0 for lead in nearer)
    )


def _shared(one: str, other: str) -> int:
    """How far two answers go together; one more where they end together too."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    return shared + (one == other)


def unlike(told: Told, *, model: str, engine: str, reference: str) -> UserError | None:
    """Why scores of that engine cannot be used, or None."""
    alike = f"{engine} ('{model}') answers {told.same} of {told.items} items as {reference} does"
    if told.changed == 0:
        return UserError(
            f"the trained weights change none of the first {TOKENS} tokens of {told.items} answers, so it cannot be "
            f"seen whether '{model}' has them",
            fix=f"score this one with generation.engine={reference}",
        )
    if told.hidden > told.seen:
        return UserError(
            f"{alike}; of {told.changed} answers that the training changed, {told.hidden} are the starting model's: "
            "the server ignores the trained weights",
            fix="serve the adapter under a name of its own, and name it: endpoint.model=... (docs/endpoints.md)",
        )
    if told.same < SHARE * told.items:
        other = f"; {told.misplaced} are its answers to other items" if told.misplaced else ""
        return UserError(
            f"{alike}, which is too few{other}",
            fix="serve the same weights in the same precision, without sampling defaults of its own "
            "(docs/endpoints.md); endpoint.model and endpoint.base_model say who is asked",
        )
    if told.changed is not None and told.seen == told.hidden == 0:
        return UserError(
            f"{alike}, but none of the {told.changed} answers that the training changed shows the trained weights",
            fix=f"score this one with generation.engine={reference}, or on more rows",
        )
    by_chance = 1.0 - (1.0 - told.chance) ** (told.items - 1)  # that an answer is one of those to the other items
    if told.misplaced and float(binom.sf(told.misplaced - 1, told.items - told.same, by_chance)) < LEVEL:
        return UserError(
            f"{alike}, and {told.misplaced} of the others are its answers to other items: they reach the wrong prompts",
            fix="does the server, or a proxy before it, keep the order and the index of its answers?",
        )
    if float(binom.sf(told.same - 1, told.items, told.chance)) > LEVEL:
        return UserError(
            f"{alike}, but answers to different items are alike too (a share of {told.chance:.2f}): that shows nothing",
            fix=f"score it with generation.engine={reference}, or on more rows",
        )
    if told.changed is not None and told.seen < SHARE * (told.seen + told.hidden):
        return UserError(
            f"{alike}; of {told.changed} answers that the training changed, only {told.seen} show it, and "
            f"{told.hidden} are the starting model's",
            fix="is the whole adapter served, with its own scale? (docs/endpoints.md)",
        )
    return None


# ------------------------------------------------------------------------------------------------------------- asking


def _plain(spec: RunSpec, engine: str) -> RunSpec:
    """The spec with one greedy answer to each prompt, of one engine."""
    alone = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_beams": 1, "length_penalty": 1.0}
    settings = {**alone, "num_return_sequences": 1, "engine": engine}
    return spec.model_copy(update={"generation": spec.generation.model_copy(update=settings)})


def _answers(built: Built, asked: Sequence[Example], spec: RunSpec, shots: Sequence[Example]) -> Answers:
    """Short answers of the spec's engine, in the order of the items."""
    prompts = [_short(prompt) for prompt in answering.prompts_of(built, asked, spec, shots)]
    found: dict[int, str] = {}
    session = answering.opened(built, spec)
    try:
        for batch in generation.generate(
            session,
            prompts,
            generation.options_of(built, spec.generation, answering.stop_strings(spec)),
            batch_size=session.at_once or spec.batch.per_device_eval_batch_size,
            equal_lengths=built.equal_lengths and session.at_once is None,
            seed=spec.seed,
        ):
            found.update({index: one.text for index, one in batch.items()})
    finally:
        session.close()
    return [found[index] for index in range(len(prompts))]


def _short(prompt: Prompt) -> Prompt:
    return replace(prompt, max_new_tokens=min(prompt.max_new_tokens, TOKENS))


def endpoint_of(spec: RunSpec) -> Mapping[str, Any]:
    """What the settings of an evaluation say of the server that was asked: never its address or a key."""
    names = ("model", "prompts", "extra_body")
    return {"endpoint": {name: getattr(spec.endpoint, name) for name in names}} if is_asked(spec) else {}
