"""Examples to token rows: where the loss begins, one end-of-sequence token for each whole row, nothing silently cut.

Works on tokenizers of the `transformers` library, which are passed in; pads nothing (`batching.py` does) and knows no
model. A prompt always has the same ids: those that a training row starts with are those that generation sees. Rows that
are conversations are `conversations.py`'s work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from peftlab.errors import UserError
from peftlab.protocols import Example

Ids = tuple[int, ...]
Span = tuple[int, int]
"""First position, and the one behind the last."""

PAIR_SEPARATOR = "\n"
"""Between two texts, for tokenizers that put no token between them (those of most decoders)."""

_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Put before templates that write the day, in which no two days have the same rows: the day that Llama's names."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training row.

    Attributes:
        item: The example's id.
        ids: Token ids, special tokens included.
        labels_from: The loss is on positions labels_from .. len(ids) - 1; a position's label is its own token,
            predicted from those before it (so position 0 never has one). len(ids) for classification.
        has_eos: Whether the last token that is learnt ends what it belongs to: the end-of-sequence token of a whole
            row, or the last token of a turn.
        truncated: Whether the row was longer than the limit and lost its end.
        label: The class or the value (classification), else None.
        type_ids: Segment ids of tokenizers that tell two texts apart, else None.
        spans: Where the loss is, if not on all from `labels_from`: the assistant's turns of a conversation, each with
            the token that ends it as its last; only the last span may have been cut (`has_eos`).
    """

    item: str
    ids: Ids
    labels_from: int
    has_eos: bool
    truncated: bool
    label: int | float | None = None
    type_ids: Ids | None = None
    spans: tuple[Span, ...] | None = None

    @property
    def learnt(self) -> tuple[Span, ...]:
        """Where the loss is taken."""
        return ((self.labels_from, len(self.ids)),) if self.spans is None else self.spans

    @property
    def num_labels(self) -> int:
        """Tokens that the loss is taken on."""
        return sum(max(0, stop - max(start, 1)) for start, stop in self.learnt)


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    kind: str,
    max_length: int,
    loss_mask: Literal["answer", "everything"],
    pair_separator: str = PAIR_SEPARATOR,
) -> tuple[list[TokenRow], dict[str, Any]]:
    """Turn examples into token rows, in order, with counts of what was cut and where the texts meet.

    Prompt and target are tokenised as one text where that leaves the prompt's own ids as they are, else apart
    (`boundary_rows`). Ending tokens that a tokenizer adds by itself are left off; a whole row gets one EOS.

    Raises:
        UserError: The tokenizer has no EOS, or not one row has a token to learn from.
    """
    if kind == "classify":
        return _classification_rows(examples, tokenizer, max_length, pair_separator)
    eos = eos_id(tokenizer)
    prefix = prefix_of(tokenizer)
    prompts = encode([example.prompt for example in examples], tokenizer)
    wholes = encode([example.prompt + example.target for example in examples], tokenizer)
    apart = [index for index, ids in enumerate(prompts) if wholes[index][: len(ids)] != ids]
    targets = encode([examples[index].target for index in apart], tokenizer)
    for index, target in zip(apart, targets, strict=True):
        wholes[index] = prompts[index] + target
    rows = []
    for example, prompt, whole in zip(examples, prompts, wholes, strict=True):
        ids = (*prefix, *whole) if whole and whole[-1] == eos else (*prefix, *whole, eos)
        truncated = len(ids) > max_length
        ids = ids[:max_length]
        labels_from = 0 if loss_mask == "everything" else min(len(prefix) + len(prompt), len(ids))
        rows.append(TokenRow(example.item, ids, labels_from, not truncated, truncated))
    facts = facts_of(rows, boundary_rows=len(apart))
    if rows and facts["label_tokens"] == 0:
        raise UserError(
            f"data.max_length = {max_length}: no training row has a token of its target within the limit "
            f"(the shortest prompt has {min(map(len, prompts)) + len(prefix)} tokens)",
            fix="raise data.max_length, or shorten the prompt",
        )
    return rows, facts


def prompt_ids(text: str, tokenizer: Any) -> Ids:
    """The ids that a training row with this prompt starts with, and that generation starts from.

    What a tokenizer puts after every text (some add an EOS) is left off: the text goes on.
    """
    return (*prefix_of(tokenizer), *encode([text], tokenizer)[0])


def cut(row: TokenRow, limit: int) -> TokenRow:
    """The row's first `limit` tokens; what was lost at the end is not made up for, by no end of anything."""
    if len(row.ids) <= limit:
        return row
    before = row.spans or ()
    spans = tuple((start, min(stop, limit)) for start, stop in before if start < limit)
    return replace(
        row,
        ids=row.ids[:limit],
        labels_from=min(row.labels_from, limit),
        has_eos=bool(spans) and spans == before[: len(spans)],
        truncated=True,
        type_ids=None,
        spans=None if row.spans is None else spans,
    )


