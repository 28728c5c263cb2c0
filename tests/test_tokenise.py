from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlab.errors import UserError
from peftlab.protocols import Example
from peftlab.rows.tokenise import chat_prompt, prompt_ids, tokenise
from toy_tokenizers import byte_pairs, word_level

HABITS: list[dict[str, Any]] = [
    {},
    {"pad": None},
    {"pad": "</s>"},
    {"left": True},
    {"adds_bos": True},
    {"adds_eos": True},
    {"adds_bos": True, "adds_eos": True, "pad": "</s>", "left": True},
    {"added": ("<|user|>", "<|end|>")},
]
TOKENIZERS = [make(**habits) for make in (word_level, byte_pairs) for habits in HABITS]
NAMES = [f"{make.__name__}-{'+'.join(habits) or 'plain'}" for make in (word_level, byte_pairs) for habits in HABITS]
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=NAMES)


def example(prompt: str, target: str, item: str = "x", **fields: Any) -> Example:
    return Example(item=item, prompt=prompt, target=target, **fields)


def causal(examples: list[Example], tokenizer: Any, **options: Any) -> Any:
    return tokenise(examples, tokenizer, **{"kind": "generate", "max_length": 64, "loss_mask": "answer", **options})


# ------------------------------------------------------------------------------------------------ one whole row


@every_tokenizer
def test_a_row_is_the_prompt_then_the_target_then_one_eos(tokenizer: Any) -> None:
    (row,), facts = causal([example("Question : what is two plus three ?", " five")], tokenizer)
    start = prompt_ids("Question : what is two plus three ?", tokenizer)
    target = tokenizer(" five", add_special_tokens=False)["input_ids"]
    assert row.ids == (*start, *target, tokenizer.eos_token_id)
    assert row.labels_from == len(start)
    assert row.has_eos and not row.truncated
    assert facts["label_tokens"] == len(target) + 1 and facts["boundary_rows"] == 0


@every_tokenizer
@settings(max_examples=25, deadline=None)
@given(
    prompt=st.text(st.characters(codec="ascii", exclude_characters="<>"), min_size=1, max_size=30),
    target=st.text(st.characters(codec="ascii", exclude_characters="<>"), min_size=1, max_size=30),
    max_length=st.integers(2, 80),
)
def test_eos_stands_once_at_the_end_of_whole_rows_and_never_in_cut_ones(
    tokenizer: Any, prompt: str, target: str, max_length: int
) -> None:
    try:
        (row,), facts = causal([example(prompt, target)], tokenizer, max_length=max_length)
    except UserError:
        blank = not (prompt + target).strip()
        assert blank or len(prompt_ids(prompt, tokenizer)) >= max_length
        return
    start = prompt_ids(prompt, tokenizer)
    assert row.ids[: len(start)] == start[: len(row.ids)]
    assert len(row.ids) <= max_length
    assert row.ids.count(tokenizer.eos_token_id) == (0 if row.truncated else 1)
    assert row.has_eos == (row.ids[-1] == tokenizer.eos_token_id) == (not row.truncated)
    assert row.labels_from == min(len(start), len(row.ids))
    assert facts["tokens"] == len(row.ids) and facts["label_tokens"] == len(row.ids) - max(row.labels_from, 1)


def test_the_same_ids_whatever_the_padding() -> None:
    rows = [causal([example("the cat", " sat on")], word_level(**habits))[0] for habits in HABITS[:4]]
    assert all(row == rows[0] for row in rows)


def test_the_prompt_ends_without_the_eos_that_a_tokenizer_adds() -> None:
    tokenizer = word_level(adds_bos=True, adds_eos=True)
    assert tokenizer("the cat")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.convert_ids_to_tokens(prompt_ids("the cat", tokenizer)) == ["<s>", "the", "cat"]


def test_an_eos_written_in_the_target_is_not_doubled() -> None:
    tokenizer = word_level()
    (row,), _ = causal([example("the cat", " sat</s>")], tokenizer)
    assert tokenizer.convert_ids_to_tokens(row.ids) == ["the", "cat", "sat", "</s>"]
    assert row.has_eos


def test_everything_is_learnt_when_asked() -> None:
    (row,), facts = causal([example("the cat", " sat")], word_level(), loss_mask="everything")
    assert row.labels_from == 0
    assert facts["label_tokens"] == 3  # the first token has nothing before it


def test_texts_that_merge_at_the_boundary_are_tokenised_apart_and_counted() -> None:
    tokenizer = word_level()
    rows, facts = causal([example("the c", "at"), example("the", " cat")], tokenizer)
    assert facts["boundary_rows"] == 1
    assert tokenizer.convert_ids_to_tokens(rows[0].ids) == ["the", "c", "<unk>", "</s>"]
    assert rows[0].ids[: rows[0].labels_from] == prompt_ids("the c", tokenizer)
    assert tokenizer.convert_ids_to_tokens(rows[1].ids) == ["the", "cat", "</s>"]


def test_earlier_calls_leave_no_padding_or_truncation_behind() -> None:
    tokenizer = byte_pairs()
    rows = [example("the cat sat on the mat", " yes"), example("a", " b")]
    clean = causal(rows, tokenizer)
    tokenizer(["a", "the dog sat"], padding=True, truncation=True, max_length=2)
    assert causal(rows, tokenizer) == clean
    tokenizer(["a", "the dog sat"], padding="max_length", truncation=True, max_length=3)
    assert prompt_ids("the cat sat on the mat", tokenizer) == clean[0][0].ids[: clean[0][0].labels_from]


