"""A client of any server with OpenAI's completions protocol: vLLM, SGLang, llama.cpp, ... Loads no weights.

Whether the server has the weights that are to be scored is not asked here: `scores/agreement.py` sees to it.

The protocol: POST /completions takes `prompt` (a text, a list of token ids, or a list of either), `max_tokens`,
`temperature`, `n`, `stop`, and answers with `choices`, of which `index` counts the prompts, and within each its `n`;
GET /models lists who can be asked (https://platform.openai.com/docs/api-reference/completions).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peftlab import seeds
from peftlab.digest import digest
from peftlab.engines._asking import Asking, Refused, Server, connected
from peftlab.errors import UserError, unknown_name
from peftlab.protocols import Completion, Engine, Prompt, Session

_OURS = frozenset(
    ("model", "prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "echo", "best_of")
)
_CHUNKS = 8
"""Prompts that are handed over together, as a multiple of what is under way at once: the rest waits at each end."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Prompts that are asked together, each for the same number of answers.

    Attributes:
        places: For each prompt the places in the batch that its answers go to.
        before: How many answers to its first prompt were asked for earlier.
    """

    prompts: tuple[Prompt, ...]
    places: tuple[tuple[int, ...], ...]
    num_each: int
    before: int = 0


@dataclass
class _Conversation:
    """What is known of one server while it is asked."""

    endpoint: Any
    server: Server
    context: int | None = None
    asked: Counter[str] = field(default_factory=Counter)


def _check(endpoint: Any, generation: Any) -> None:
    """Refuse what the settings leave open, and what the protocol has no word for."""
    if endpoint.url is None:
        raise UserError("generation.engine = openai: no server is named", fix="endpoint.url=http://localhost:8000/v1")
    for name, plain in (("num_beams", 1), ("no_repeat_ngram_size", 0)):
        if getattr(generation, name) != plain:
            raise UserError(
                f"generation.{name} = {getattr(generation, name)}: the completions protocol has no such setting",
                fix="use generation.engine=hf, or leave it out",
            )
    reserved = sorted((_OURS | ({"top_k"} if generation.top_k else set())).intersection(endpoint.extra_body))
    if reserved:
        raise UserError(
            f"endpoint.extra_body sets {', '.join(reserved)}, which the other settings say", fix="leave them out there"
        )
    if endpoint.prompts == "text" and generation.chat_template:
        raise UserError(
            "endpoint.prompts = text with generation.chat_template: a server would put its own marks around ours",
            fix="endpoint.prompts=tokens",
        )
    _key(endpoint)


def _key(endpoint: Any) -> str | None:
    if endpoint.api_key_variable is None:
        return None
    key = os.environ.get(endpoint.api_key_variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        state = "is not set" if not key else "holds no key: letters, digits and signs of ASCII"
        raise UserError(
            f"endpoint.api_key_variable: the variable {endpoint.api_key_variable} {state}",
            fix=f"export {endpoint.api_key_variable}=...",
        )
    return key


def _open(endpoint: Any, *, seed: int = 0) -> Session:
    """Open on the group `endpoint`: asks the server which models it has."""
    server = Server(
        url=endpoint.url.rstrip("/"),
        key=_key(endpoint),
        concurrency=endpoint.concurrency,
        timeout_seconds=endpoint.timeout_seconds,
        retries=endpoint.retries,
        seed=seed,
    )
    here = _Conversation(endpoint=endpoint, server=server)
    here.context = _waited_for(_look_up(here))
    return Session(
        generate=lambda prompts, options: _waited_for(_generate(here, prompts, options)),
        at_once=_CHUNKS * endpoint.concurrency,
    )


def _waited_for(work: Coroutine[Any, Any, T]) -> T:
    """The result of asynchronous work, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _look_up(here: _Conversation) -> int | None:
    """The context of the model that is to be asked, where the server says it.

    Raises:
        UserError: The server cannot be reached, or has no model of that name.
    """
    name, place = here.endpoint.model, f"{here.server.url}/models"
    async with connected(here.server) as asking:
        try:
            found = await asking.ask("/models", retries=1)
        except Refused as refused:
            if refused.status == 404:
                raise UserError(
                    f"{place}: not found, so this is no address of the protocol",
                    fix="name what comes before /completions, mostly it ends in /v1: endpoint.url=...",
                ) from None
            raise UserError(f"{place}: {refused}", fix="look what the server logs") from None
    listed = found.get("data") if isinstance(found, dict) else None
    cards = [card for card in listed or () if isinstance(card, dict) and isinstance(card.get("id"), str)]
    if not isinstance(listed, list) or not cards:
        raise UserError(f"{place}: its answer lists no models", fix="is this a server of OpenAI's protocol?")
    by_name = {card["id"]: card for card in cards}
    card = by_name.get(name) or by_name.get(name.partition(":")[0])  # SGLang asks for base:adapter
    if card is None:
        raise unknown_name("model", name, by_name, where=f"{place}: endpoint.model or base_model")
    whole = by_name.get(str(card.get("parent")), card)  # vLLM says it of the base alone
    context = card.get("max_model_len") or whole.get("max_model_len")
    return context if isinstance(context, int) else None


