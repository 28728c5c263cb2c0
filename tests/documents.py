"""Finds the peftlab commands in the repository's pages and scripts, and takes them apart as the command line would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from peftlab.cli import arguments
from peftlab.cli.verbs import app
from peftlab.config.groups import GROUPS
from peftlab.config.task import Task

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*", "configs/*.yaml", "src/peftlab/cli/*verbs.py")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.name != "CHANGELOG.md"
)
PLACEHOLDER = re.compile(r"VERB|\.\.\.|<[a-z]+>|[\"']?\$")
"""What a reader fills in, or a script's own variables."""

_CALL = re.compile(r"(?:^|\s)(?:-m )?peftlab (?P<words>.*)$")
_SPAN = re.compile(r"`([^`\n]+)`")
_BEGINS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:peftlab|python -m peftlab|torchrun|accelerate launch) ")
_COPIED = re.compile(r"\bcp \S+ (\S+)")
_TOP = ("task", "seed")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as a page writes it.

    Attributes:
        text: The page's words.
        words: Those after `peftlab`.
        whole: Whether it stands on a line of its own; what stands in a sentence may leave its arguments out.
    """

    text: str
    words: tuple[str, ...]
    whole: bool


def commands(text: str) -> Iterator[Command]:
    """Every command of a page: in blocks, behind prompts and launchers, and in sentences."""
    text = text.replace("\\\n", " ")
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        bare = line.strip().removeprefix("$ ").removeprefix("# ").strip()
        # text of a page begins at the margin, a command of a page does not
        if _BEGINS.match(bare) and (fenced or line != bare):
            words = bare.split("  ")[0].split(" # ")[0]
            found = _words(words)
            if found is not None:
                yield Command(text=words, words=found, whole=True)
    for span in _SPAN.findall(text):
        found = _words(span)
        if found is not None and _BEGINS.match(span):
            yield Command(text=span, words=found, whole=False)


def _words(line: str) -> tuple[str, ...] | None:
    found = _CALL.search(line)
    if found is None or PLACEHOLDER.search(found["words"]):
        return None
    words = shlex.split(found["words"], comments=True)
    return tuple(words[: next((place for place, word in enumerate(words) if word in ("|", ">", "&&")), len(words))])


def take_apart(command: Command) -> dict[str, Any]:
    """The verb and its arguments and options, as typer reads them.

    Raises:
        click.UsageError: There is no such verb, option, or an argument is missing.
    """
    group: Any = typer.main.get_command(app)
    words, name, context = list(command.words), "", None
    while True:
        if words[:1] in (["--help"], ["--version"]):
            return {"verb": name}
        if not isinstance(group, TyperGroup):
            break
        context = group.make_context(name or "peftlab", words, parent=context)
        rest = [*context._protected_args, *context.args]
        if not rest:
            return {"verb": name.strip(), **context.params}
        word, group, words = group.resolve_command(context, rest)
        name = f"{name} {word}".strip()
    if "--help" in words:
        return {"verb": name}
    if not command.whole and not words:
        return {"verb": name}
    return {"verb": name, **group.make_context(name, words, parent=context).params}


def settings_of(found: dict[str, Any]) -> list[str]:
    """The `key=value` words among a command's arguments."""
    words = [word for value in found.values() if isinstance(value, (list, tuple)) for word in value]
    return arguments.split(words)[1]


def unknown_settings(settings: list[str]) -> list[str]:
    """Those of them that no group has."""
    keys = [setting.partition("=")[0] for setting in settings]
    return [key for key in keys if key not in _TOP and not is_setting(key)]


def is_setting(name: str) -> bool:
    """Whether `group.setting` exists, or `task.field`."""
    group, _, rest = name.partition(".")
    owner = Task if group == "task" else GROUPS.get(group)
    return owner is not None and rest.partition(".")[0] in owner.model_fields


def own_path(path: str, page: str) -> bool:
    """Whether a path into the repository exists, or is written by a `peftlab new` of the same page."""
    if not path.startswith(("experiments/", "configs/", "examples/")):
        return True
    made = {
        f"experiments/{words[1]}/{words[2]}" for one in commands(page) if (words := one.words) and words[:1] == ("new",)
    }
    return (ROOT / path).exists() or path.rstrip("/") in {*made, *_COPIED.findall(page)}
