"""Which layers of protection this machine gives, for people; nothing is decided here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from peftlab.sandbox import trying, ways


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer.

    Attributes:
        name: What people call it.
        present: Whether a program would run behind it here.
        detail: What it looks like, or why it is missing.
    """

    name: str
    present: bool
    detail: str


def layers() -> list[Layer]:
    """Every layer, as a process that was isolated for the purpose saw it from inside."""
    found = [trying.attempt(way, os.geteuid()) for way in trying.PREFERRED]
    used = next((one for one in found if one.works), None)
    told = [Layer(name=_NAMES[one.way], present=one.works, detail=_text(one, used)) for one in found]
    facts = used.facts if used else {}
    return [
        *told,
        Layer(name="user", present=bool(facts.get("uid")), detail=_user(facts)),
        Layer(name="Landlock", present=bool(facts.get("landlock")), detail=_landlock(facts)),
        Layer(
            name="seccomp",
            present=bool(facts.get("seccomp")),
            detail="a filter of system calls" if facts.get("seccomp") else "no filter for this kernel or machine",
        ),
        Layer(name="limits", present=bool(used), detail="CPU time, memory, files, threads"),
    ]


def refused() -> str | None:
    """Why programs would be refused here; None: they run."""
    found = [trying.attempt(way, os.geteuid()) for way in trying.PREFERRED]
    if any(one.works for one in found):
        return None
    return "; ".join(f"{_NAMES[one.way]}: {one.text}" for one in found)


_NAMES: dict[ways.Way, str] = {"bubblewrap": "bubblewrap", "kernel": "namespaces"}


def _text(one: ways.Found, used: ways.Found | None) -> str:
    if not one.works:
        return one.text
    return "user, mount, PID, network and IPC namespaces" + ("; used" if one is used else "")


def _user(facts: Any) -> str:
    return (
        f"programs run as user {facts['uid']}, without capabilities" if facts.get("uid") else "no process was isolated"
    )


def _landlock(facts: Any) -> str:
    return f"version {facts['landlock']}" if facts.get("landlock") else "the kernel has none (before 5.13)"
