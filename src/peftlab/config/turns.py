"""Conversations as rows have them: who may speak, and the plain text that a task declares for each turn.

Turns no text into tokens (`rows/conversations.py` does), and knows no chat template of a tokenizer.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from peftlab.config.settings import Settings, setting
from peftlab.config.templates import template_fields
from peftlab.errors import UserError

ROLES = ("system", "user", "assistant")
_SHOWN_CHARACTERS = 60
_FIELD = "{content}"

Conversation = tuple[Mapping[str, str], ...]
"""Turns in order, each with `role` and `content`."""


class Turns(Settings):
    """A turn of each role as plain text, for tokenizers without a chat template; `{content}` is what was said.

    Every turn of the assistant ends in the tokenizer's end-of-sequence token, which stands in no template.
    """

    system: str | None = setting(None, "template of a system's turn; null: there must be none")
    user: str = setting(..., "template of a user's turn")
    assistant: str = setting(..., "template of the assistant's turn; what stands before {content} is not learnt")
    between: str = setting("", "text between two turns")

    @model_validator(mode="after")
    def _complete(self) -> Turns:
        for role in ROLES:
            template = self.of(role)
            if template is not None and template_fields(template) != ("content",):
                raise ValueError(f"'turns.{role}' = {template!r} must hold {_FIELD} once, and no other field")
        if template_fields(self.between):
            raise ValueError(f"'turns.between' = {self.between!r} must hold no field")
        return self

    def of(self, role: str) -> str | None:
        """The template of a role's turns."""
        found: str | None = getattr(self, role)
        return found

    @property
    def asks(self) -> str:
        """What stands before the assistant's words, but for blanks at its end.

        These go with the words: a prompt that ends in a blank has other tokens than the text.
        """
        pieces = []
        for literal, name, _, _ in string.Formatter().parse(self.assistant):
            pieces.append(literal)
            if name is not None:
                break
        return "".join(pieces).rstrip(" ")


def conversation(value: Any, *, where: str) -> Conversation:
    """A row's list of turns, checked.

    Args:
        value: What the row holds.
        where: What an error names as the place: the task and the row.

    Raises:
        UserError: No list of turns, a role that there is not, content that is no text, or no turn of the assistant.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise UserError(
            f"{where}: a conversation is a list of turns, not {str(value)[:_SHOWN_CHARACTERS]!r}",
            fix='write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise UserError(
                f"{where}: turn {number} is {str(turn)[:_SHOWN_CHARACTERS]!r}, without 'role' and 'content'",
                fix='write each turn as {"role": "user", "content": "..."}',
            )
        role, content = turn["role"], turn["content"]
        if role not in ROLES:
            raise UserError(
                f"{where}: turn {number} has the role {str(role)[:_SHOWN_CHARACTERS]!r}",
                fix=f"roles: {', '.join(ROLES)}; rename it, or leave such rows out",
            )
        if not isinstance(content, str):
            raise UserError(
                f"{where}: the content of turn {number} is {str(content)[:_SHOWN_CHARACTERS]!r}, not text",
                fix="write the content of every turn as one text",
            )
        turns.append({"role": str(role), "content": content})
    if all(turn["role"] != "assistant" for turn in turns):
        raise UserError(
            f"{where}: the conversation has no turn of the assistant, so there is nothing to learn from it",
            fix="leave the row out",
        )
    return tuple(turns)


def as_text(value: Any) -> str:
    """What was said, one turn a line; anything that is no conversation as it prints."""
    try:
        return "\n".join(turn["content"] for turn in value)
    except (TypeError, KeyError):
        return str(value)


def beginning(value: Any) -> str:
    """The first words of a conversation, to name a row by."""
    text = " ".join(as_text(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
