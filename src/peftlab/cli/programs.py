"""`peftlab doctor` on programs that are run: what isolates them, and reference solutions under the limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from peftlab.cli import tables
from peftlab.config import task as tasks
from peftlab.config.folders import YAML_SUFFIXES
from peftlab.config.loading import bare
from peftlab.config.settings import read_yaml
from peftlab.errors import UserError
from peftlab.protocols import Example
from peftlab.sandbox.programs import Program


def layers() -> dict[str, tuple[str, str]]:
    """Each layer of the sandbox: a word and a text, by name."""
    from peftlab.sandbox import layers as sandbox

    told = {one.name: ("ok" if one.present else "-", one.detail) for one in sandbox.layers()}
    why = sandbox.refused()
    if why:
        told["programs"] = ("note", "what a model wrote will not be run here without --allow-unsafe-code")
    return told


def is_task(word: str) -> bool:
    """Whether a word names a task whose answers are run: one of peftlab's, or a file that is no experiment."""
    path = Path(word)
    if path.exists():
        if path.suffix not in YAML_SUFFIXES or not path.is_file() or "model" in read_yaml(path):
            return False
    elif word not in tasks.available():
        return False
    return tasks.grades_many(tasks.load(word))


def examine(name: str, settings: Mapping[str, Any], *, as_json: bool) -> None:
    """Run a task's reference solutions as if a model had written them; say what passed, and how near the limit it came.

    Raises:
        typer.Exit: With code 1 when one does not pass.
        UserError: The rows cannot be had, or programs cannot be isolated here.
    """
    from peftlab.rows import data
    from peftlab.sandbox import margins, running
    from peftlab.sandbox.limits import Limits

    spec = bare("-", task=name, overrides=settings)
    rows = data.load(spec).test
    if not rows:
        raise UserError(f"task {name} has no test rows", fix="name another task")
    execution = spec.execution
    limits = Limits(
        cpu_seconds=execution.cpu_seconds,
        wall_seconds=execution.wall_seconds,
        memory_bytes=execution.memory_bytes,
    )
    programs = [_solution(one) for one in rows]
    unsafe = execution.allow_unsafe_code
    outcomes = list(running.run(programs, limits, workers=execution.workers, allow_unsafe=unsafe))
    found = margins.measured(outcomes, limits)
    failed = {rows[position].item: f"{one.kind}: {one.detail}" for position, one in outcomes if one.kind != "passed"}
    if as_json:
        plain = {key: value for key, value in vars(found).items() if key != "slowest"}
        about = {"task": name, **plain, "narrow": found.narrow, "slowest": rows[found.slowest].item}
        tables.write_json({**about, "failures": failed})
    else:
        for item, why in failed.items():
            typer.echo(f"failed  {item} {why}")
        typer.echo(f"{found.programs - found.failed} of {found.programs} reference solutions pass")
        typer.echo(
            f"the slowest took {found.cpu_seconds:.2f} s of CPU time; the limit of {limits.cpu_seconds:g} s is "
            f"{found.times:.1f} times that"
        )
        if found.narrow:
            typer.echo(
                f"warning: a margin below {margins.NARROW:g} can turn right programs into late ones on a busy machine\n"
                "fix: raise execution.cpu_seconds; scores under different limits are kept apart",
                err=True,
            )
    if failed:
        raise typer.Exit(1)


def _solution(example: Example) -> Program:
    """The reference as a program. No stop words: they would cut a solution that has a second function."""
    from peftlab.graders.program import tests_of

    before, tests, entry = tests_of(example)
    return Program(code=before + example.target, tests=tests, entry=entry)
