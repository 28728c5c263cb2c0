"""`peftlab new`: writes an experiment folder to start from. Never touches a folder that exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from peftlab.cli import catalogue
from peftlab.config import task as tasks
from peftlab.config.folders import PARAMETER_FILES
from peftlab.config.groups import GROUPS
from peftlab.config.spec import ADAPTER_FILE
from peftlab.errors import UserError


def new(method: str, name: str, *, model: str | None, task: str | None, experiments: str) -> None:
    """Write `<experiments>/<method>/<name>/` with the method's config for this model and a typical learning rate.

    Raises:
        UserError: An unknown method or task, a method that needs what only the user has, a name that cannot be a
            folder's, or a folder that exists.
    """
    facts = catalogue.method(method.lower().replace("-", "_"))
    if facts.refused is not None:
        raise UserError(f"no config can be written for {facts.name}: {facts.refused}", fix="write it by hand")
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
    if facts.learning_rate is None:
        typer.echo(f"no learning rate is known to have worked for {facts.name}: choose optim.learning_rate", err=True)
    if facts.note is not None:
        typer.echo(f"note: {facts.note}", err=True)
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
    config = {**defaults.default_adapter(base_method, model), **facts.adapter}
    config = defaults.fitted(config, facts.fit, model) if facts.fit else config
    defaults.check_layers(config, model)
    return config
