"""JSON over HTTP: one request within its limits, asked again where that may help. Knows nothing of what is asked.

A key is only ever a header: it stands in no message, and a server's own words are shown without it. Redirects are not
followed, since they could carry it elsewhere.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftlab import seeds
from peftlab.errors import UserError

if TYPE_CHECKING:
    import httpx

_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Status codes of troubles that may pass."""

_NO_KEY = frozenset((401, 403))
_THIS_MACHINE = frozenset(("localhost", "127.0.0.1", "::1"))
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 60.0
_CONNECT_SECONDS = 30.0
_MOST_BYTES = 64 * 2**20
_SHOWN_CHARACTERS = 240


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where requests go, and within which limits.

    Attributes:
        url: What all paths begin with.
        key: Sent as a bearer token; None: none is.
        concurrency: Requests under way at once.
        timeout_seconds: For a whole answer, however it trickles in.
        retries: How often a request is sent again.
        seed: Of the jitter of the waits in between.
    """

    url: str
    key: str | None = field(repr=False)
    concurrency: int
    timeout_seconds: float
    retries: int
    seed: int

    def shown(self, text: str) -> str:
        """A server's words, fit for a terminal: one line, short, without the key that some servers repeat."""
        if self.key:
            text = text.replace(self.key, "[key]")
        plain = "".join(sign if sign.isprintable() else " " for sign in text)
        return " ".join(plain.split())[:_SHOWN_CHARACTERS]


class Refused(Exception):
    """The server understood, and says no: asking again would not help.

    Attributes:
        status: The HTTP status code.
        said: The server's words, shortened, without the key.
    """

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said
        super().__init__(f"status {status}: {said}")


class _Trouble(Exception):
    """Something that may pass; `wait_seconds` is what the server asks for."""

    def __init__(self, reason: str, *, wait_seconds: float | None = None) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(reason)


async def pause(seconds: float) -> None:
    """Wait before a request is sent again."""
    await asyncio.sleep(seconds)


class Asking:
    """Connections to one server, good within one event loop."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self._server, self._client = server, client
        self._room = asyncio.Semaphore(server.concurrency)

    async def ask(self, path: str, body: Mapping[str, Any] | None = None, *, retries: int | None = None) -> Any:
        """The JSON answer to a GET, or to a POST of `body`.

        Raises:
            Refused: The server says no.
            UserError: It cannot be reached, goes on failing, wants a key, or what it says is no JSON.
        """
        most = self._server.retries if retries is None else min(retries, self._server.retries)
        attempt = 0
        while True:
            try:
                async with self._room:
                    return await self._once(path, body)
            except _Trouble as trouble:
                if attempt >= most:
                    times = f" (asked {attempt + 1} times)" if attempt else ""
                    raise UserError(
                        f"{self._server.url}{path}: {trouble}{times}",
                        fix="look whether the server runs and what it logs; endpoint.retries, endpoint.timeout_seconds "
                        "and endpoint.concurrency say how it is asked",
                    ) from None
                wait = _wait_seconds(self._server.seed, json.dumps(body), attempt)
                await pause(wait if trouble.wait_seconds is None else max(trouble.wait_seconds, wait))
                attempt += 1

    async def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        import httpx

        server = self._server
        try:
            async with asyncio.timeout(server.timeout_seconds):
                status, headers, content = await self._received(path, body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Trouble(f"no whole answer within {server.timeout_seconds:g} seconds") from None
        except httpx.ConnectError as error:
            raise _Trouble(f"cannot be reached: {self._server.shown(str(error))}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = str(error) or type(error).__name__
            raise _Trouble(f"the connection broke before the answer was whole: {self._server.shown(reason)}") from None
        said = self._server.shown(_words_of(content))
        if status in _AGAIN:
            raise _Trouble(f"status {status}: {said}", wait_seconds=_asked_wait(headers.get("retry-after")))
        if status in _NO_KEY:
            held = "the key is not accepted" if server.key else "it asks for a key"
            raise UserError(
                f"{server.url}{path}: status {status}, {held}: {said}",
                fix="export the key as a variable, and name it: endpoint.api_key_variable=NAME",
            )
        if status != 200:
            raise Refused(status, said)
        try:
            return json.loads(content)
        except ValueError:
            raise _Trouble(f"its answer is no JSON: {said!r}") from None

    async def _received(self, path: str, body: Mapping[str, Any] | None) -> tuple[int, Mapping[str, str], bytes]:
        method, url = "GET" if body is None else "POST", self._server.url + path
        content = bytearray()
        async with self._client.stream(method, url, json=body) as answer:
            async for part in answer.aiter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise UserError(
                        f"{url}: its answer has more than {_MOST_BYTES} bytes", fix="is this a server of completions?"
                    )
            return answer.status_code, answer.headers, bytes(content)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Asking]:
    """Connections that are closed at the end of the block.

    Raises:
        UserError: The library for it is not installed.
    """
    try:
        import httpx
    except ImportError:
        raise UserError("engine 'openai' needs the library httpx", fix="pip install 'peftlab[endpoint]'") from None
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    limits = httpx.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
    timeout = httpx.Timeout(server.timeout_seconds, connect=min(server.timeout_seconds, _CONNECT_SECONDS))
    async with httpx.AsyncClient(
        headers=headers,
        limits=limits,
        timeout=timeout,
        follow_redirects=False,
        verify=server.url.startswith("https:"),  # else there is nothing to verify, and reading certificates takes time
        trust_env=httpx.URL(server.url).host not in _THIS_MACHINE,  # a proxy would look for it on its own
    ) as client:
        yield Asking(server, client)


def _wait_seconds(seed: int, request: str, attempt: int) -> float:
    """Twice as long each time, up to a limit; by which half of it is shortened depends on the seed and the request.

    Exponential back-off with jitter keeps the requests that failed together from coming back together.
    """
    whole = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0**attempt)
    return whole * (0.5 + 0.5 * seeds.derive(seed, "sampling", "wait", attempt, request) / 2**63)


def _asked_wait(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number, or a date), within reason."""
    if header is None:
        return None
    if header.strip().isdecimal():
        seconds = float(header)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), 10 * _LONGEST_WAIT_SECONDS)


def _words_of(content: bytes) -> str:
    """What a body says: the message of an error as the protocol writes it, else the text itself."""
    text = content[:100_000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and isinstance(found.get(name), (str, dict)):
            found = found[name]
    return found if isinstance(found, str) else json.dumps(found)
