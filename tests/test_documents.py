"""Every peftlab command in the pages, examples and help texts parses, and names settings and folders that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import documents
from peftlab import loading
from peftlab.cli import arguments
from peftlab.protocols import names

FOUND = [
    pytest.param(page, command, id=f"{page.relative_to(documents.ROOT)}: {command.text.strip()[:60]}")
    for page in documents.PAGES
    for command in documents.commands(page.read_text(encoding="utf-8"))
]


def test_there_are_commands_to_look_at() -> None:
    assert len(FOUND) > 100
    with_commands = {page.name for page, _ in (found.values for found in FOUND)}
    assert {"README.md", "moving.md", "choosing.md", "troubleshooting.md", "cli.md", "tasks.md"} <= with_commands


@pytest.mark.parametrize(("page", "command"), FOUND)
def test_a_command_of_a_page_is_one(page: Path, command: documents.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    found = documents.take_apart(command)
    settings = documents.settings_of(found)
    assert documents.unknown_settings(settings) == []
    places = [word for value in found.values() for word in (value if isinstance(value, list) else [value])]
    if page.suffix != ".py":
        text = page.read_text(encoding="utf-8")
        assert [str(place) for place in places if place and not documents.own_path(str(place), text)] == []
    if found["verb"] in ("run", "show") and found.get("dialect") is None:
        _resolves(str(found.get("path") or found.get("target")), settings, monkeypatch)


def _resolves(path: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment of the repository can be loaded with those settings: their values fit too."""
    monkeypatch.chdir(documents.ROOT)
    values: dict[str, Any] = arguments.parse(settings)
    if not path.startswith(("experiments/", "configs/")) or not Path(path).exists():
        return
    if values.get("task", "gsm8k").startswith("./"):
        return
    spec = arguments.load_spec(path, values)
    assert spec.task.name in [*names("tasks"), spec.task.name]
    assert isinstance(spec, loading.RunSpec)
