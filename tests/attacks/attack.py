"""What an attack is: a program that answers rightly only if it got what it was after, so that a pass is a breach."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

TESTS = """
def check(candidate):
    assert candidate(21) == 42
    assert candidate(4) == 8
    assert candidate(0) == 0
"""
ENTRY = "f"

FAILED = ("exception", "assertion", "lost", "timeout", "memory", "output", "syntax")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One program.

    Attributes:
        name: What it is after.
        code: The program. `f(x)` is tested to be `2 * x`; `{canary}` and the like stand for things of the machine.
        kinds: The outcomes that are right for it.
        held_by: The layers that stop it, as the documentation says.
        tests: Its tests, where they are others than `TESTS`.
    """

    name: str
    code: str
    kinds: tuple[str, ...] = FAILED
    held_by: str
    tests: str | None = None


def attack(name: str, held_by: str, code: str, kinds: str = "", *, tests: str | None = None) -> Attack:
    """An attack from an indented text."""
    body = textwrap.dedent(code).strip("\n") + "\n"
    return Attack(name=name, code=body, kinds=tuple(kinds.split()) or FAILED, held_by=held_by, tests=tests)
