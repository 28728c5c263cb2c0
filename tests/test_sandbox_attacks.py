"""Every attack is contained: no pass, no survivor, nothing left, nobody reached; as root and as an ordinary user."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks import arena, table
from attacks.attack import ENTRY, TESTS

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/ns/user"), reason="namespaces are Linux's")

USERS = {"root": 0, "ordinary": arena.NOBODY}
WAYS = ("bubblewrap", "kernel")
NAMES = [one.name for one in arena.ATTACKS]
RIGHT = [{"code": "def f(x):\n    return 2 * x\n", "tests": TESTS, "entry": ENTRY}] * 5


def usable(user: int, way: str) -> None:
    if user != os.geteuid() and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if user != os.geteuid() and (shutil.which("setpriv") is None or arena.interpreter(user) is None):
        pytest.skip("no setpriv, or no Python that an ordinary user can start")
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")


SWEEPS = [
    pytest.param((user, way), marks=[pytest.mark.slow if (user == "root") == (way == "kernel") else pytest.mark.full])
    for user in USERS
    for way in WAYS
]
"""Each user and each way in the slow tier, the other two pairings in the full one."""


@pytest.fixture(scope="module", params=SWEEPS, ids="-".join)
def sweep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All attacks at once, with right programs among them, as one user in one way."""
    user, way = request.param
    usable(USERS[user], way)
    before = arena.survivors()
    with arena.arena(tmp_path_factory.mktemp("arena")) as place:
        attacks = arena.programs(place, arena.ATTACKS)
        # the right ones come last of all, too: a machine that an attack had spoilt would fail them
        answer = arena.run(USERS[user], way, [*attacks[:50], *RIGHT, *attacks[50:], *RIGHT])
        if not answer["works"]:
            pytest.skip(f"{way} does not work here: {answer['text']}")
        ordered = [answer["outcomes"][str(at)] for at in range(len(answer["outcomes"]))]
        yield {
            "outcomes": dict(zip(NAMES, ordered[:50] + ordered[50 + len(RIGHT) : -len(RIGHT)], strict=True)),
            "right": ordered[50 : 50 + len(RIGHT)] + ordered[-len(RIGHT) :],
            "user": answer["user"],
            "reached": place.reached(),
            "left": place.left(),
            "survivors": arena.survivors() - before,
            "canary": Path(place.names["canary"]).read_text(encoding="ascii"),
        }


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_fails(sweep: dict[str, Any], name: str) -> None:
    wanted = next(one.kinds for one in arena.ATTACKS if one.name == name)
    kind, detail, _ = sweep["outcomes"][name]
    assert kind in wanted, detail


def test_the_machine_is_as_before(sweep: dict[str, Any]) -> None:
    assert sweep["reached"] == []
    assert sweep["left"] == []
    assert sweep["survivors"] == set()
    assert sweep["canary"] == "a secret of the user"


def test_right_programs_among_them_pass(sweep: dict[str, Any]) -> None:
    assert [one for one in sweep["right"] if one[0] != "passed"] == []


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 60


def test_the_documentation_says_what_holds_each_attack() -> None:
    text = (arena.SOURCE.parent / "docs" / "sandbox.md").read_text(encoding="utf-8").split("\n## Attacks\n")[1]
    rows = re.findall(r"^\| ([a-z0-9 ]+) \| ([^|]+) \| (\w+) \|", text, flags=re.MULTILINE)
    told = {name: (held_by, kind) for name, held_by, kind in rows}
    assert set(told) == {table.words(one) for one in arena.ATTACKS}
    for one in arena.ATTACKS:
        held_by, kind = told[table.words(one)]
        assert held_by == one.held_by and kind in one.kinds
