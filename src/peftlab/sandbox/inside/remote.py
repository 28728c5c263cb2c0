"""The program as its tests see it: names, functions and objects that live in another process; not the tests' own code.

The checker holds these. What they return is decoded data, so a comparison in a test is a comparison of plain objects by
the checker's own interpreter. An object that is not data is never asked whether it equals something: that question
would show it the expected value, and its answer could not be believed.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import Any

from . import wire

_NEVER = {"SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration", "StopAsyncIteration"}
"""Exceptions that would mean something to the checker's own interpreter."""


class Ended(BaseException):
    """No further answer is to be had. A BaseException, so that no `except Exception` of a test swallows it."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


class Connection:
    """The pipe to the program, and which exceptions came through it."""

    def __init__(self, requests: int, replies: int, limit: int) -> None:
        self.requests, self.replies, self.limit = requests, replies, limit
        self.crossed: BaseException | None = None
        self.ended: Ended | None = None

    def names(self) -> list[str]:
        """What the program defines, once it has run."""
        kind, *parts = self._reply()
        if kind == "syntax":
            raise self._end("syntax", _text(parts[0]))
        if kind != "loaded":
            self._refuse(kind, parts)
        return [name for name in parts[0] if type(name) is str]

    def ask(self, *request: Any) -> tuple[Any, dict[Any, Any]]:
        """One question, one answer: the value, and the arguments that changed."""
        if self.ended:  # a test that swallows everything gets no second chance
            raise self.ended
        try:
            wire.send(self.requests, wire.encode(request, _handle, 1 << 30))
            kind, *parts = self._reply()
        except wire.Gone:
            raise self._end("lost", "the program's process ended") from None
        if kind == "stop":
            if request[0] != "next":  # it would end a loop of the tests as if all had been well
                raise self._end("lost", "the program's process answered nonsense")
            raise StopIteration
        if kind != "ok":
            self._refuse(kind, parts)
        value, changed = parts
        return value, changed if type(changed) is dict else {}

    def _reply(self) -> tuple[Any, ...]:
        try:
            reply = wire.decode(wire.receive(self.replies, self.limit), self._resolve)
        except wire.Gone:
            raise self._end("lost", "the program's process ended") from None
        except wire.NotData as error:
            raise self._end("output" if "larger" in str(error) else "lost", str(error)) from None
        shapes = {"ok": 3, "stop": 1, "raised": 4, "toomuch": 2, "syntax": 2, "loaded": 2}
        if type(reply) is not tuple or not reply or type(reply[0]) is not str or shapes.get(reply[0]) != len(reply):
            raise self._end("lost", "the program's process answered nonsense")
        if reply[0] == "loaded" and type(reply[1]) is not list:
            raise self._end("lost", "the program's process answered nonsense")
        return reply

    def _refuse(self, kind: str, parts: list[Any]) -> None:
        if kind == "toomuch":
            raise self._end("output", _text(parts[0]))
        if kind != "raised":
            raise self._end("lost", "the program's process answered nonsense")
        name, bases, text = parts
        self.crossed = _exception(_text(name), bases if type(bases) is list else [], _text(text))
        raise self.crossed

    def _end(self, kind: str, detail: str) -> Ended:
        self.ended = Ended(kind, detail)
        return self.ended

    def _resolve(self, number: int, flags: int, name: str) -> Any:
        if flags & 2:
            # a module is never the program's: the checker imports its own
            return importlib.import_module(name) if name in sys.stdlib_module_names else None
        return Remote(self, number, bool(flags & 1), name)


def _exception(name: str, bases: list[Any], text: str) -> BaseException:
    """An exception of the nearest builtin kind, which says of itself what it was there."""
    error: BaseException = Exception(text)
    for base in bases:
        kind = getattr(builtins, base, None) if type(base) is str and base not in _NEVER else None
        if isinstance(kind, type) and issubclass(kind, BaseException) and kind not in (BaseException, Exception):
            try:
                error = kind(text)
                break
            except TypeError:  # a kind that wants more than a text
                continue
    error.__dict__["there"] = f"{name}: {text}".removesuffix(": ")
    return error


def _handle(value: Any) -> bytes:
    if isinstance(value, Remote):
        return wire.handle_bytes(object.__getattribute__(value, "_number"), 0, "")
    raise TypeError(f"a {type(value).__name__} of the tests cannot be given to the program")


def _text(value: Any) -> str:
    return value[:500] if type(value) is str else ""


class Remote:
    """An object of the program. It can be called, read, set and iterated; it equals only itself."""

    __slots__ = ("_connection", "_kind", "_number", "_truth")
    _connection: Connection
    _number: int
    _truth: bool
    _kind: str

    def __init__(self, connection: Connection, number: int, truth: bool, kind: str) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_truth", truth)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call it there; arguments that it changed are changed here too."""
        value, changed = self._connection.ask("call", self, list(args), named)
        for key, item in changed.items():
            mine = args[key] if type(key) is int and 0 <= key < len(args) else named.get(key)
            _update(mine, item)
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._connection.ask("getattr", self, name)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        self._connection.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._connection.ask("item", self, key)[0]

    def __iter__(self) -> Any:
        value = self._connection.ask("iter", self)[0]
        if not isinstance(value, Remote):
            raise TypeError(f"a {self._kind} of the program cannot be iterated")
        return value

    def __next__(self) -> Any:
        return self._connection.ask("next", self)[0]

    def __len__(self) -> int:
        value = self._connection.ask("len", self)[0]
        if type(value) is not int:
            raise TypeError(f"a {self._kind} of the program has no length")
        return value

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"


def _update(mine: Any, now: Any) -> None:
    """Makes a container of the tests equal to what the program made of its copy, as it would be in one process."""
    if type(mine) is not type(now):
        return
    if type(mine) in (list, tuple) and len(mine) == len(now):
        for index, (old, new) in enumerate(zip(list(mine), list(now), strict=True)):
            if type(old) is type(new) and type(old) in (list, dict, set, bytearray, tuple):
                _update(old, new)
            elif type(mine) is list:
                mine[index] = new
    elif type(mine) in (list, bytearray):
        mine[:] = now
    elif type(mine) in (dict, set):
        mine.clear()
        mine.update(now)