def chat_prompt(text: str, tokenizer: Any) -> Ids:
    """The ids of a user's turn in the tokenizer's own chat template, up to where the model's answer begins.

    Raises:
        UserError: The tokenizer has no chat template, or one that cannot be used.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "generation.chat_template: this model's tokenizer has no chat template",
            fix="set generation.chat_template=false, or use a model made for chats",
        )
    try:
        written = chat_text([{"role": "user", "content": text}], tokenizer, to_answer=True)
    except ValueError as error:
        raise UserError(
            f"generation.chat_template: the template of this model's tokenizer fails: {error}",
            fix="set generation.chat_template=false, or mend the template beside the model",
        ) from error
    return encode([written], tokenizer)[0]


def chat_text(turns: Sequence[Mapping[str, str]], tokenizer: Any, *, to_answer: bool = False) -> str:
    """Turns in the tokenizer's own chat template; with `to_answer` up to where the model's answer begins.

    Raises:
        ValueError: What the template says against these turns.
    """
    from jinja2 import TemplateError

    template = tokenizer.get_chat_template()
    dated = _DATE + template if "strftime_now" in template else template
    try:
        found = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], chat_template=dated, add_generation_prompt=to_answer, tokenize=False
        )
    except TemplateError as error:
        raise ValueError(str(error)) from error
    return str(found)


# -------------------------------------------------------------------------------------------------- tokenizers


def eos_id(tokenizer: Any) -> int:
    """The id that ends a text.

    Raises:
        UserError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the model's tokenizer has no end-of-sequence token: a model trained without one never learns to stop",
            fix="set eos_token in the model's tokenizer_config.json, or use another model",
        )
    return int(tokenizer.eos_token_id)


def prefix_of(tokenizer: Any) -> Ids:
    """The ids that the tokenizer itself puts before every text (a BOS, or nothing).

    Raises:
        UserError: The tokenizer cannot be used.
    """
    probe = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, added = probe["input_ids"], probe["special_tokens_mask"]
    if 0 not in added:
        raise UserError("the model's tokenizer has no token for the letter 'a'", fix="use another tokenizer")
    return tuple(ids[: added.index(0)])


def encode(texts: Sequence[str], tokenizer: Any) -> list[Ids]:
    """Ids of many texts without any special tokens added, nothing cut.

    Tokenizers written in Rust are asked directly and without offsets, which takes half the time; the call before it
    puts them into the state (no padding, no truncation) that the library's own call would.
    """
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    if not tokenizer.is_fast:
        return [tuple(ids) for ids in tokenizer(list(texts), verbose=False, **options)["input_ids"]]
    tokenizer(texts[0], verbose=False, **options)
    found = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [tuple(encoding.ids) for encoding in found]


# ---------------------------------------------------------------------------------------------- classification


def _classification_rows(
    examples: Sequence[Example], tokenizer: Any, max_length: int, separator: str
) -> tuple[list[TokenRow], dict[str, Any]]:
    """Rows of one or two texts with the tokenizer's own special tokens; a long row loses tokens of its longer text.

    Where the tokenizer puts none between two texts, the second one begins with the separator, which no cut reaches.
    """
    if not examples:
        return [], facts_of([], boundary_rows=0)
    before = separator if len(examples[0].pair) > 1 and not _tells_apart(tokenizer) else ""
    pairs = [(example.pair[0], *(before + text for text in example.pair[1:])) for example in examples]
    texts = [list(column) for column in zip(*pairs, strict=True)]
    found = tokenizer(*texts, return_attention_mask=False, verbose=False)
    kinds = found.get("token_type_ids")
    eos = tokenizer.eos_token_id
    rows = []
    for index, example in enumerate(examples):
        ids = tuple(found["input_ids"][index])
        type_ids = tuple(kinds[index]) if kinds is not None else None
        truncated = len(ids) > max_length
        if truncated:
            cut = tokenizer(*pairs[index], truncation=True, max_length=max_length, verbose=False)
            ids = tuple(cut["input_ids"])
            type_ids = tuple(cut["token_type_ids"]) if kinds is not None else None
        ends = eos is not None and ids[-1:] == (eos,)
        rows.append(TokenRow(example.item, ids, len(ids), ends, truncated, example.reference, type_ids))
    return rows, facts_of(rows, boundary_rows=0)


def _tells_apart(tokenizer: Any) -> bool:
    """Whether the tokenizer itself marks where the second of two texts begins: by a token, or by segment ids."""
    probe = tokenizer("a", "a", return_special_tokens_mask=True, verbose=False)
    added, kinds = probe["special_tokens_mask"], probe.get("token_type_ids") or ()
    inside = added[added.index(0) : len(added) - added[::-1].index(0)]
    return 1 in inside or len({*kinds}) > 1


def facts_of(rows: Sequence[TokenRow], *, boundary_rows: int) -> dict[str, Any]:
    """Counts of rows and tokens, and of what was cut."""
    lengths = [len(row.ids) for row in rows]
    labelled = [row.num_labels for row in rows]
    classes = bool(rows) and rows[0].label is not None
    return {
        "num_rows": len(rows),
        "truncated": sum(row.truncated for row in rows),
        "boundary_rows": boundary_rows,
        "rows_without_labels": 0 if classes else labelled.count(0),
        "tokens": sum(lengths),
        "label_tokens": sum(labelled),
        "longest": max(lengths, default=0),
        "mean_length": sum(lengths) / len(rows) if rows else None,
    }
