"""`peftlab list`: tables of what there is to choose from."""

from __future__ import annotations

import sys

from peftlab import protocols
from peftlab.cli import catalogue, measured, tables, units
from peftlab.config import benchmarks, task


def show(what: str) -> None:
    """Print one list: `tasks`, `benchmarks`, `methods`, `graders`, `engines` or `settings`."""
    own = {"tasks": _tasks, "benchmarks": _benchmarks, "methods": _methods, "settings": _settings}
    own.get(what, lambda: _plugins(what))()


def _tasks() -> None:
    tasks = [task.load(name) for name in task.available()]
    rows = [(one.name, one.kind, one.primary_metric, one.description) for one in tasks]
    tables.write(("task", "kind", "metric", "what it is"), rows)


def _benchmarks() -> None:
    found = [benchmarks.load(name) for name in benchmarks.available()]
    rows = [(one.name, ", ".join(one.tasks), "all" if one.rows is None else one.rows, one.description) for one in found]
    tables.write(("benchmark", "tasks", "rows of each", "what it is"), rows)


def _methods() -> None:
    """Every method, what was measured of it on the small causal model, and a rate that worked."""
    abilities = measured.abilities()
    head = ("method", "from", *measured.ABILITIES, "learning rate", "where that rate worked")
    rows = [
        (
            one.name,
            one.origin,
            *abilities.get(one.name, measured.NOT_MEASURED),
            units.number(one.learning_rate),
            one.source or "",
        )
        for one in catalogue.methods().values()
    ]
    tables.write(head, rows)
    tables.write_pairs({"measured": measured.what()}, stream=sys.stderr)


def _plugins(kind: str) -> None:
    """Graders and engines, with the first line of their file's docstring."""
    rows = [(name, _first_line(kind, name)) for name in protocols.names(kind)]
    tables.write((kind.removesuffix("s"), "what it does"), rows)


def _first_line(kind: str, name: str) -> str:
    """Read from the source text: an engine's import may load a model library."""
    import ast
    import importlib.util

    found = importlib.util.find_spec(f"peftlab.{kind}.{name}")
    if found is None or found.origin is None:
        return ""
    with open(found.origin, encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    return text.partition("\n\n")[0].replace("\n", " ")


def _settings() -> None:
    rows = [(one.name, one.type, one.default, one.key, one.meaning) for one in catalogue.settings()]
    tables.write(("setting", "type", "default", "key", "meaning"), rows)
