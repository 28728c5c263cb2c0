"""`peftlab doctor`: tries a method on a model and says in one line each what holds, or whether this machine is well.

Trains six steps on four rows, in a temporary folder; keeps nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from peftlab.cli import arguments, environment, programs, tables, units
from peftlab.errors import UserError

if TYPE_CHECKING:
    from peftlab.invariants.findings import Finding
    from peftlab.invariants.trial import Trial

_WORDS = {
    "exact": "ok",
    "within": "ok",
    "stated": "note",
    "refused": "refused",
    "exempt": "-",
    "broken": "BROKEN",
}
_WIDTH, _NAMES = 8, 12


def doctor(words: Sequence[str], *, as_json: bool, dialect: str | None) -> None:
    """Examine one experiment, or a task's reference programs, or the machine when none is named.

    Raises:
        typer.Exit: With code 1 when something is broken.
        UserError: Bad input.
    """
    paths, settings = arguments.split(words)
    if len(paths) > 1:
        raise UserError("doctor examines one experiment at a time", fix=f"peftlab doctor {paths[0]}")
    if paths and programs.is_task(paths[0]):
        programs.examine(paths[0], arguments.parse(settings), as_json=as_json)
        return
    if not paths:
        if settings:
            raise UserError(f"'{settings[0]}' belongs to an experiment, and none is named", fix="name its folder")
        _machine(as_json=as_json)
        return
    _experiment(paths[0], arguments.parse(settings), as_json=as_json, dialect=dialect)


def _experiment(path: str, overrides: Mapping[str, Any], *, as_json: bool, dialect: str | None) -> None:
    spec = arguments.load_spec(path, overrides, dialect)
    from peftlab.invariants import examination
    from peftlab.job import preflight

    preflight.refuse_unsupported(spec)
    findings: list[Finding] = []
    seconds = 0.0
    with examination.scratch() as folder:
        trial = examination.trial_of(spec, Path(folder))
        for answer in examination.examine(trial):
            findings.append(answer.finding)
            seconds += answer.seconds
            if not as_json:
                _draw(answer.finding)
        facts = _facts(trial, findings)
    broken = [one.name for one in findings if one.verdict == "broken"]
    if as_json:
        about = {"experiment": spec.experiment, "method": spec.method, "model": spec.model.id}
        plain = [{key: value for key, value in vars(one).items() if value is not None} for one in findings]
        tables.write_json({**about, **facts, "broken": broken, "findings": plain, "seconds": round(seconds, 1)})
    else:
        told = f"{spec.method} on {spec.model.id}: {_told(facts)}{seconds:.0f} s"
        typer.echo(f"{told}; {'broken: ' + ', '.join(broken) if broken else 'nothing is broken'}", err=True)
    if broken:
        raise typer.Exit(1)


def _facts(trial: Trial, findings: Sequence[Finding]) -> dict[str, Any]:
    if any(one.name == "training" for one in findings):
        return {}
    course = trial.course
    losses = [{"loss": step.loss, "method_loss": step.method_loss} for step in course.steps]
    return {"trainable": course.trainable, "total": course.total, "steps": losses}


def _told(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    share = units.share(facts["trainable"], facts["total"])
    return f"{facts['trainable']:,} of {facts['total']:,} parameters trained ({share}), "


def _draw(finding: Finding) -> None:
    indent = " " * (_WIDTH + _NAMES + 1)
    head = f"{_WORDS[finding.verdict]:<{_WIDTH}}{finding.name:<{_NAMES}} "
    typer.echo(head + finding.text)
    if finding.fix:
        typer.echo(textwrap.indent(f"fix: {finding.fix}", indent))


# -------------------------------------------------------------------------------------------------- the machine


def _machine(*, as_json: bool) -> None:
    """Whether what peftlab stands on is there, and is what its table of methods was measured with."""
    from peftlab.cli import catalogue, measured

    versions = environment.versions()
    missing = [name for name in ("torch", "transformers", "peft") if versions[name] == "not installed"]
    known, table = set(catalogue.peft_types()), measured.table()
    unmeasured = sorted(known - {str(row.get("peft_type")) for row in table.rows.values()})
    lines: dict[str, tuple[str, str]] = {
        "libraries": ("BROKEN", f"not installed: {', '.join(missing)}; pip install peftlab")
        if missing
        else ("ok", ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))),
        "methods": ("note", f"peft offers {len(known)} types; never measured here: {', '.join(unmeasured)}")
        if unmeasured
        else ("ok", f"peft offers {len(known)} types, each of them measured: peftlab list methods"),
        "versions": _measured_with(table.versions, versions),
        "machine": ("ok", "; ".join(environment.machine().values())),
        **programs.layers(),
    }
    if as_json:
        tables.write_json({name: {"verdict": word, "text": text} for name, (word, text) in lines.items()})
    else:
        for name, (word, text) in lines.items():
            typer.echo(f"{word:<{_WIDTH}}{name:<{_NAMES}} {text}")
        typer.echo("next: peftlab doctor EXPERIMENT tries its method on its model", err=True)
    if missing:
        raise typer.Exit(1)


def _measured_with(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, str]:
    other = [f"{name} {then[name]} (now {now.get(name)})" for name in then if now.get(name) != then[name]]
    if other:
        return "note", f"the table of methods was measured with {', '.join(other)}; doctor says what holds now"
    return "ok", "the table of methods was measured with these versions"
