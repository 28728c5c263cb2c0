"""The process of the tests: runs them, calls into the program's process, reports with the run's secret.

Code of the program never runs here, only its answers arrive, as data. So whoever can send the secret has come to the
end of the tests' own text.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import random
import sys
from typing import Any

from . import remote

JOB, REPLIES, REQUESTS, REPORT = 3, 4, 5, 6
"""Descriptors: what to test, the program's answers, questions to it, the verdict."""


def main(limit: int) -> None:
    """Read the job, run its tests, report.

    Args:
        limit: The most bytes of one answer of the program.
    """
    pieces = []
    while piece := os.read(JOB, 1 << 16):
        pieces.append(piece)
    os.close(JOB)
    job = json.loads(b"".join(pieces))
    random.seed(0)
    connection = remote.Connection(REQUESTS, REPLIES, limit)
    kind, detail = verdict(job["tests"], job["entry"], connection)
    os.write(REPORT, json.dumps({"secret": job["secret"], "kind": kind, "detail": detail[:500]}).encode() + b"\n")
    os._exit(0)


def verdict(tests: str, entry: str | None, connection: remote.Connection) -> tuple[str, str]:
    """Kind and detail of a program's outcome."""
    try:
        try:
            tree = ast.parse(tests)
            compiled = compile(tests, "<tests>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError) as error:
            return "lost", f"the tests do not compile: {error}"
        space = {"__name__": "tests", **_known(tree, entry, connection)}
        candidate = space.get(entry) if entry else None
        if entry and candidate is None:
            return "exception", f"NameError: the program does not define '{entry}'"
        exec(compiled, space)
        if entry:
            check = space.get("check")
            if not callable(check):
                return "lost", "the tests define no function 'check'"
            check(candidate)
    except remote.Ended as ended:
        return ended.kind, ended.detail
    except BaseException as error:
        if connection.ended:
            return connection.ended.kind, connection.ended.detail
        return _failure(error, connection)
    if connection.ended:  # a test swallowed it
        return connection.ended.kind, connection.ended.detail
    return "passed", ""


def _failure(error: BaseException, connection: remote.Connection) -> tuple[str, str]:
    detail = error.__dict__.get("there") or f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, MemoryError):
        return "memory", detail
    if isinstance(error, AssertionError) and error is not connection.crossed:
        return "assertion", detail
    return "exception", detail


def _known(tree: ast.AST, entry: str | None, connection: remote.Connection) -> dict[str, Any]:
    """Names of the program that the tests use.

    In one namespace a program could redefine what its tests are written with: `set`, `math.isclose`. So a builtin stays
    the builtin, unless the tests name nothing else that could be the function under test (one task's function is called
    `sum`); a name that the tests use as a module of the standard library is that module.
    """
    defined = set(connection.names())
    loaded = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    loaded |= {entry} if entry else set()
    dotted = {
        node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    free = loaded & defined
    modules = free & dotted & sys.stdlib_module_names
    own = free - modules - set(dir(builtins))
    space: dict[str, Any] = {name: importlib.import_module(name) for name in modules}
    return space | {name: connection.ask("get", name)[0] for name in sorted(own or free - modules)}
