"""`peftlab new`: writes an experiment folder to start from. Never touches a folder that exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from peftlab import task as tasks
from peftlab.cli import catalogue
from peftlab.errors import UserError
from peftlab.folders import PARAMETER_FILES
from peftlab.groups import GROUPS
from peftlab.spec import ADAPTER_FILE


def new(method: str, name: str, *, model: str | None, task: str | None, experiments: str) -> None:
    """Write `<experiments>/<method>/<name>/` with the method's default config and a typical learning rate.

    Raises:
        UserError: An unknown method or task, a name that cannot be a folder's, or a folder that exists.
    """
    facts = catalogue.method(method.lower().replace("-", "_"))
    if task is not None:
        tasks.load(task)
    folder = _free_folder(Path(experiments) / facts.name / name, name)
    files: dict[str, dict[str, Any]] = {PARAMETER_FILES[0]: _parameters(facts, model, task)}
    if facts.name != catalogue.FULL:
        files[ADAPTER_FILE] = _adapter(facts, model)
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        typer.echo(str(folder / file))
    missing = "" if model else " model.id=..."
    missing += "" if task else " task=..."
    typer.echo(f"next: peftlab check {folder}{missing}", err=True)


def _free_folder(folder: Path, name: str) -> Path:
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"'{name}' cannot name an experiment", fix="use letters, digits and . _ + = - only")
    if folder.exists():
        raise UserError(f"{folder} exists already", fix="choose another name, or remove the folder yourself")
    return folder


def _parameters(facts: catalogue.MethodFacts, model: str | None, task: str | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if task is not None:
        parameters["task"] = task
    if model is not None:
        parameters["model"] = {"id": model}
    if facts.learning_rate is not None:
        parameters["optim"] = {"learning_rate": facts.learning_rate}
    if not parameters.keys() & GROUPS.keys():  # one group says that the file is ours, whatever defaults lie above it
        parameters["optim"] = {}
    return parameters


def _adapter(facts: catalogue.MethodFacts, model: str | None) -> dict[str, Any]:
    from peftlab import defaults

    base_method = facts.peft_type.lower() if facts.peft_type else facts.name
    return {**defaults.default_adapter(base_method, model), **facts.adapter}
