"""Examples to token rows: where the loss begins, one end-of-sequence token for each whole row, nothing silently cut.

Works on tokenizers of the `transformers` library, which are passed in; pads nothing (`batching.py` does) and knows no
model. A prompt always has the same ids: those that a training row starts with are those that generation sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftlab.errors import UserError
from peftlab.protocols import Example

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training row.

    Attributes:
        item: The example's id.
        ids: Token ids, special tokens included.
        labels_from: The loss is on positions labels_from .. len(ids) - 1; a position's label is its own token,
            predicted from those before it (so position 0 never has one). len(ids) for classification.
        has_eos: Whether the last id is the end-of-sequence token that ends a whole row.
        truncated: Whether the row was longer than the limit and lost its end.
        label: The class or the value (classification), else None.
        type_ids: Segment ids of tokenizers that tell two texts apart, else None.
    """

    item: str
    ids: Ids
    labels_from: int
    has_eos: bool
    truncated: bool
    label: int | float | None = None
    type_ids: Ids | None = None

    @property
    def num_labels(self) -> int:
        """Tokens that the loss is taken on."""
        return max(0, len(self.ids) - max(self.labels_from, 1))


def tokenise(
    examples: Sequence[Example],
    tokenizer: Any,
    *,
    kind: str,
    max_length: int,
    loss_mask: Literal["answer", "everything"],
) -> tuple[list[TokenRow], dict[str, Any]]:
    """Turn examples into token rows, in order, with counts of what was cut and where the texts meet.

    Prompt and target are tokenised as one text where that leaves the prompt's own ids as they are, else apart
    (`boundary_rows`). Ending tokens that a tokenizer adds by itself are left off; a whole row gets one EOS.

    Raises:
        UserError: The tokenizer has no EOS, or not one row has a token to learn from.
    """
    if kind == "classify":
        return _classification_rows(examples, tokenizer, max_length)
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
    facts = _facts(rows, boundary_rows=len(apart))
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


def chat_prompt(text: str, tokenizer: Any) -> Ids:
    """The ids of a user's turn in the tokenizer's own chat template, up to where the model's answer begins.

    Raises:
        UserError: The tokenizer has no chat template, or one that cannot be used.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(
            "generation.chat_template: this model's tokenizer has no chat template",
            fix="set generation.chat_template=false, or use a model made for chats",
        )
    turns = [{"role": "user", "content": text}]
    try:
        return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
    except TemplateError as error:
        raise UserError(
            f"generation.chat_template: the template of this model's tokenizer fails: {error}",
            fix="set generation.chat_template=false, or mend the template beside the model",
        ) from error


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
    examples: Sequence[Example], tokenizer: Any, max_length: int
) -> tuple[list[TokenRow], dict[str, Any]]:
    """Rows of one or two texts with the tokenizer's own special tokens; a long row loses tokens of its longer text."""
    if not examples:
        return [], _facts([], boundary_rows=0)
    texts = [list(column) for column in zip(*(example.pair for example in examples), strict=True)]
    found = tokenizer(*texts, return_attention_mask=False, verbose=False)
    kinds = found.get("token_type_ids")
    eos = tokenizer.eos_token_id
    rows = []
    for index, example in enumerate(examples):
        ids = tuple(found["input_ids"][index])
        type_ids = tuple(kinds[index]) if kinds is not None else None
        truncated = len(ids) > max_length
        if truncated:
            cut = tokenizer(*example.pair, truncation=True, max_length=max_length, verbose=False)
            ids = tuple(cut["input_ids"])
            type_ids = tuple(cut["token_type_ids"]) if kinds is not None else None
        ends = eos is not None and ids[-1:] == (eos,)
        rows.append(TokenRow(example.item, ids, len(ids), ends, truncated, example.reference, type_ids))
    return rows, _facts(rows, boundary_rows=0)


def _facts(rows: Sequence[TokenRow], *, boundary_rows: int) -> dict[str, Any]:
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
