"""The engine `openai` against a stand-in server: what it sends, what it makes of answers, what it does in trouble.

The expected answers are the prompts backwards, which the stand-in's scripted writer gives.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import endpoint_server as served
from endpoint_server import StandIn, echo, ids_of
from peftlab.config.groups import EndpointSettings, GenerationSettings
from peftlab.engines import _asking
from peftlab.errors import UserError
from peftlab.protocols import Completion, Prompt, find

KEY = "sk-very-secret-0123"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The waits between requests, which are not waited for."""
    found: list[float] = []

    async def pause(seconds: float) -> None:
        found.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(_asking, "pause", pause)
    yield found


def prompts_of(*texts: str, limit: int = 40) -> list[Prompt]:
    return [Prompt(token_ids=ids_of(text), max_new_tokens=limit, text=text) for text in texts]


def options(stop: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    plain = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_beams": 1, "stop": stop}
    return {**plain, "num_return_sequences": 1, "pad_id": 0, **more}


def ask(server: StandIn, asked: list[Prompt], more: dict[str, Any] | None = None, **settings: Any) -> list[Completion]:
    endpoint = EndpointSettings(**{"url": server.url, "model": "toy", **settings})
    session = find("engines", "openai").open(endpoint, seed=3)
    try:
        found: list[Completion] = session.generate(asked, more or options())
        return found
    finally:
        session.close()


def texts(found: list[Completion]) -> list[str]:
    return [one.text for one in found]


# ---------------------------------------------------------------------------------------------- what is sent and read


@pytest.mark.parametrize("prompts", ["tokens", "text"])
def test_each_prompt_gets_its_own_answer_within_its_own_limit(prompts: str) -> None:
    asked = [*prompts_of("abc", "defgh"), *prompts_of("ijkl", limit=2)]
    with StandIn({"toy": echo}) as server:
        found = ask(server, asked, prompts=prompts, extra_body={"min_p": 0.0})
    assert found == [
        Completion(text="cba", token_ids=None, finish="stop", num_tokens=3),
        Completion(text="hgfed", token_ids=None, finish="stop", num_tokens=5),
        Completion(text="lk", token_ids=None, finish="length", num_tokens=2),
    ]
    sent = {json.dumps(body["prompt"]): body for body in server.asked}
    first = sent[json.dumps(list(ids_of("abc")) if prompts == "tokens" else "abc")]
    plain = {"model": "toy", "max_tokens": 40, "temperature": 0.0, "stream": False, "min_p": 0.0}
    assert {name: value for name, value in first.items() if name != "prompt"} == plain


def test_answers_in_mixed_order_are_put_right_by_their_index() -> None:
    asked = prompts_of("abc", "defgh", "ij", "klm", "nop")
    with StandIn({"toy": echo}, reversed_choices=True) as server:
        found = ask(server, asked, prompts_per_request=3)
    assert texts(found) == ["cba", "hgfed", "ji", "mlk", "pon"]
    assert sorted(len(body["prompt"]) for body in server.asked) == [2, 3]
    assert {one.num_tokens for one in found} == {None}, "the count of a whole request belongs to no answer"


def test_equal_prompts_are_one_request_and_samples_are_apart() -> None:
    copies = [one for one in prompts_of("abc", "xy") for _ in range(3)]
    with StandIn({"toy": echo}) as server:
        assert texts(ask(server, copies)) == ["cba"] * 3 + ["yx"] * 3
        assert len(server.asked) == 2 and all("n" not in body for body in server.asked), "greedy ones are equal"
    sampled = options(do_sample=True, temperature=0.2, top_p=0.95)
    found = []
    for one_choice in (False, True):
        with StandIn({"toy": echo}, one_choice=one_choice) as server:
            found.append(texts(ask(server, copies, sampled)))
        assert sorted(body.get("n", 1) for body in server.asked) == ([1, 1, 2, 2, 3, 3] if one_choice else [3, 3])
        assert all((body["temperature"], body["top_p"]) == (0.2, 0.95) for body in server.asked)
    assert all(len(set(one[:3])) == 3 and len(set(one[3:])) == 3 for one in found)
    with StandIn({"toy": echo}) as server:
        assert texts(ask(server, copies, sampled)) == found[0], "seeds come from the run's, not from the moment"


def test_a_later_batch_of_the_same_prompt_draws_other_samples() -> None:
    sampled = options(do_sample=True)
    with StandIn({"toy": echo}) as server:
        endpoint = EndpointSettings(url=server.url, model="toy")
        session = find("engines", "openai").open(endpoint, seed=3)
        [first], [second] = (session.generate(prompts_of("abc"), sampled) for _ in range(2))
    assert first.text != second.text


@pytest.mark.parametrize("own_stops", [True, False])
def test_stop_strings_cut_here_as_well(own_stops: bool) -> None:
    with StandIn({"toy": echo}, own_stops=own_stops) as server:
        [found] = ask(server, prompts_of("tail:STOP one"), options(stop=("zz", "POTS", "eno")))
        assert (found.text, found.finish) == ("", "stop")
        [found] = ask(server, prompts_of("tail:STOP one"), options(stop=("POTS",)))
    assert (found.text, found.finish) == ("eno ", "stop")
    assert server.asked[0]["stop"] == ["zz", "POTS", "eno"]


def test_no_more_requests_are_under_way_than_asked_for() -> None:
    many = prompts_of(*(f"prompt {number}" for number in range(30)))
    with StandIn({"toy": echo}) as server:
        found = ask(server, many, concurrency=3)
    assert texts(found) == [one.text[::-1] for one in many]
    assert 1 <= server.most <= 3


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with StandIn({"toy": echo}) as server:
        assert texts(ask(server, prompts_of("abc"))) == ["cba"]


def test_it_works_where_an_event_loop_runs_already() -> None:
    async def notebook() -> list[str]:
        return texts(ask(server, prompts_of("abc")))

    with StandIn({"toy": echo}) as server:
        assert asyncio.run(notebook()) == ["cba"]


# ----------------------------------------------------------------------------------------------------------- troubles

PASSING = {
    "500": served.says(500),
    "429": served.says(429, {"error": {"message": "slow down"}}),
    "503": served.says(503),
    "not JSON": served.says(200, "<html>gateway</html>"),
    "dropped": served.drops,
}


@pytest.mark.parametrize("name", PASSING)
def test_troubles_that_pass_are_waited_out(name: str, waits: list[float]) -> None:
    with StandIn({"toy": echo}, troubles=[PASSING[name]] * 3) as server:
        assert texts(ask(server, prompts_of("abc"))) == ["cba"]
    assert len(server.asked) == 4 and len(waits) == 3
    assert all(0.25 * 2**at <= wait <= 0.5 * 2**at for at, wait in enumerate(waits)), waits


LASTING = {
    "500": ("status 500: busy (asked 3 times)",),
    "429": ("status 429: slow down",),
    "not JSON": ("its answer is no JSON: '<html>gateway</html>'",),
    "dropped": ("the connection broke before the answer was whole",),
}


@pytest.mark.parametrize("name", LASTING)
def test_troubles_that_do_not_pass_are_said(name: str, waits: list[float]) -> None:
    with StandIn({"toy": echo}, troubles=[PASSING[name]] * 9) as server, pytest.raises(UserError) as caught:
        ask(server, prompts_of("abc"), retries=2)
    for words in (f"{server.url}/completions", *LASTING[name]):
        assert words in caught.value.message
    assert caught.value.fix is not None and len(waits) == 2


def test_a_slow_answer_is_given_up_and_asked_for_again(waits: list[float]) -> None:
    body = {"model": "toy", "prompt": list(ids_of("abc")), "max_tokens": 9}

    async def once(url: str, retries: int) -> Any:
        limits = _asking.Server(url=url, key=None, concurrency=1, timeout_seconds=0.2, retries=retries, seed=0)
        async with _asking.connected(limits) as asking:
            return await asking.ask("/completions", body)

    never = threading.Event()
    try:
        with StandIn({"toy": echo}, troubles=[served.waits_for(never)]) as server:
            assert asyncio.run(once(server.url, 20))["choices"][0]["text"] == "cba"
            server.faults.troubles = [served.waits_for(never)]
            with pytest.raises(UserError, match=r"no whole answer within 0\.2 seconds"):
                asyncio.run(once(server.url, 0))
    finally:
        never.set()
    assert waits


def test_the_server_says_how_long_to_wait(waits: list[float]) -> None:
    asked = [served.says(429, Retry_After="7"), served.says(503, Retry_After="Mon, 01 Jan 2001 00:00:00 GMT")]
    asked += [served.says(503, Retry_After="soon"), served.says(429, Retry_After="999999")]
    with StandIn({"toy": echo}, troubles=asked) as server:
        ask(server, prompts_of("abc"))
    assert waits[0] == 7 and 0.5 <= waits[1] <= 1 and 1 <= waits[2] <= 2 and waits[3] == 600


def test_waits_depend_on_the_seed_alone() -> None:
    first, again, other = ([_asking._wait_seconds(seed, "request", at) for at in range(12)] for seed in (1, 1, 2))
    assert first == again != other
    assert all(0.5 <= wait / min(60, 0.5 * 2**at) <= 1 for at, wait in enumerate(first))
    assert _asking._wait_seconds(1, "another request", 0) != first[0], "what failed together comes back apart"


def test_the_first_failure_ends_the_rest() -> None:
    many = prompts_of(*(f"prompt {number}" for number in range(50)))
    with StandIn({"toy": echo}, troubles=[served.says(422, {"message": "no"})]) as server:
        with pytest.raises(UserError, match="status 422: no"):
            ask(server, many, concurrency=2)
        assert len(server.asked) < 10


# --------------------------------------------------------------------------------------------- answers that are wrong


def choices(*found: Any, **more: Any) -> dict[str, Any]:
    return {"change": lambda answer: {**answer, "choices": list(found), **more}}


CHOICE = {"index": 0, "text": "x", "finish_reason": "stop"}
WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no object": ({"change": lambda answer: [answer]}, ("holds no list of choices",)),
    "no choices": ({"change": lambda answer: {"model": "toy"}}, ("holds no list of choices",)),
    "none at all": (choices(), ("0 choices for 2 prompts",)),
    "too many": (choices(*[CHOICE] * 4), ("4 choices for 2 prompts, 1 asked of each",)),
    "one missing": (choices(CHOICE), ("1 choices for 2 prompts",)),
    "an index twice": (choices(CHOICE, CHOICE), ("numbers [0, 0]",)),
    "no index": (choices({"text": "x"}, CHOICE), ("numbers [None, 0]",)),
    "an index out of range": (choices(CHOICE, {**CHOICE, "index": 2}), ("numbers [0, 2]",)),
    "a chat": (choices(CHOICE, {"index": 1, "message": {"content": "x"}}), ("without its 'text'", "chats")),
    "cut short": (choices(CHOICE, {**CHOICE, "index": 1, "finish_reason": "abort"}), ("for the reason 'abort'",)),
    "another model": (
        {"change": lambda answer: {**answer, "model": "other"}},
        ("asked for 'toy', it answers as 'other'",),
    ),
    "other tokens": (
        {"change": lambda answer: {**answer, "usage": {"prompt_tokens": 9}}},
        ("counts 9 tokens in a prompt of 8",),
    ),
    "a refusal": ({"troubles": [served.says(400, {"detail": "prompt must be text"})]}, ("prompt must be text",)),
    "a page elsewhere": ({"troubles": [served.says(307, "", Location="http://127.0.0.1:9/")]}, ("status 307",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error_and_no_score(name: str, waits: list[float]) -> None:
    faults, expected = WRONG[name]
    with StandIn({"toy": echo}, **faults) as server, pytest.raises(UserError) as caught:
        ask(server, prompts_of("abc", "defgh"), prompts_per_request=2)
    for words in (server.url, *expected):
        assert words in caught.value.message, caught.value.message
    assert caught.value.fix is not None and not waits, "asking again would not help"


def test_a_prompt_over_the_context_is_refused_before_anything_is_asked() -> None:
    with StandIn({"toy": echo}, context=20) as server:
        with pytest.raises(UserError, match=r"1 of 2 prompts need more than the 20 tokens .* up to 24") as caught:
            ask(server, prompts_of("abc", "abcdefghij" * 2, limit=4))
        assert "generation.max_length=20" in str(caught.value) and not server.asked
    with (
        StandIn({"base": echo, "toy": echo}, context=20) as server,
        pytest.raises(UserError, match="serves 'toy' with"),
    ):
        ask(server, prompts_of("abc"))
    full, said = served.says(400, "maximum context length is 20 tokens"), "a prompt of 3 tokens with 40 for its answer"
    with StandIn({"toy": echo}, troubles=[full]) as server, pytest.raises(UserError, match=said):
        ask(server, prompts_of("abc"))


def test_a_model_that_the_server_lost_meanwhile_is_said() -> None:
    with StandIn({"toy": echo}) as server:
        session = find("engines", "openai").open(EndpointSettings(url=server.url, model="toy"))
        server.models.clear()
        with pytest.raises(UserError, match="The model `toy` does not exist"):
            session.generate(prompts_of("abc"), options())


# ------------------------------------------------------------------------------------------------------------ the key


def test_the_key_is_sent_and_never_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, waits: list[float]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOY_KEY", KEY)
    echoing = served.says(500, {"error": f"bad header Bearer {KEY}"})
    with StandIn({"toy": echo}, key=KEY, troubles=[echoing]) as server:
        assert texts(ask(server, prompts_of("abc"), api_key_variable="TOY_KEY")) == ["cba"]
        server.faults.troubles = [echoing] * 2
        with pytest.raises(UserError, match=r"bad header Bearer \[key\]") as first:
            ask(server, prompts_of("abc"), api_key_variable="TOY_KEY", retries=1)
        server.faults.key = "another"
        with pytest.raises(UserError, match=r"status 401, the key is not accepted: Incorrect") as second:
            ask(server, prompts_of("abc"), api_key_variable="TOY_KEY")
        with pytest.raises(UserError, match="it asks for a key"):
            ask(server, prompts_of("abc"))
    assert any(KEY in header.get("Authorization", "") for header in server.headers)
    assert KEY not in caplog.text and KEY not in f"{first.value!r} {second.value!r} {second.value.__context__!r}"
    url = _asking.Server(url="u", key=KEY, concurrency=1, timeout_seconds=1, retries=0, seed=0)
    assert KEY not in repr(url)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"api_key_variable": KEY}, "not the name of an environment variable"),
        ({"url": f"http://user:{KEY}@127.0.0.1/v1"}, "url holds a name or a key"),
        ({"url": f"http://127.0.0.1/v1?key={KEY}"}, "url holds a query"),
    ],
)
def test_a_key_in_a_setting_is_refused_without_repeating_it(changes: dict[str, str], expected: str) -> None:
    from peftlab.config.settings import validated

    with pytest.raises(UserError, match=expected) as caught:
        validated(EndpointSettings, changes, where="command line [endpoint]")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://h/v1", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="is no address such as"):
        EndpointSettings(url=url)