async def _generate(here: _Conversation, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[Completion]:
    """Answers to all prompts, in their order; the first failure ends them all."""
    _fit(here, prompts)
    answers: dict[int, Completion] = {}

    async def fetch(asking: Asking, request: _Request) -> None:
        answers.update(await _answers(here, asking, request, options))

    try:
        async with connected(here.server) as asking, asyncio.TaskGroup() as group:
            for request in _requests(here, prompts, options):
                group.create_task(fetch(asking, request))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [answers[place] for place in range(len(prompts))]


def _fit(here: _Conversation, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that the server has no room for: cut ones would be scored as if they were whole."""
    if here.context is None:
        return
    needed = [len(prompt.token_ids) + prompt.max_new_tokens for prompt in prompts]
    over = [number for number in needed if number > here.context]
    if over:
        raise UserError(
            f"{here.server.url}: {len(over)} of {len(prompts)} prompts need more than the {here.context} tokens that "
            f"it serves '{here.endpoint.model}' with: up to {max(over)}, the answer included",
            fix=f"serve it with more, or limit the answers: generation.max_length={here.context}",
        )


def _requests(here: _Conversation, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[_Request]:
    """Equal prompts as one with several answers (or, greedy, one answer for all), equal limits together."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault((prompt.token_ids, prompt.text, prompt.max_new_tokens), []).append(place)
    alike: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for copies in places.values():
        count = len(copies) if options["do_sample"] else 1
        alike.setdefault((prompts[copies[0]].max_new_tokens, count), []).append(tuple(copies))
    size, requests = here.endpoint.prompts_per_request, []
    for (_, count), found in alike.items():
        for start in range(0, len(found), size):
            part = found[start : start + size]
            asked = tuple(prompts[where[0]] for where in part)
            named = digest(list(asked[0].token_ids))
            requests.append(_Request(prompts=asked, places=tuple(part), num_each=count, before=here.asked[named]))
            here.asked[named] += count
    return requests


async def _answers(
    here: _Conversation, asking: Asking, request: _Request, options: Mapping[str, Any]
) -> dict[int, Completion]:
    """The answers to one request by their place in the batch.

    A server that gives fewer answers to a prompt than `n` (some know one only) is asked for the rest.
    """
    found: list[list[Completion]] = [[] for _ in request.prompts]
    while len(found[0]) < request.num_each:
        missing = request.num_each - len(found[0])
        body = _body(here, request, options, missing, request.before + len(found[0]))
        try:
            answer = await asking.ask("/completions", body)
        except Refused as refused:
            raise _refusal(here, refused, request) from None
        got = _read(here, answer, request, missing, options["stop"])
        for known, more in zip(found, got, strict=True):
            known.extend(more)
    result: dict[int, Completion] = {}
    for where, known in zip(request.places, found, strict=True):
        copies = known if len(known) == len(where) else known * len(where)
        result.update(zip(where, copies, strict=True))
    return result


def _body(
    here: _Conversation, request: _Request, options: Mapping[str, Any], num_each: int, before: int
) -> dict[str, Any]:
    text = here.endpoint.prompts == "text"
    shown: list[Any] = [prompt.text if text else list(prompt.token_ids) for prompt in request.prompts]
    body: dict[str, Any] = {
        **here.endpoint.extra_body,
        "model": here.endpoint.model,
        "prompt": shown[0] if len(shown) == 1 else shown,
        "max_tokens": request.prompts[0].max_new_tokens,
        "temperature": options["temperature"] if options["do_sample"] else 0.0,
        "stream": False,
    }
    if num_each > 1:
        body["n"] = num_each
    if options["stop"]:
        body["stop"] = list(options["stop"])
    if options["do_sample"]:
        named = digest(list(request.prompts[0].token_ids))
        seed = seeds.derive(here.server.seed, "sampling", named, before) % 2**31
        body.update(top_p=options["top_p"], seed=seed, **({"top_k": options["top_k"]} if options["top_k"] else {}))
    return body


def _refusal(here: _Conversation, refused: Refused, request: _Request) -> UserError:
    place, longest = f"{here.server.url}/completions", max(len(prompt.token_ids) for prompt in request.prompts)
    said = refused.said.lower()
    if refused.status == 404 and "model" in said:
        return UserError(f"{place}: {refused}", fix=f"GET {here.server.url}/models lists the names: endpoint.model=...")
    if "context" in said or "too long" in said or "maximum" in said:
        return UserError(
            f"{place}: a prompt of {longest} tokens with {request.prompts[0].max_new_tokens} for its answer is too "
            f"much for it: {refused}",
            fix="serve the model with a longer context, or set generation.max_length",
        )
    return UserError(
        f"{place}: {refused}", fix="look what the server logs; endpoint.prompts=text for one that takes no token ids"
    )


# ------------------------------------------------------------------------------------------------- what comes back


def _read(
    here: _Conversation, answer: Any, request: _Request, num_each: int, stop: Sequence[str]
) -> list[list[Completion]]:
    """The answers to each prompt of a request, in order.

    Raises:
        UserError: What came is no answer to what was asked.
    """
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _malformed(here, "it holds no list of choices")
    name = answer.get("model")
    if isinstance(name, str) and name not in (here.endpoint.model, here.endpoint.model.partition(":")[0]):
        raise UserError(
            f"{here.server.url}: asked for '{here.endpoint.model}', it answers as '{here.server.shown(name)}'",
            fix="name the model that is to be scored: endpoint.model=...",
        )
    each, rest = divmod(len(found), len(request.prompts))
    if rest or not 1 <= each <= num_each:
        raise _malformed(here, f"{len(found)} choices for {len(request.prompts)} prompts, {num_each} asked of each")
    if len(found) > 1:
        numbers = [one.get("index") for one in found]
        if sorted(number for number in numbers if type(number) is int) != list(range(len(found))):
            raise _malformed(here, f"its choices carry the numbers {numbers}, which tell not where they belong")
        found = sorted(found, key=lambda one: int(one["index"]))
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    _same_prompts(here, usage.get("prompt_tokens"), request)
    count = usage.get("completion_tokens") if len(found) == 1 else None
    read = [_completion(here, one, stop, count if isinstance(count, int) else None) for one in found]
    return [read[start : start + each] for start in range(0, len(read), each)]


def _completion(here: _Conversation, choice: Mapping[str, Any], stop: Sequence[str], count: int | None) -> Completion:
    """One answer, cut at the first stop string as the reference engine cuts it."""
    text, finish = choice.get("text"), choice.get("finish_reason")
    if not isinstance(text, str):
        raise _malformed(here, "a choice without its 'text'; is it the protocol of chats?")
    if finish not in ("stop", "length"):
        raise _malformed(here, f"a choice that ended for the reason {finish!r}")
    cuts = [text.find(string) for string in stop if string in text]
    if cuts:
        text, finish = text[: min(cuts)], "stop"
    return Completion(text=text, token_ids=None, finish=finish, num_tokens=count)


def _same_prompts(here: _Conversation, counted: Any, request: _Request) -> None:
    """Refuse answers to prompts that the server read as other tokens than ours."""
    ours = sum(len(prompt.token_ids) for prompt in request.prompts)
    if isinstance(counted, int) and counted != ours:
        raise UserError(
            f"{here.server.url}: it counts {counted} tokens in a prompt of {ours}: it cuts it, adds to it, or has "
            "another tokenizer",
            fix="endpoint.prompts=tokens leaves it nothing to tokenise"
            if here.endpoint.prompts == "text"
            else "serve the model with its own tokenizer and its whole context",
        )


def _malformed(here: _Conversation, what: str) -> UserError:
    return UserError(
        f"{here.server.url}/completions: its answer is none of the protocol: {here.server.shown(what)}",
        fix="ask a server of OpenAI's completions, such as vLLM, SGLang or llama.cpp (docs/endpoints.md)",
    )


PLUGIN = Engine(open=_open, returns_token_ids=False, elsewhere=True, check=_check)
