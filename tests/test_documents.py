"""Every peftlab command in the pages, examples and help texts parses, and names settings and folders that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import documents
from peftlab.cli import arguments

SOURCE = documents.ROOT / "src" / "peftlab"
FOUND = [
    (page, command) for page in documents.PAGES for command in documents.commands(page.read_text(encoding="utf-8"))
]


def test_there_are_commands_to_look_at() -> None:
    assert len(FOUND) > 100
    with_commands = {page.name for page, _ in FOUND}
    assert {"README.md", "moving.md", "choosing.md", "troubleshooting.md", "cli.md", "tasks.md"} <= with_commands


@pytest.mark.parametrize(
    ("page", "command"), FOUND, ids=[f"{page.relative_to(documents.ROOT)}: {one.text[:60]}" for page, one in FOUND]
)
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
    assert arguments.load_spec(path, values).folder == path.rstrip("/")


def test_the_tree_in_the_readme_is_the_real_one() -> None:
    text = (documents.ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("## What lies where")[1].split("```")[1]
    named = {name for line in tree.splitlines() for name in re.findall(r"^(\w+)/", line)}
    tracked = {"experiments", "configs", "examples", "src", "tests", "benchmarks", "demo", "docs"}
    assert named == tracked and all((documents.ROOT / name).is_dir() for name in tracked)
    for package, words in re.findall(r"^  (\w+)/ +(.*\.py.*)$", tree, flags=re.MULTILINE):
        assert [name for name in re.findall(r"\b\w+\.py\b", words) if not (SOURCE / package / name).is_file()] == []
    folders = {name for line in tree.splitlines() if line.startswith("  ") for name in re.findall(r"(\w+)/", line)}
    real = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()} | {"tasks", "benchmarks"}
    assert folders == real


def test_every_module_stands_in_the_layout() -> None:
    text = (documents.ROOT / "docs" / "design" / "layout.md").read_text(encoding="utf-8")
    table = text.split("| package | file |")[1].split("\nFolders of plug-ins")[0]
    packages = re.findall(r"\| \*\*`(\w+)/`\*\*", table)
    for name in packages:
        rows = table.split(f"| **`{name}/`** |")[1].split("\n| **`")[0]
        listed = re.findall(r"^\| \| `(\w+\.py)`", rows, flags=re.MULTILINE)
        assert sorted(listed) == sorted(path.name for path in (SOURCE / name).glob("*.py") if path.stem != "__init__")
    root = {path.name for path in SOURCE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(re.findall(r"^\| root \| `(\w+\.py)`", table, flags=re.MULTILINE)) == sorted(root)
    inside = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    plugins = set(re.findall(r"^\| `(\w+)/`", text, flags=re.MULTILINE))
    assert inside <= {*packages, *plugins}, "a package without a line"