def test_what_the_protocol_has_no_word_for_is_refused() -> None:
    check, url = find("engines", "openai").check, EndpointSettings(url="http://h/v1")
    check(url, GenerationSettings())
    for settings, expected in (
        ({"num_beams": 4}, "generation.num_beams = 4"),
        ({"no_repeat_ngram_size": 3}, "generation.no_repeat_ngram_size = 3"),
    ):
        with pytest.raises(UserError, match=expected):
            check(url, GenerationSettings.model_validate(settings))
    with pytest.raises(UserError, match=r"endpoint\.extra_body sets max_tokens, stop"):
        check(EndpointSettings(url="http://h/v1", extra_body={"stop": [], "max_tokens": 1}), GenerationSettings())
    everything = EndpointSettings(url="http://h/v1", extra_body={"top_k": 0})
    check(everything, GenerationSettings())
    with pytest.raises(UserError, match=r"endpoint\.extra_body sets top_k"):
        check(everything, GenerationSettings(do_sample=True, top_k=5))
    with pytest.raises(UserError, match="no server is named"):
        check(EndpointSettings(), GenerationSettings())
    with pytest.raises(UserError, match="would put its own marks around ours"):
        check(EndpointSettings(url="http://h/v1", prompts="text"), GenerationSettings(chat_template=True))
