"""Plain data as bytes, between tests and program; not what is asked or answered with them.

Whoever decodes gets objects of exact builtin types (and of a few exact types of the standard library that are data), so
nothing of the sender's code comes along: no `__eq__`, no subclass, no descriptor. An instance of a subclass becomes its
plain base; whatever is not data becomes a numbered handle that only the side that made it can resolve. Depth and size
are limited on both sides, because the sender may be hostile. No pickle: that would run the sender's code.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

DEPTH = 100
"""How deeply data may be nested: deeper than tests go, shallower than the interpreter's own recursion limit."""

TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object)
} | {"NoneType": type(None)}

_VALUES: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("decimal", "Decimal"): lambda x: (str(x),),
    ("fractions", "Fraction"): lambda x: (x.numerator, x.denominator),
    ("datetime", "date"): lambda x: (x.year, x.month, x.day),
    ("datetime", "time"): lambda x: (x.hour, x.minute, x.second, x.microsecond),
    ("datetime", "datetime"): lambda x: (x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond),
    ("datetime", "timedelta"): lambda x: (x.days, x.seconds, x.microseconds),
    ("collections", "deque"): lambda x: (list(x),),
}
"""Types of the standard library that are data, and what one is made of. Only exact instances cross as them."""


class NotData(Exception):
    """A value that cannot cross: too deep, too large, or bytes that are none of ours."""


class Gone(Exception):
    """The other side closed the pipe."""


def encode(value: Any, handle: Callable[[Any], bytes], limit: int) -> bytes:
    """A value as bytes.

    Args:
        value: Anything.
        handle: What is sent for an object that is not data.
        limit: The most bytes that it may come to.

    Raises:
        NotData: It is nested too deeply (a cycle among them) or too large.
    """
    parts: list[bytes] = []
    _Encoder(parts, handle, limit).put(value, 0)
    return b"".join(parts)


class _Encoder:
    def __init__(self, parts: list[bytes], handle: Callable[[Any], bytes], limit: int) -> None:
        self.parts, self.handle, self.left = parts, handle, limit

    def raw(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.left -= len(piece)
            self.parts.append(piece)
        if self.left < 0:
            raise NotData("a value is larger than may cross")

    def sized(self, tag: bytes, body: bytes) -> None:
        self.raw(tag, struct.pack(">I", len(body)), body)

    def many(self, tag: bytes, items: Any, count: int, depth: int) -> None:
        self.raw(tag, struct.pack(">I", count))
        for item in items:
            self.put(item, depth + 1)

    def put(self, value: Any, depth: int) -> None:
        if depth > DEPTH:
            raise NotData(f"a value is nested more than {DEPTH} deep")
        kind = type(value)
        if value is None or value is True or value is False or value is Ellipsis:
            self.raw(next(tag for tag, one in _SINGLE.items() if one is value))
        elif self.known(value, kind):
            self.sized(b"X", f"{kind.__module__} {kind.__name__}".encode())
            self.put(_VALUES[kind.__module__, kind.__name__](value), depth)
        elif kind is type and value is TYPES.get(str(getattr(value, "__name__", ""))):
            self.sized(b"y", str(getattr(value, "__name__", "")).encode())
        elif kind is range:
            self.many(b"r", (value.start, value.stop, value.step), 3, depth)
        elif not self.plain(value, depth):
            self.raw(self.handle(value))

    @staticmethod
    def known(value: Any, kind: type) -> bool:
        """Whether it is an exact instance of a type in the table, whatever its class calls itself."""
        if (kind.__module__, kind.__name__) not in _VALUES or getattr(value, "tzinfo", None) is not None:
            return False
        return getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind

    def plain(self, value: Any, depth: int) -> bool:
        """Instances of the builtin types and of their subclasses, read by the base's own methods."""
        if isinstance(value, int):
            number = int.__add__(value, 0)
            self.sized(b"i", number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))
        elif isinstance(value, float):
            self.raw(b"f", struct.pack(">d", value))
        elif isinstance(value, complex):
            self.raw(b"c", struct.pack(">dd", complex.real.__get__(value), complex.imag.__get__(value)))
        elif isinstance(value, str):
            self.sized(b"s", str.encode(value, "utf-8", "surrogatepass"))
        elif isinstance(value, bytes):
            self.sized(b"b", bytes.__add__(value, b""))
        elif isinstance(value, bytearray):
            self.sized(b"B", bytes(memoryview(value)))
        elif isinstance(value, list):
            self.many(b"l", list.__iter__(value), list.__len__(value), depth)
        elif isinstance(value, tuple):
            self.many(b"t", tuple.__iter__(value), tuple.__len__(value), depth)
        elif isinstance(value, set):
            self.many(b"S", set.__iter__(value), set.__len__(value), depth)
        elif isinstance(value, frozenset):
            self.many(b"Z", frozenset.__iter__(value), frozenset.__len__(value), depth)
        elif isinstance(value, dict):
            pairs = list(dict.items(value))
            self.raw(b"d", struct.pack(">I", len(pairs)))
            for key, item in pairs:
                self.put(key, depth + 1)
                self.put(item, depth + 1)
        else:
            return False
        return True


