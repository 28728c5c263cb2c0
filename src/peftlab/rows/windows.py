"""Plain text as windows of tokens: nothing of it is left out, and every token is learnt exactly once.

Cuts and pads nothing (`batching.py` pads), scores nothing, and knows no model; tokenizers are passed in.

The windows are those of lm-evaluation-harness' rolling log-likelihood: they do not overlap but for the one token that
the next window begins with, which is read there and not learnt. What a text begins with is the tokenizer's own prefix
(a BOS) or, where it has none, the end-of-sequence token, as one document follows another in a stream; so the first
token of a text is learnt too. A prefix of the tokenizer's own stands before every window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.protocols import Example
from peftlab.rows.tokenise import TokenRow, encode, eos_id, prefix_of


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One item of plain text: a document, or a window of a joined text.

    Attributes:
        item: Its id.
        rows: Its windows, in order.
        num_bytes: Bytes of its text in UTF-8. Those of a joined text are spread evenly over its tokens.
        cluster: Id that the document shares with others of its source, or None.
    """

    item: str
    rows: tuple[TokenRow, ...]
    num_bytes: float
    cluster: str | None = None


def pieces(examples: Sequence[Example], tokenizer: Any, *, max_length: int, join: str | None) -> list[Piece]:
    """The texts (the examples' targets) as windows of at most `max_length` tokens, in order.

    Args:
        examples: One text each. One without a token is left out: it has nothing to learn from.
        tokenizer: The model's.
        max_length: Tokens of a window, those included that are only read.
        join: None: every text is a document, which ends in an end-of-sequence token that is learnt. Else all of them
            are one text with this between them, whose windows are the items; it ends nowhere.

    Raises:
        UserError: The tokenizer has no end-of-sequence token, or no text has a token.
    """
    eos, own = eos_id(tokenizer), prefix_of(tokenizer)
    if max_length < len(own) + 2:
        raise UserError(
            f"data.max_length = {max_length}: a window of text takes at least {len(own) + 2} tokens",
            fix="raise data.max_length",
        )
    if join is None:
        documents = zip(examples, encode([example.target for example in examples], tokenizer), strict=True)
        found = [
            Piece(
                item=example.item,
                rows=tuple(_windows(example.item, (*ids, eos), own, eos, max_length, ends=True)),
                num_bytes=len(example.target.encode()),
                cluster=example.cluster,
            )
            for example, ids in documents
            if ids
        ]
    else:
        text = join.join(example.target for example in examples)
        (ids,) = encode([text], tokenizer)
        share = len(text.encode()) / max(len(ids), 1)
        rows = _windows("", ids, own, eos, max_length, ends=False)
        # named by their tokens, so that only equal windows are ever compared
        named = [TokenRow(digest(list(row.ids)), row.ids, row.labels_from, False, False) for row in rows]
        found = [Piece(item=row.item, rows=(row,), num_bytes=share * row.num_labels) for row in named]
    if not found:
        raise UserError("no text has a token to learn from", fix="mend 'target' or 'columns' in the task")
    return found


def _windows(
    item: str, ids: Sequence[int], own: tuple[int, ...], eos: int, max_length: int, *, ends: bool
) -> list[TokenRow]:
    """The ids as windows in which each is learnt once; the last of them `ends` the text or not."""
    rows: list[TokenRow] = []
    start = 0
    while start < len(ids):
        before = (*own, ids[start - 1]) if start else own or (eos,)
        stop = start + max_length - len(before)
        rows.append(
            TokenRow(
                item=item,
                ids=(*before, *ids[start:stop]),
                labels_from=len(before),
                has_eos=ends and stop >= len(ids),
                truncated=False,
            )
        )
        start = stop
    return rows


def token_rows(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, join: str | None
) -> tuple[list[TokenRow], dict[str, Any]]:
    """All windows as training rows, with counts; windows that two documents share stand there twice."""
    found = pieces(examples, tokenizer, max_length=max_length, join=join)
    rows = [row for piece in found for row in piece.rows]
    lengths = [len(row.ids) for row in rows]
    return rows, {
        "num_rows": len(rows),
        "texts": len(examples),
        "empty_texts": len(examples) - len(found) if join is None else 0,
        "truncated": 0,
        "boundary_rows": 0,
        "rows_without_labels": 0,
        "tokens": sum(lengths),
        "label_tokens": sum(row.num_labels for row in rows),
        "longest": max(lengths),
        "mean_length": sum(lengths) / len(rows),
    }
