"""The command that makes a stored run again, for people to paste into a shell. Runs nothing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from peftlab.cli.arguments import load_spec
from peftlab.config.groups import GROUPS
from peftlab.config.spec import RunSpec
from peftlab.config.task import available
from peftlab.errors import UserError
from peftlab.records.record import Record


def command(record: Record) -> str:
    """`peftlab run FOLDER task=NAME seed=N key=value ...`, with the settings that differ from the folder's own.

    A record holds no path of a task that has a file of its own: unless the folder names the task, `PATH` stands for it.
    """
    folder = str(record.spec.get("folder") or record.experiment)
    words: dict[str, Any] = {"seed": record.seed}
    if record.task in available() and not Path(folder).is_file():  # a file may hold a task of its own by that name
        words = {"task": record.task, **words}
    own = _own(folder, words)
    if "task" not in words and (own is None or own.task.name != record.task):
        words = {"task": f"PATH/{record.task}.yaml", **words}
    if own is not None:
        words.update(_differing(record, own))
    return shlex.join(["peftlab", "run", folder, *(f"{key}={_text(value)}" for key, value in words.items())])


def _own(folder: str, words: dict[str, Any]) -> RunSpec | None:
    """What the folder says today; None when it is gone or says nothing that can be run."""
    try:
        return load_spec(Path(folder), words)
    except UserError:
        return None


def _differing(record: Record, own: RunSpec) -> dict[str, Any]:
    there = own.model_dump(mode="json")
    return {
        f"{group}.{name}": value
        for group in GROUPS
        for name, value in (record.spec.get(group) or {}).items()
        if value != there[group].get(name)
    }


def _text(value: Any) -> str:
    """As the command line reads it: JSON, or a text that is none."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)