def decode(data: bytes, resolve: Callable[[int, int, str], Any]) -> Any:
    """The value of bytes that `encode` made, or that somebody hostile did.

    Args:
        data: The bytes.
        resolve: Object of a handle, from its number, its flags and the name of its type.

    Raises:
        NotData: The bytes are none of ours.
    """
    decoder = _Decoder(data, resolve)
    try:
        value = decoder.get(0)
    except (struct.error, TypeError, ValueError, ArithmeticError, UnicodeError, LookupError) as error:
        raise NotData(f"bytes that are no value ({type(error).__name__})") from None
    if decoder.at != len(data):
        raise NotData("bytes after the value")
    return value


class _Decoder:
    def __init__(self, data: bytes, resolve: Callable[[int, int, str], Any]) -> None:
        self.data, self.resolve, self.at = data, resolve, 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise NotData("bytes that end early")
        self.at += count
        return piece

    def number(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])

    def body(self) -> bytes:
        return self.take(self.number())

    def many(self, depth: int, each: int = 1) -> list[Any]:
        count = self.number() * each
        if count > len(self.data) - self.at:
            raise NotData("more items than bytes")
        return [self.get(depth + 1) for _ in range(count)]

    def get(self, depth: int) -> Any:
        if depth > DEPTH:
            raise NotData("a value is nested too deeply")
        tag = self.take(1)
        if tag in _SINGLE:
            return _SINGLE[tag]
        if tag in _SIZED:
            return _SIZED[tag](self.body())
        if tag in _MANY:
            return _MANY[tag](self.many(depth))
        if tag == b"d":
            items = self.many(depth, 2)
            return dict(zip(items[::2], items[1::2], strict=True))
        if tag == b"f":
            return struct.unpack(">d", self.take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack(">dd", self.take(16)))
        if tag == b"X":
            module, name = self.body().decode().split(" ")
            if (module, name) not in _VALUES:
                raise NotData("an unknown type")
            return getattr(importlib.import_module(module), name)(*self.get(depth + 1))
        if tag == b"h":
            number, flags = struct.unpack(">IB", self.take(5))
            return self.resolve(number, flags, self.body().decode())
        raise NotData("an unknown tag")


_SINGLE: dict[bytes, Any] = {b"N": None, b"T": True, b"F": False, b"E": Ellipsis}
_SIZED: dict[bytes, Callable[[bytes], Any]] = {
    b"i": lambda body: int.from_bytes(body, "big", signed=True),
    b"s": lambda body: body.decode("utf-8", "surrogatepass"),
    b"b": bytes,
    b"B": bytearray,
    b"y": lambda body: TYPES[body.decode()],
}
_MANY: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"S": set,
    b"Z": frozenset,
    b"r": lambda items: range(*items),
}


def handle_bytes(number: int, flags: int, name: str) -> bytes:
    """What stands for an object that is not data."""
    body = name[:80].encode("utf-8", "replace")
    return b"h" + struct.pack(">IBI", number, flags, len(body)) + body


# ----------------------------------------------------------------------------------------------------- the pipe


def send(descriptor: int, data: bytes) -> None:
    """One message: its length, then its bytes.

    Raises:
        Gone: The reader is no more.
    """
    view = memoryview(struct.pack(">I", len(data)) + data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except BrokenPipeError:
        raise Gone from None


def receive(descriptor: int, limit: int) -> bytes:
    """The next message.

    Raises:
        Gone: The writer is no more.
        NotData: It says that it is longer than `limit`.
    """
    (length,) = struct.unpack(">I", _exactly(descriptor, 4))
    if length > limit:
        raise NotData("a value is larger than may cross")
    return _exactly(descriptor, length)


def _exactly(descriptor: int, count: int) -> bytes:
    pieces = []
    while count:
        piece = os.read(descriptor, min(count, 1 << 20))
        if not piece:
            raise Gone
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
