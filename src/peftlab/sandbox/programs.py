"""A program with its tests, and how that ended; nothing is run here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["passed", "syntax", "exception", "assertion", "timeout", "memory", "output", "lost"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a model wrote, and the tests that its data set has for it.

    Attributes:
        code: The program. Never trusted.
        tests: The data set's tests: with `entry` they define `check(candidate)`, otherwise they are statements in which
            the program's names are known.
        entry: The function of `code` that `check` gets.
    """

    code: str
    tests: str
    entry: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program did.

    Attributes:
        kind: `passed`, or what ended it: `syntax` (it does not compile), `exception` (its own), `assertion` (a test
            does not hold), `timeout`, `memory`, `output` (it printed or returned too much), `lost` (the process
            ended or answered nonsense: no verdict could be had, which is a failure).
        detail: The same in words, for people. Text from the program is cut and may lie.
        cpu_seconds: CPU time of the program's process; None where it could not be told.
    """

    kind: Kind
    detail: str
    cpu_seconds: float | None
