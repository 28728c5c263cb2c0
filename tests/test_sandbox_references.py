"""Published solutions pass and spoilt ones fail, in time, on a busy machine too."""

from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftlab.sandbox import running, trying, ways
from peftlab.sandbox.limits import Limits
from peftlab.sandbox.programs import Outcome, Program

MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
SECONDS = 20.0
"""HumanEval's solutions on two cores."""


def rows(folder: str) -> list[dict[str, Any]]:
    files = sorted((MIRROR / folder).glob("*.jsonl.gz"))
    if not files:
        pytest.skip(f"no {folder} in {MIRROR}")
    return [json.loads(line) for path in files for line in gzip.open(path, "rt", encoding="utf-8")]


def human_eval(code: str = "canonical_solution") -> list[Program]:
    return [
        Program(code=row["prompt"] + row[code], tests=row["test"], entry=row["entry_point"])
        for row in rows("humaneval")
    ]


def mbpp() -> list[Program]:
    return [
        Program(
            code=row["code"],
            tests="\n".join([row["test_setup_code"], *row["test_list"], *row["challenge_test_list"]]),
        )
        for row in rows("mbpp")
    ]


def sanitized() -> list[Program]:
    return [
        Program(code=row["code"], tests="\n".join([*row["test_imports"], *row["test_list"]]))
        for row in rows("mbpp_sanitized")
    ]


def outcomes(programs: list[Program], way: ways.Way | None = None, limits: Limits | None = None) -> list[Outcome]:
    if way is None:
        way = trying.chosen(allow_unsafe=False)
    elif not trying.attempt(way, os.geteuid()).works:
        pytest.skip(trying.attempt(way, os.geteuid()).text)
    found = dict(running.run_in(way, programs, limits or Limits(), workers=2))
    return [found[position] for position in range(len(programs))]


def not_passed(found: list[Outcome]) -> dict[int, Outcome]:
    return {position: one for position, one in enumerate(found) if one.kind != "passed"}


PUBLISHED = [(human_eval, 164), (mbpp, 974), (sanitized, 427)]
SLOW = [pytest.param(*one, "kernel", marks=pytest.mark.slow) for one in PUBLISHED]
FULL = [pytest.param(*one, "bubblewrap", marks=pytest.mark.full) for one in PUBLISHED[1:]]


@pytest.mark.parametrize(
    ("programs", "count", "way"), [*SLOW, *FULL, pytest.param(human_eval, 164, "bubblewrap", marks=pytest.mark.slow)]
)
def test_every_published_solution_passes(programs: Any, count: int, way: ways.Way) -> None:
    asked = programs()
    assert len(asked) == count
    assert not_passed(outcomes(asked, way)) == {}


@pytest.mark.slow
def test_none_passes_that_is_empty_truncated_or_another_tasks() -> None:
    asked = rows("humaneval")
    spoilt = []
    for row, other in zip(asked, asked[1:] + asked[:1], strict=True):
        swapped = f"{other['prompt']}{other['canonical_solution']}\n{row['entry_point']} = {other['entry_point']}\n"
        solution = row["canonical_solution"]
        for code in ("", row["prompt"] + "    pass\n", row["prompt"] + solution[: len(solution) // 2] + "(", swapped):
            spoilt.append(Program(code=code, tests=row["test"], entry=row["entry_point"]))
    assert [at for at, one in enumerate(outcomes(spoilt)) if one.kind == "passed"] == []


class Flip(ast.NodeTransformer):
    """Turns the first operator of a program into its opposite."""

    PAIRS = (
        (ast.Add, ast.Sub),
        (ast.Mult, ast.Add),
        (ast.Lt, ast.GtE),
        (ast.Gt, ast.LtE),
        (ast.Eq, ast.NotEq),
        (ast.In, ast.NotIn),
    )

    def __init__(self) -> None:
        self.done = False

    def visit(self, node: ast.AST) -> ast.AST:
        for one, other in (*self.PAIRS, *((b, a) for a, b in self.PAIRS)):
            if not self.done and type(node) is one:
                self.done = True
                return other()
        return self.generic_visit(node)


@pytest.mark.slow
def test_one_flipped_operator_fails() -> None:
    spoilt = []
    for row in rows("humaneval"):
        tree = ast.parse(row["prompt"] + row["canonical_solution"])
        flip = Flip()
        changed = ast.unparse(flip.visit(tree))
        if flip.done:
            spoilt.append(Program(code=changed, tests=row["test"], entry=row["entry_point"]))
    found = outcomes(spoilt, limits=Limits(cpu_seconds=3))
    passed = [at for at, one in enumerate(found) if one.kind == "passed"]
    # a few changes change nothing that is tested: the boundary of a loop, an operator between equal values
    assert len(spoilt) > 120 and len(passed) <= 0.1 * len(spoilt), passed
    assert [one for one in found if one.kind == "lost"] == []


@pytest.fixture
def busy() -> Iterator[None]:
    """Four processes that compute beside."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    beside = [subprocess.Popen(command) for _ in range(4)]
    yield
    for one in beside:
        one.kill()
        one.wait()


@pytest.mark.slow
def test_a_busy_machine_changes_no_outcome(busy: None) -> None:
    assert not_passed(outcomes(human_eval())) == {}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bubblewrap", "kernel"])
def test_the_solutions_run_in_time(way: ways.Way) -> None:
    if os.getloadavg()[0] > 1:
        pytest.skip("the machine has other work")
    programs = human_eval()
    began = time.monotonic()
    outcomes(programs, way)
    assert time.monotonic() - began < SECONDS
