"""Conversations to token rows: the loss is on every turn of the assistant, with the token that ends it.

A turn of the assistant is learnt from where generation would begin it, so neither what others say nor what a template
writes for them is learnt, whatever words they hold. Where a turn begins and ends is measured on the template itself: on
the text up to each turn, which the whole text must begin with; a row for which that does not hold is an error. Turns
after the assistant's last one are left out: nothing is learnt behind them. Knows no model.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from peftlab.config.task import Task
from peftlab.config.templates import fill
from peftlab.config.turns import Conversation, Turns, beginning
from peftlab.errors import UserError
from peftlab.protocols import Example
from peftlab.rows.tokenise import Ids, Span, TokenRow, chat_text, cut, encode, eos_id, facts_of, prefix_of
from peftlab.rows.windows import Piece

_CHUNK = 256
"""Rows whose texts, up to each turn, are held at a time."""

COUNTED = ("assistant_turns", "rows_with_markers", "rows_with_lost_turns")
"""Of all rows: turns that are learnt; rows in which somebody says a special token; rows whose template drops a turn."""

_PLAIN = "set data.chat_template=false"
_DECLARED = "declare 'turns' in the task and set data.chat_template=false, or use a model made for chats"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A conversation as text, up to the end of the assistant's last turn; `learnt` are places in it."""

    text: str
    learnt: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How the conversations of a run become text.

    Attributes:
        by: Whose template it is: the tokenizer's chat template, or the plain turns of the task.
        prefix: Ids before every row, which the template itself does not write.
        write: A conversation as text; what it raises a ValueError of cannot be written so.
        markers: Finds texts that the tokenizer reads as tokens of its own.
        where: What an error names as the place.
        otherwise: What can be done where the template cannot write a row.
    """

    by: Literal["tokenizer", "task"]
    prefix: Ids
    write: Callable[[Conversation], Written]
    markers: re.Pattern[str]
    where: str
    otherwise: str = ""


# ------------------------------------------------------------------------------------------------------- writing


def writing_of(tokenizer: Any, task: Task, chat_template: bool | None) -> Writing:
    """How this tokenizer's rows are written; nothing is guessed where neither it nor the task has a template.

    Raises:
        UserError: What is asked for is not there, or the tokenizer has no end-of-sequence token.
    """
    own = bool(tokenizer.chat_template)
    where = f"task '{task.name}'"
    otherwise = _DECLARED if task.messages else _PLAIN
    if chat_template and not own:
        raise UserError("data.chat_template = true: this model's tokenizer has no chat template", fix=otherwise)
    if chat_template is False and task.turns is None:
        raise UserError(
            f"data.chat_template = false: {where} does not say how its turns are written",
            fix='declare it: turns: {user: "User: {content}\\n", assistant: "Assistant: {content}", between: "\\n"}',
        )
    if not own and task.turns is None:
        raise UserError(
            f"{where}: its rows are conversations, this model's tokenizer has no chat template, and the task does not "
            "say how they are written",
            fix='declare it: turns: {user: "User: {content}\\n", assistant: "Assistant: {content}", between: "\\n"}; '
            "or use a model made for chats",
        )
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = tuple(filter(None, dict.fromkeys((*special, *tokenizer.all_special_tokens))))
    markers = re.compile("|".join(map(re.escape, ends)) or "(?!)")
    if own and chat_template is not False:

        def write(turns: Conversation) -> Written:
            return _templated(turns, tokenizer, ends)

        return Writing(by="tokenizer", prefix=(), write=write, markers=markers, where=where, otherwise=otherwise)
    plain, end = task.turns, _end_of_sequence(tokenizer)
    assert plain is not None
    return Writing(
        by="task",
        prefix=prefix_of(tokenizer),
        write=lambda turns: _plain(turns, plain, end),
        markers=markers,
        where=where,
    )


def _end_of_sequence(tokenizer: Any) -> str:
    """The text of the token that ends a plain turn, which has to become that token again."""
    number, end = eos_id(tokenizer), str(tokenizer.eos_token)
    if encode([end], tokenizer)[0] != (number,):
        raise UserError(
            f"the model's tokenizer does not read its own end-of-sequence token {end!r} as one token",
            fix="mend the tokenizer's files, or use another model",
        )
    return end


def _plain(turns: Conversation, plain: Turns, end: str) -> Written:
    """Turns in the task's own words, each of the assistant's with the end-of-sequence token behind it."""
    text, learnt = "", []
    for number, turn in enumerate(turns):
        template = plain.of(turn["role"])
        if template is None:
            raise ValueError("it has a system's turn, for which 'turns' of the task has no template")
        text += plain.between if number else ""
        said = fill(template, turn)
        if turn["role"] == "assistant":
            said += end
            learnt.append((len(text) + len(plain.asks), len(text) + len(said)))
        text += said
    return Written(text=text, learnt=tuple(learnt))


def _templated(turns: Conversation, tokenizer: Any, ends: Sequence[str]) -> Written:
    """Turns in the tokenizer's chat template, with the places where generation begins and ends each of the assistant's.

    The text up to a turn, with what asks for an answer, must be what the whole text begins with. The turn ends with the
    first token that can end one behind what was said; some templates write more behind the last turn than behind
    others, so only what the two texts have in common is looked at.
    """
    whole = chat_text(turns, tokenizer)
    learnt: list[Span] = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        if number == 0:
            raise ValueError("it begins with the assistant's turn, and there is no prompt to write before it")
        before = chat_text(turns[:number], tokenizer, to_answer=True)
        if not whole.startswith(before) or (learnt and len(before) < learnt[-1][1]):
            raise ValueError(f"the chat template writes the turns before turn {number + 1} otherwise once it is there")
        after = chat_text(turns[: number + 1], tokenizer)
        if not whole.startswith(after):
            after = whole[: _in_common(whole, after)]
        said = turn["content"].strip()
        place = after.find(said, len(before))
        if place < 0:
            raise ValueError(f"the chat template leaves out or changes what the assistant says in turn {number + 1}")
        found = [(at, len(end)) for end in ends if (at := after.find(end, place + len(said))) >= 0]
        if not found:
            raise ValueError(
                f"the chat template writes no token that ends turn {number + 1}: a model would not learn to stop"
            )
        at, length = min(found, key=lambda one: (one[0], -one[1]))
        learnt.append((len(before), at + length))
    return Written(text=whole[: learnt[-1][1]], learnt=tuple(learnt))


def _in_common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return bisect.bisect_left(
        range(1, min(len(one), len(other)) + 1), True, key=lambda size: one[:size] != other[:size]
    )


# -------------------------------------------------------------------------------------------------------- tokens


def token_rows(
    examples: Sequence[Example],
    tokenizer: Any,
    writing: Writing,
    *,
    max_length: int,
    loss_mask: Literal["answer", "everything"],
) -> tuple[list[TokenRow], dict[str, Any]]:
    """One row a conversation, in order, cut at the limit; with counts of what was cut, and of what a template drops.

    Raises:
        UserError: A conversation that the template cannot write, by its first words; or not one row has a token to
            learn from within the limit.
    """
    rows: list[TokenRow] = []
    apart = turns = marked = lost = 0
    shortest: int | None = None
    for start in range(0, len(examples), _CHUNK):
        part = examples[start : start + _CHUNK]
        written = [_write(example, writing) for example in part]
        for example, one, (row, whole) in zip(part, written, _tokens(part, written, tokenizer, writing), strict=True):
            apart += not whole
            turns += len(row.learnt)
            marked += any(writing.markers.search(turn["content"]) for turn in example.messages)
            lost += any(turn["content"].strip() not in one.text for turn in _learnable(example))
            shortest = row.labels_from if shortest is None else min(shortest, row.labels_from)
            if loss_mask == "everything":
                row = replace(row, labels_from=0, spans=None)
            rows.append(cut(row, max_length))
    facts = facts_of(rows, boundary_rows=apart)
    if rows and facts["label_tokens"] == 0:
        raise UserError(
            f"data.max_length = {max_length}: no conversation has a token of the assistant within the limit "
            f"(the earliest comes after {shortest} tokens)",
            fix="raise data.max_length",
        )
    counts = dict(zip(COUNTED, (turns, marked, lost), strict=True))
    return rows, {**facts, "written_by": writing.by, **counts}


def pieces(examples: Sequence[Example], tokenizer: Any, writing: Writing, *, max_length: int) -> list[Piece]:
    """The conversations as items of a test, cut as rows are; those without a token of the assistant are left out."""
    rows, _ = token_rows(examples, tokenizer, writing, max_length=max_length, loss_mask="answer")
    return [
        Piece(
            item=example.item,
            rows=(row,),
            num_bytes=sum(len(turn["content"].encode()) for turn in example.messages if turn["role"] == "assistant"),
            cluster=example.cluster,
        )
        for example, row in zip(examples, rows, strict=True)
        if row.num_labels
    ]


def _learnable(example: Example) -> Conversation:
    """The turns up to the assistant's last."""
    turns = example.messages
    return turns[: 1 + max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")]


def _write(example: Example, writing: Writing) -> Written:
    try:
        return writing.write(_learnable(example))
    except ValueError as error:
        fix = "leave the row out"
        raise UserError(
            f"{writing.where}: row {example.item[:12]} ({beginning(example.messages)!r}): {error}",
            fix=f"{fix}, or {writing.otherwise}" if writing.otherwise else fix,
        ) from error


def _tokens(
    examples: Sequence[Example], written: Sequence[Written], tokenizer: Any, writing: Writing
) -> Iterator[tuple[TokenRow, bool]]:
    """Each row, uncut; and whether its text was tokenised as one.

    It is where the text up to each turn of the assistant, tokenised alone, has the ids that the whole begins with: so
    generation sees there what training did. Else the text is tokenised in pieces, divided where these turns begin.
    """
    wholes = encode([one.text for one in written], tokenizer)
    places = [sorted({place for span in one.learnt for place in span} - {len(one.text)}) for one in written]
    heads = iter(encode([one.text[:place] for one, of in zip(written, places, strict=True) for place in of], tokenizer))
    for example, one, whole, of in zip(examples, written, wholes, places, strict=True):
        found = {place: next(heads) for place in of}
        fits = all(whole[: len(head)] == head for head in found.values())
        counts = {len(one.text): len(whole), **{place: len(head) for place, head in found.items()}}
        if not fits:
            whole, counts = _apart(one, tokenizer)
        if writing.prefix and whole[: len(writing.prefix)] == writing.prefix:
            ids, offset = whole, 0
        else:
            ids, offset = (*writing.prefix, *whole), len(writing.prefix)
        spans = tuple((offset + counts[start], offset + counts[stop]) for start, stop in one.learnt)
        yield TokenRow(example.item, ids, spans[0][0], True, False, spans=spans), fits


def _apart(one: Written, tokenizer: Any) -> tuple[Ids, dict[int, int]]:
    """The ids of the pieces between the beginnings of turns, one behind the other, and how many come before each place.

    The end of a turn is a token that no neighbour merges with, so the ids up to it are counted by themselves.
    """
    cuts = [0, *(start for start, _ in one.learnt), len(one.text)]
    parts = encode([one.text[start:stop] for start, stop in pairwise(cuts)], tokenizer)
    turns = encode([one.text[start:stop] for start, stop in one.learnt], tokenizer)
    counts: dict[int, int] = {}
    ids = parts[0]
    for (start, stop), part, turn in zip(one.learnt, parts[1:], turns, strict=True):
        assert part[: len(turn)] == turn, "a turn ends in a token of its own"
        counts[start], counts[stop] = len(ids), len(ids) + len(turn)
        ids = (*ids, *part)
    return ids, counts
