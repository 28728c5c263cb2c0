"""How training rows are written where a model is asked in a chat template, and what stands between two texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import chat_templates
import toy
import toy_tokenizers
from peftlab.cli import showing
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.errors import UserError
from peftlab.protocols import Example
from peftlab.rows import lengths, tokenise, training_rows
from peftlab.rows.tokenise import TokenRow

ROWS = [Example(item="a", prompt="1 + 1 =", target=" 2"), Example(item="b", prompt="what", target=" no more")]


def made(tokenizer: Any, task: Any, examples: Any = ROWS, **more: Any) -> list[TokenRow]:
    found = {"max_length": 200, "loss_mask": "answer", **more}
    return training_rows.make(examples, tokenizer, task, **found)[0]


# ------------------------------------------------------------------------------------------------- chat templates


@pytest.mark.parametrize("template", ["CHATML", "STRIPS", "CLOSES"])
def test_what_is_learnt_begins_where_the_model_is_asked(tmp_path: Path, template: str) -> None:
    tokenizer = chat_templates.characters(getattr(chat_templates, template))
    task = tasks.load(str(toy.write_task(tmp_path / "task")))
    for example, row in zip(ROWS, made(tokenizer, task, chat_template=True), strict=True):
        (start, stop) = row.learnt[0]
        assert row.ids[:start] == tokenise.chat_prompt(example.prompt, tokenizer)
        assert stop == len(row.ids) and row.has_eos
        assert tokenizer.decode(row.ids[start:stop]).lstrip().startswith(example.target.strip())
    for example, row in zip(ROWS, made(tokenizer, task), strict=True):
        assert row.ids[: row.labels_from] == tokenise.prompt_ids(example.prompt, tokenizer)


def test_a_row_by_hand(tmp_path: Path) -> None:
    tokenizer = chat_templates.characters(chat_templates.CHATML)
    row = made(tokenizer, tasks.load(str(toy.write_task(tmp_path / "task"))), chat_template=True)[0]
    shown = showing.marked(showing.as_text(tokenizer, row), colours=False)
    assert shown == "<|im_start|>user\n1 + 1 =<|im_end|>\n<|im_start|>assistant\n[[ 2<|im_end|>]]"


def test_show_shows_what_is_trained_on(tmp_path: Path) -> None:
    tokenizer = chat_templates.characters(chat_templates.CHATML)
    folder = toy.write_experiment(tmp_path, data={"max_length": 200})
    spec = loading.load(folder, overrides={"generation.chat_template": True})
    found = lengths.tokens(ROWS, tokenizer, spec, kind="causal")
    assert found.rows == made(tokenizer, spec.task, chat_template=True)
    assert found.turns["written_by"] == "tokenizer" and found.turns["assistant_turns"] == 2
    plain = lengths.tokens(ROWS, tokenizer, loading.load(folder), kind="causal")
    assert plain.rows == made(tokenizer, spec.task) and not plain.turns


def test_data_of_another_kind_are_no_turns(tmp_path: Path) -> None:
    task = toy.write_task(tmp_path / "task", kind="classify")
    with pytest.raises(UserError, match="are no conversations"):
        loading.load(toy.write_experiment(tmp_path, task=task), overrides={"data.chat_template": True})


# -------------------------------------------------------------------------------------------------------- two texts


PAIRS = [
    Example(item="a", pair=("one two", "three"), reference=0),
    Example(item="b", pair=("four", "5 6"), reference=1),
]


def words(tokenizer: Any, **more: Any) -> list[str]:
    found = {"kind": "classify", "max_length": 64, "loss_mask": "answer", **more}
    rows, _ = tokenise.tokenise(PAIRS, tokenizer, **found)
    return [tokenizer.decode(row.ids) for row in rows]


@pytest.mark.parametrize("habits", [{}, {"adds_bos": True}], ids=str)
def test_a_tokenizer_that_glues_two_texts_gets_a_separator(habits: dict[str, Any]) -> None:
    tokenizer = chat_templates.characters(**habits)
    before = "<s>" if habits else ""
    assert words(tokenizer) == [f"{before}one two\nthree", f"{before}four\n5 6"]
    assert words(tokenizer, pair_separator=" ## ") == [f"{before}one two ## three", f"{before}four ## 5 6"]
    assert words(tokenizer, pair_separator="") == [f"{before}one twothree", f"{before}four5 6"]
    cut = words(tokenizer, max_length=6 + bool(habits))
    assert all("\n" in text for text in cut)  # what is cut off is never what tells the texts apart


def test_a_tokenizer_with_a_token_between_them_keeps_its_own() -> None:
    tokenizer = toy.tokenizer(encoder=True)
    assert words(tokenizer) == words(tokenizer, pair_separator=" ## ")
    assert words(tokenizer)[0].replace(" ", "") == "<cls>onetwo<sep>three<sep>"


def test_one_text_has_no_separator() -> None:
    tokenizer = toy_tokenizers.byte_pairs()
    one = [Example(item="a", pair=("one",), reference=0)]
    (row,), _ = tokenise.tokenise(one, tokenizer, kind="classify", max_length=9, loss_mask="answer")
    assert tokenizer.decode(row.ids) == "one"
