"""The process of the tested program: runs it, then answers what the tests ask; nothing in it is trusted.

It knows neither the tests nor their secret. Whatever the program does to this file's objects changes only what it
answers, and an answer is data.
"""

from __future__ import annotations

import os
import random
import sys
import types
from typing import Any

from . import wire

JOB, REQUESTS, REPLIES = 3, 4, 5
"""Descriptors: what to run, what is asked, what is answered."""

_NAMES_LIMIT = 10_000
_MUTABLE = (list, dict, set, bytearray, tuple)


def main(limit: int) -> None:
    """Read the program, run it, serve until the tests are through.

    Args:
        limit: The most bytes of one answer.
    """
    code = _read_all(JOB).decode("utf-8", "surrogatepass")
    os.close(JOB)
    random.seed(0)
    module = types.ModuleType("program")
    sys.modules["program"] = module
    served = _Served(module, limit)
    try:
        compiled = compile(code, "<program>", "exec", dont_inherit=True)  # not this file's __future__
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        # null bytes are a ValueError, nesting that the parser gives up on a MemoryError or RecursionError
        served.reply(("syntax", f"{type(error).__name__}: {error}"[:500]))
        return
    try:
        exec(compiled, module.__dict__)
    except BaseException as error:  # SystemExit too: the tests never came to run
        served.reply(_raised(error))
        return
    served.reply(("loaded", [name for name in list(module.__dict__) if type(name) is str][:_NAMES_LIMIT]))
    while True:
        try:
            request = served.decode(wire.receive(REQUESTS, 1 << 30))
        except wire.Gone:
            os._exit(0)
        served.answer(request)


class _Served:
    """The objects that the tests hold handles of."""

    def __init__(self, module: types.ModuleType, limit: int) -> None:
        self.module, self.limit = module, limit
        self.objects: list[Any] = []

    def handle(self, value: Any) -> bytes:
        if isinstance(value, types.ModuleType):
            return wire.handle_bytes(0, 2, value.__name__)
        self.objects.append(value)
        try:
            truth = bool(value)
        except BaseException:
            truth = True
        return wire.handle_bytes(len(self.objects) - 1, int(truth), type(value).__name__)

    def decode(self, data: bytes) -> Any:
        return wire.decode(data, lambda number, flags, name: self.objects[number])

    def encode(self, value: Any) -> bytes:
        return wire.encode(value, self.handle, self.limit)

    def reply(self, answer: tuple[Any, ...]) -> None:
        try:
            data = self.encode(answer)
        except wire.NotData as error:
            data = self.encode(("toomuch", str(error)))
        except BaseException as error:
            data = self.encode(_raised(error))
        wire.send(REPLIES, data)

    def answer(self, request: tuple[Any, ...]) -> None:
        operation, *parts = request
        try:
            answer = ("ok", *_OPERATIONS[operation](self, *parts))
        except StopIteration as error:
            answer = ("stop",) if operation == "next" else _raised(RuntimeError(f"StopIteration: {error}"))
        except BaseException as error:
            answer = _raised(error)
        self.reply(answer)

    def get(self, name: str) -> tuple[Any, ...]:
        return (self.module.__dict__[name], {})

    def call(self, function: Any, args: list[Any], named: dict[str, Any]) -> tuple[Any, ...]:
        """Calls, and says which arguments it changed: in one process the caller would see that."""
        given: dict[Any, Any] = {**dict(enumerate(args)), **named}
        before = {key: self._image(value) for key, value in given.items() if isinstance(value, _MUTABLE)}
        try:
            result = function(*args, **named)
        except StopIteration as error:
            raise RuntimeError(f"StopIteration: {error}") from None
        changed = {key: given[key] for key, image in before.items() if image and self._image(given[key]) != image}
        return (result, changed)

    def _image(self, value: Any) -> bytes:
        try:
            return wire.encode(value, lambda one: str(id(one)).encode(), self.limit)
        except wire.NotData:
            return b""


_OPERATIONS: dict[str, Any] = {
    "get": _Served.get,
    "call": _Served.call,
    "getattr": lambda served, value, name: (getattr(value, name), {}),
    "setattr": lambda served, value, name, item: (value.__setattr__(name, item), {}),
    "item": lambda served, value, key: (value[key], {}),
    "iter": lambda served, value: (iter(value), {}),
    "next": lambda served, value: (next(value), {}),
    "len": lambda served, value: (len(value), {}),
}


def _raised(error: BaseException) -> tuple[Any, ...]:
    """An exception as the names of its builtin classes, nearest first, and its text."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return ("raised", type(error).__name__[:80], names, text)


def _read_all(descriptor: int) -> bytes:
    pieces = []
    while piece := os.read(descriptor, 1 << 16):
        pieces.append(piece)
    return b"".join(pieces)
