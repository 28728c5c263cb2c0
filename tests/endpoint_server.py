"""A stand-in for a server of OpenAI's completions, on a port of this machine's own loopback, with faults to choose.

What it answers is a function of token ids: scripted, or a tiny model's own greedy output (`writer`), made one prompt at
a time by transformers and peft alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import toy

Ids = tuple[int, ...]
Writer = Callable[[Ids, int], list[int]]
"""(prompt, limit) -> the ids of the answer, without an end-of-sequence id."""

TOKENIZER = toy.tokenizer()


def ids_of(text: str) -> Ids:
    return tuple(TOKENIZER(text)["input_ids"])


def text_of(ids: Any) -> str:
    return str(TOKENIZER.decode(ids))


def writer(model: Path, adapter: Path | None = None) -> Writer:
    """A saved model's own greedy answers, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(adapter))
    loaded.eval()
    lock = threading.Lock()
    written: dict[Ids, list[int]] = {}

    def write(prompt: Ids, limit: int) -> list[int]:
        with lock, torch.no_grad():
            answer = written.setdefault(prompt, [])
            while len(answer) < limit and answer[-1:] != [toy.VOCABULARY["<eos>"]]:
                answer.append(int(loaded(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, -1].argmax()))
            return [token for token in answer[:limit] if token != toy.VOCABULARY["<eos>"]]

    return write


@dataclass
class Faults:
    """What is wrong with the server. `troubles` are taken one by one, each by one request."""

    troubles: list[Callable[[Any], None]] = field(default_factory=list)
    swapped: Callable[[Ids], Ids] = lambda ids: ids
    reversed_choices: bool = False
    one_choice: bool = False
    own_stops: bool = True
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    key: str | None = None
    context: int | None = None
    start_for_all: bool = False


class StandIn:
    """A server that is up within `with`. `asked` holds the requests, `most` how many were under way at once."""

    def __init__(self, models: Mapping[str, Writer], **faults: Any) -> None:
        self.models = dict(models)
        self.faults = Faults(**faults)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: Any) -> None:
                pass

            def do_GET(self) -> None:
                stand_in._models(self)

            def do_POST(self) -> None:
                stand_in._completions(self)

        return Handler

    def _models(self, request: Any) -> None:
        if request.path != "/v1/models":
            send(request, 404, {"detail": "Not Found"})
            return
        if self._locked(request):
            return
        first, *more = self.models  # as vLLM lists them: adapters after the base, which alone knows the context
        cards = [{"id": first, "parent": None, "max_model_len": self.faults.context}]
        cards += [{"id": name, "parent": first, "max_model_len": None} for name in more]
        send(request, 200, {"object": "list", "data": cards})

    def _locked(self, request: Any) -> bool:
        self.headers.append(dict(request.headers))
        given = request.headers.get("Authorization")
        if self.faults.key is None or given == f"Bearer {self.faults.key}":
            return False
        send(request, 401, {"error": {"message": f"Incorrect API key provided: {given}."}})
        return True

    def _completions(self, request: Any) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            self.asked.append(body)
            self._now += 1
            self.most = max(self.most, self._now)
            trouble = self.faults.troubles.pop(0) if self.faults.troubles else None
        try:
            if trouble is not None:
                trouble(request)
            elif not self._locked(request):
                status, answer = self._answered(body)
                send(request, status, answer)
        except ConnectionError:
            pass  # who asked has gone
        finally:
            with self._lock:
                self._now -= 1

    def _answered(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        model = next(iter(self.models)) if self.faults.start_for_all else body["model"]
        several = isinstance(body["prompt"], list) and not isinstance(body["prompt"][0], int)
        prompts = [
            ids_of(one) if isinstance(one, str) else tuple(one)
            for one in (body["prompt"] if several else [body["prompt"]])
        ]
        choices: list[dict[str, Any]] = []
        written = 0
        for prompt in prompts:
            if self.faults.context is not None and len(prompt) + body["max_tokens"] > self.faults.context:
                return 400, {"message": f"This model's maximum context length is {self.faults.context} tokens."}
            for number in range(1 if self.faults.one_choice else body.get("n", 1)):
                seed = body.get("seed")
                asked = self.faults.swapped(prompt) if seed is None else (*prompt, (seed + number) % toy.SIZE)
                ids = self.models[model](asked, body["max_tokens"])
                written += len(ids)
                text, finish = text_of(ids), "length" if len(ids) == body["max_tokens"] else "stop"
                for stop in body.get("stop", ()) if self.faults.own_stops else ():
                    if stop in text:
                        text, finish = text[: text.find(stop)], "stop"
                choices.append({"index": len(choices), "text": text, "finish_reason": finish})
        if self.faults.reversed_choices:
            choices.reverse()
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": written}
        return 200, self.faults.change({"model": body["model"], "choices": choices, "usage": usage})


# ------------------------------------------------------------------------------------------------------- one trouble


def send(request: Any, status: int, content: Any, **headers: str) -> None:
    """Answer a request; text as it is, anything else as JSON."""
    plain = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(plain)))
    request.end_headers()
    request.wfile.write(plain)


def says(status: int, content: Any = "busy", **headers: str) -> Callable[[Any], None]:
    """Answer one request so."""
    return lambda request: send(request, status, content, **headers)


def drops(request: Any) -> None:
    """Close the connection in the middle of an answer."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"choices": [')
    request.wfile.flush()
    request.close_connection = True


def waits_for(event: threading.Event) -> Callable[[Any], None]:
    """Be slow: answer only when the event comes."""

    def wait(request: Any) -> None:
        event.wait(20)
        send(request, 200, "{}")

    return wait


def echo(prompt: Ids, limit: int) -> list[int]:
    """A scripted writer: the prompt backwards, so that every prompt has its own answer."""
    return list(prompt[::-1])[:limit]
