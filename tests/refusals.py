"""A working folder in which commands are refused: runs the command line, reads its words, and looks what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab.cli import main

HINTS = ("fix: ", "did you mean", "known keys: ")
SMALL: dict[str, Any] = {
    "optim": {"learning_rate": 1e-2},
    "batch": {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 6},
    "train": {"max_steps": 2},
    "save": {"save_steps": 1},
    "data": {"forgetting": None, "max_length": 64},
}


def left_behind(root: Path) -> dict[str, bytes | None]:
    """Every file of the results folders with its content and every empty folder, but for the locks of claims."""
    found: dict[str, bytes | None] = {}
    for folder in root.glob("*results"):
        paths = [path for path in folder.rglob("*") if ".locks" not in path.relative_to(root).parts]
        if not paths and not (folder / ".locks").is_dir():
            found[folder.name] = None
        for path in paths:
            if path.is_file():
                found[str(path.relative_to(root))] = path.read_bytes()
            elif not any(path.iterdir()):
                found[str(path.relative_to(root))] = None
    return found


class Place:
    """The folder that a user works in; `model` is a tiny model shared by all tests."""

    def __init__(self, root: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.model = model
        self._capsys = capsys

    def task(self, **changes: Any) -> Path:
        """Write the toy task in `task/`; a change to None takes the key away."""
        path = toy.write_task(self.root / "task")
        plain = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in plain.items() if value is not None}))
        return path

    def experiment(
        self, *, name: str = "lora/toy", adapter: Any = toy.LORA, task: Path | str | None = None, **groups: Any
    ) -> Path:
        """Write an experiment folder that works; `groups` are merged over its settings."""
        plain: dict[str, Any] = {"task": str(task or self.task()), "model": {"id": str(self.model)}, **SMALL}
        for group, values in groups.items():
            plain[group] = {**plain.get(group, {}), **values} if isinstance(values, dict) else values
        folder = Path("experiments") / name
        folder.mkdir(parents=True)
        for file, content in (("adapter_config.json", adapter), ("training_params.json", plain)):
            if content is not None:
                (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    def says(self, *words: str | Path, code: int) -> str:
        """Run a command that must end with `code`; returns what it wrote on stderr and stdout."""
        self._capsys.readouterr()
        found = main([str(word) for word in words])
        output = self._capsys.readouterr()
        text = output.err + output.out
        assert found == code, text
        assert "Traceback" not in text
        return text

    def refuses(self, *words: str | Path, says: tuple[str, ...]) -> str:
        """Run a command that must end with code 2, name all of `says` and a way out, and leave nothing behind."""
        before = left_behind(self.root)
        text = self.says(*words, code=2)
        assert "error: " in text
        assert any(hint in text for hint in HINTS), text
        for expected in says:
            assert expected in text, text
        assert left_behind(self.root) == before
        return text

    def runs(self, *words: str | Path) -> str:
        """Run a command that must succeed."""
        return self.says(*words, code=0)

    def record(self) -> Path:
        """The one finished record."""
        [found] = [path for name in ("results", "temporary_results") for path in (self.root / name).glob("*.json")]
        return found


def working_place(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    """The place as working folder, without plug-ins and mirror of the machine."""
    monkeypatch.chdir(root)
    for variable in ("PEFTLAB_PLUGINS", "PEFTLAB_MIRROR"):
        monkeypatch.setenv(variable, "")
    return Place(root, model, capsys)