# -------------------------------------------------------------------------------------------------- truncation


def test_truncation_is_counted_and_ends_without_eos() -> None:
    rows, facts = causal([example("a b c d", " e f g"), example("a", " b")], word_level(), max_length=6)
    assert [row.truncated for row in rows] == [True, False]
    assert facts["truncated"] == 1 and facts["longest"] == 6 and facts["num_rows"] == 2


def test_a_row_that_fits_only_without_its_eos_counts_as_truncated() -> None:
    (row,), facts = causal([example("a b", " c")], word_level(), max_length=3)
    assert (row.truncated, row.has_eos, facts["truncated"]) == (True, False, 1)
    assert len(row.ids) == 3


def test_rows_without_labels_are_counted_and_not_fatal_alone() -> None:
    rows, facts = causal([example("a b c d", " e"), example("a", " b")], word_level(), max_length=4)
    assert facts["rows_without_labels"] == 1
    assert rows[0].num_labels == 0 and rows[0].labels_from == 4


def test_no_labels_at_all_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(UserError, match=r"max_length = 4.*4 tokens"):
        causal([example("a b c d", " e"), example("a b c d e", " f")], word_level(), max_length=4)


def test_no_rows_give_no_rows() -> None:
    assert causal([], word_level())[1]["num_rows"] == 0
    assert tokenise([], word_level(), kind="classify", max_length=8, loss_mask="answer")[0] == []


def test_a_tokenizer_without_eos_cannot_learn_to_stop() -> None:
    with pytest.raises(UserError, match="no end-of-sequence token") as caught:
        causal([example("a", " b")], word_level(eos=False))
    assert caught.value.fix


# ------------------------------------------------------------------------------------------------ chat, classes


def test_chat_prompt_ends_where_the_answer_begins() -> None:
    tokenizer = word_level(chat=True)
    assert tokenizer.convert_ids_to_tokens(chat_prompt("the cat", tokenizer))[-4:] == ["the", "cat", "Answer", ":"]


def test_chat_prompt_needs_a_template() -> None:
    with pytest.raises(UserError, match="chat template"):
        chat_prompt("the cat", word_level())


def classify(pairs: list[tuple[str, ...]], tokenizer: Any, max_length: int = 32) -> Any:
    examples = [Example(item=str(index), pair=pair, reference=index % 2) for index, pair in enumerate(pairs)]
    return tokenise(examples, tokenizer, kind="classify", max_length=max_length, loss_mask="answer")


def test_pairs_keep_the_tokenizers_own_tokens_and_segments() -> None:
    tokenizer = word_level(pairs=True)
    rows, facts = classify([("the cat", "a dog sat"), ("yes", "no")], tokenizer)
    assert tokenizer.convert_ids_to_tokens(rows[0].ids) == ["<s>", "the", "cat", "</s>", "a", "dog", "sat", "</s>"]
    assert rows[0].type_ids == (0, 0, 0, 0, 1, 1, 1, 1)
    assert [row.label for row in rows] == [0, 1] and [row.item for row in rows] == ["0", "1"]
    assert all(row.labels_from == len(row.ids) for row in rows)
    assert facts["rows_without_labels"] == 0 and facts["tokens"] == 13


def test_single_texts_without_segments() -> None:
    tokenizer = word_level(adds_bos=True, eos=False)
    rows, _ = classify([("the cat",), ("a",)], tokenizer)
    assert tokenizer.convert_ids_to_tokens(rows[0].ids) == ["<s>", "the", "cat"]
    assert rows[0].type_ids is None and not rows[0].has_eos


def test_long_pairs_are_cut_by_the_tokenizer_and_keep_their_special_tokens() -> None:
    tokenizer = word_level(pairs=True)
    rows, facts = classify([("a b c d e f g", "yes no"), ("a", "b")], tokenizer, max_length=8)
    assert tokenizer.convert_ids_to_tokens(rows[0].ids) == ["<s>", "a", "b", "c", "</s>", "yes", "no", "</s>"]
    assert len(rows[0].type_ids) == 8
    assert [row.truncated for row in rows] == [True, False] and facts["truncated"] == 1


# -------------------------------------------------------------------------------------------------- real text


@pytest.mark.slow
def test_gsm8k_is_tokenised_in_seconds() -> None:
    mirror = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
    path = mirror / "gsm8k" / "train.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no GSM8K at {path}: set PEFTLAB_MIRROR")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:3000]
    examples = [
        example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}", str(number))
        for number, row in enumerate(rows)
    ]
    tokenizer = byte_pairs()
    began = time.process_time()
    found, facts = causal(examples, tokenizer, max_length=2048)
    assert time.process_time() - began < 8, "2 s on an idle core"
    assert facts["num_rows"] == len(found) == 3000 and facts["truncated"] == facts["boundary_rows"] == 0
    for row, one in zip(found[::500], examples[::500], strict=True):
        assert tokenizer.decode(row.ids[: row.labels_from]) == one.prompt
        assert tokenizer.decode(row.ids[row.labels_from : -1]) == one.target
