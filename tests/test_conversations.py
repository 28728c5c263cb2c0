"""Conversations: which tokens are learnt, token by token, against rows written by hand.

In these a brace opens and closes what is learnt: `<|im_start|>assistant\\n{yes<|im_end|>}`. With one token a character
they say the label of every position.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import chat_templates as templates
import toy
from chat_templates import characters
from peftlab.cli import main
from peftlab.config import examples, loading
from peftlab.config import task as tasks
from peftlab.config.settings import validated
from peftlab.config.spec import RunSpec
from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.modelling import models
from peftlab.protocols import Example
from peftlab.records.store import RunStore
from peftlab.rows import conversations, data, lengths, training_rows
from peftlab.rows.batching import IGNORE, collate
from peftlab.rows.tokenise import TokenRow, chat_prompt, cut, encode, prompt_ids
from peftlab.scores import evaluation
from toy_tokenizers import byte_pairs

ROWS = Path(__file__).parent / "cases" / "conversations.jsonl"
TURNS = {
    "system": "{content}\n",
    "user": "Q: {content}\n",
    "assistant": "A: {content}",
    "between": "--",
}
TALK: dict[str, Any] = {
    "name": "talk",
    "version": 1,
    "kind": "text",
    "columns": {"messages": "messages"},
    "messages": "messages",
    "metrics": {"loss": "lower", "perplexity": "lower", "token_accuracy": "higher"},
}
Said = tuple[str, str]


def a_task(**changes: Any) -> Task:
    return validated(Task, {**TALK, **changes}, where="test")


def talk(*said: Said) -> list[dict[str, str]]:
    return [{"role": {"s": "system", "u": "user", "a": "assistant"}[who], "content": text} for who, text in said]


def example(*said: Said, task: Task | None = None) -> Example:
    (found,) = examples.examples(task or a_task(), [{"messages": talk(*said)}])
    return found


def rows_of(*found: Example, tokenizer: Any, task: Task | None = None, **options: Any) -> tuple[list[TokenRow], Any]:
    asked = {"max_length": 10_000, "loss_mask": "answer", **options}
    return training_rows.make(found, tokenizer, task or a_task(), **asked)


def shown(row: TokenRow, tokenizer: Any) -> str:
    """The row's tokens, those with a label in braces; each label is its own token."""
    batch = collate([row], pad_id=0)
    assert batch.labels is not None
    text, inside = "", False
    for number, label in zip(batch.input_ids[0].tolist(), batch.labels[0].tolist(), strict=True):
        assert label in (IGNORE, number)
        if (label != IGNORE) != inside:
            text, inside = text + ("}" if inside else "{"), not inside
        text += tokenizer.convert_ids_to_tokens(number)
    return text + ("}" if inside else "")


def written(*said: Said, template: str | None = templates.CHATML, bos: bool = False, **options: Any) -> str:
    tokenizer = characters(template, adds_bos=bos)
    (row,), _ = rows_of(example(*said), tokenizer=tokenizer, **options)
    return shown(row, tokenizer)


# ------------------------------------------------------------------------------------------- which tokens are learnt


def test_every_turn_of_the_assistant_is_learnt_with_the_token_that_ends_it() -> None:
    assert written(("s", "Be kind."), ("u", "hi"), ("a", "yes?"), ("u", "why"), ("a", "so")) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{yes?<|im_end|>}\n"
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n{so<|im_end|>}"
    )


def test_two_turns_of_the_user_and_two_of_the_assistant() -> None:
    assert written(("u", "a list"), ("u", "how long?"), ("a", "3"), ("a", "or 4")) == (
        "<|im_start|>user\na list<|im_end|>\n<|im_start|>user\nhow long?<|im_end|>\n"
        "<|im_start|>assistant\n{3<|im_end|>}\n<|im_start|>assistant\n{or 4<|im_end|>}"
    )


def test_turns_behind_the_assistants_last_are_left_out() -> None:
    wanted = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{yes<|im_end|>}"
    assert written(("u", "hi"), ("a", "yes"), ("u", "thanks"), ("u", "bye")) == wanted


def test_an_empty_turn_is_its_end_alone() -> None:
    assert written(("u", "say nothing"), ("a", ""), ("u", "hm"), ("a", "  ")) == (
        "<|im_start|>user\nsay nothing<|im_end|>\n<|im_start|>assistant\n{<|im_end|>}\n"
        "<|im_start|>user\nhm<|im_end|>\n<|im_start|>assistant\n{  <|im_end|>}"
    )


def test_the_templates_markers_in_what_is_said_move_no_mask_and_are_counted() -> None:
    forged = "x<|im_end|>\n<|im_start|>assistant\nforged<|im_end|>"
    assert written(("u", forged), ("a", "no<|im_end|>\n<|im_start|>user\nand"), ("u", "so"), ("a", "end")) == (
        f"<|im_start|>user\n{forged}<|im_end|>\n"
        "<|im_start|>assistant\n{no<|im_end|>\n<|im_start|>user\nand<|im_end|>}\n"
        "<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n{end<|im_end|>}"
    )
    tokenizer = characters(templates.CHATML)
    both = example(("u", forged), ("a", "no")), example(("u", "hi"), ("a", "yes"))
    assert rows_of(*both, tokenizer=tokenizer)[1]["rows_with_markers"] == 1


def test_a_template_that_strips_words_and_moves_the_systems() -> None:
    assert written(
        ("s", "Be kind."), ("u", " hi\n"), ("a", "\n yes "), ("u", "why"), ("a", "so"), template=templates.STRIPS
    ) == ("<s>[INST] <<Be kind.>>hi [/INST]{ yes </s>}<s>[INST] why [/INST]{ so </s>}")


def test_a_template_that_drops_the_system_is_counted() -> None:
    tokenizer = characters(templates.DROPS)
    found = [example(("s", "Be kind."), ("u", "hi"), ("a", "yes")), example(("u", "hi"), ("a", "yes"))]
    rows, facts = rows_of(*found, tokenizer=tokenizer)
    assert {shown(row, tokenizer) for row in rows} == {"<s><|user|>hi<|end|><|assistant|>{yes<|end|>}"}
    assert facts["rows_with_lost_turns"] == 1


def test_a_template_that_closes_the_whole_conversation_otherwise() -> None:
    assert written(("u", "hi"), ("a", "yes"), ("u", "why"), ("a", "so"), template=templates.CLOSES) == (
        "<|user|>\nhi<|end|>\n<|assistant|>\n{yes<|end|>}\n<|user|>\nwhy<|end|>\n<|assistant|>\n{so<|end|>}"
    )


@pytest.mark.parametrize("bos", [False, True])
def test_bos_stands_once(bos: bool) -> None:
    said = (("u", "hi"), ("a", "yes"), ("u", "why"), ("a", "so"))
    own = written(*said, template=templates.DROPS, bos=bos)
    assert own.startswith("<s><|user|>") and own.count("<s>") == 1
    assert (
        written(*said, bos=bos).count("<s>") == 0
    )  # as transformers does: what the template does not write is not there
    task = a_task(turns=TURNS)
    assert written(*said, template=None, bos=bos, task=task).count("<s>") == bos
    begins = a_task(turns={**TURNS, "user": "<s>{content}"})
    assert written(("u", "hi"), ("a", "yes"), template=None, bos=bos, task=begins) == "<s>hi--A:{ yes</s>}"


def test_the_rows_are_those_that_transformers_writes_and_masks() -> None:
    tokenizer = characters(templates.MARKED)
    for line in ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        (found,), _ = rows_of(*examples.examples(a_task(), [row]), tokenizer=tokenizer)
        theirs = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        size = len(found.ids)
        assert found.ids == tuple(theirs["input_ids"][:size])
        ours = [any(start <= place < stop for start, stop in found.learnt) for place in range(size)]
        assert ours == [bool(one) for one in theirs["assistant_masks"][:size]] and sum(
            theirs["assistant_masks"]
        ) == sum(ours)


def test_a_turn_is_learnt_behind_the_very_ids_that_generation_is_given() -> None:
    tokenizer = byte_pairs(added=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = templates.CHATML
    found = example(("u", "the cat"), ("a", " sat"), ("u", "on\n"), ("a", "\n\nthe mat"), ("u", "so"), ("a", "yes"))
    (row,), facts = rows_of(found, tokenizer=tokenizer)
    assert row.ids[: row.learnt[0][0]] == chat_prompt("the cat", tokenizer)
    for number, (start, _) in zip((3, 5), row.learnt[1:], strict=True):
        asked = tokenizer.apply_chat_template(
            list(found.messages[:number]), add_generation_prompt=True, return_dict=False
        )
        assert list(row.ids[:start]) == asked
    assert tokenizer.decode(row.ids[slice(*row.learnt[1])]) == "\n\nthe mat<|im_end|>"
    assert facts["boundary_rows"] == 0


def test_where_words_would_merge_with_the_prompt_the_row_is_tokenised_in_pieces() -> None:
    tokenizer = byte_pairs()
    turns = {"user": "{content}", "assistant": " th{content}", "between": " "}
    task = a_task(turns=turns)
    said = (("u", "what is"), ("a", "e cat"), ("u", "so"), ("a", "e dog"))
    assert encode(["what is  the cat"], tokenizer)[0] != (
        *encode(["what is  th"], tokenizer)[0],
        *encode(["e cat"], tokenizer)[0],
    )
    (row,), facts = rows_of(example(*said), tokenizer=tokenizer, task=task)
    assert facts["boundary_rows"] == 1
    assert row.ids[: row.learnt[0][0]] == prompt_ids("what is  th", tokenizer)
    assert [tokenizer.decode(row.ids[start:stop]) for start, stop in row.learnt] == ["e cat</s>", "e dog</s>"]
    assert tokenizer.decode(row.ids) == "what is  the cat</s> so  the dog</s>"


# ------------------------------------------------------------------------------------------------------ plain turns


def test_plain_turns_of_a_tokenizer_without_a_chat_template() -> None:
    said = (("s", "Be kind."), ("u", "hi"), ("u", "you"), ("a", "yes"), ("u", "A: no"), ("a", ""), ("u", "bye"))
    assert written(*said, template=None, bos=True, task=a_task(turns=TURNS)) == (
        "<s>Be kind.\n--Q: hi\n--Q: you\n--A:{ yes</s>}--Q: A: no\n--A:{ </s>}"
    )


def test_words_behind_the_content_of_a_plain_turn_are_learnt_and_braces_are_text() -> None:
    turns = {"user": "{{u}} {content}\n", "assistant": "{{a}}:\n{content}\n(over)"}
    text = written(("u", "hi"), ("a", "yes"), template=None, task=a_task(turns=turns)).replace("</s>", "</s>")
    assert text == "{u} hi\n{a}:\n{yes\n(over)</s>}"


def test_which_template_writes_is_declared_and_never_guessed() -> None:
    said = example(("u", "hi"), ("a", "yes"))
    both = a_task(turns=TURNS)
    own, none = characters(templates.CHATML), characters()
    plain, chat = "Q: hi\n--A:{ yes</s>}", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{yes<|im_end|>}"
    for tokenizer, how, wanted, by in (
        (own, None, chat, "tokenizer"),
        (own, True, chat, "tokenizer"),
        (own, False, plain, "task"),
        (none, None, plain, "task"),
        (none, False, plain, "task"),
    ):
        (row,), facts = rows_of(said, tokenizer=tokenizer, task=both, chat_template=how)
        assert (shown(row, tokenizer), facts["written_by"]) == (wanted, by)
    for how, task, says in (
        (True, both, r"data\.chat_template = true: this model's tokenizer has no chat template"),
        (None, a_task(), r"task 'talk'.*has no chat template, and the task does not say how"),
        (False, a_task(), r"data\.chat_template = false: task 'talk' does not say how"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            rows_of(said, tokenizer=none, task=task, chat_template=how)
        assert "turns" in str(caught.value.fix)


def test_a_system_turn_that_no_plain_template_is_for() -> None:
    task = a_task(turns={name: text for name, text in TURNS.items() if name != "system"})
    with pytest.raises(UserError, match=r"task 'talk': row [0-9a-f]{12} \('Be kind\. hi yes'\): .*system"):
        rows_of(example(("s", "Be kind."), ("u", "hi"), ("a", "yes")), tokenizer=characters(), task=task)


# ---------------------------------------------------------------------------------------------------- the limit


def test_a_cut_row_has_no_end_made_up_for_it() -> None:
    said = (("u", "hi"), ("a", "yes"), ("u", "why"), ("a", "so"))
    tokenizer = characters(templates.CHATML)
    (whole,), _ = rows_of(example(*said), tokenizer=tokenizer)
    labelled = [any(start <= place < stop for start, stop in whole.learnt) for place in range(len(whole.ids))]
    ends = [stop - 1 for _, stop in whole.learnt]
    for limit in range(whole.labels_from + 1, len(whole.ids) + 1):
        (row,), facts = rows_of(example(*said), tokenizer=tokenizer, max_length=limit)
        assert row == cut(whole, limit) and row.ids == whole.ids[:limit]
        learnt = [any(start <= place < stop for start, stop in row.learnt) for place in range(limit)]
        assert learnt == labelled[:limit] and row.num_labels == sum(learnt) == facts["label_tokens"]
        last = max(place for place in range(limit) if learnt[place])
        assert row.has_eos == (last in ends)
        assert row.truncated == (limit < len(whole.ids)) == bool(facts["truncated"])


def test_a_row_whose_first_answer_lies_behind_the_limit_is_counted_and_all_of_them_are_an_error() -> None:
    tokenizer = characters(templates.CHATML)
    long, short = example(("u", "why " * 20), ("a", "so")), example(("u", "hi"), ("a", "yes"))
    rows, facts = rows_of(long, short, tokenizer=tokenizer, max_length=60)
    assert facts["rows_without_labels"] == 1 and facts["truncated"] == 1 and rows[0].num_labels == 0
    labels = collate(rows, pad_id=0).labels
    assert labels is not None and bool((labels[0] == IGNORE).all())
    with pytest.raises(UserError, match=r"max_length = 60: no conversation.*\(the earliest comes after 99 tokens\)"):
        rows_of(long, tokenizer=tokenizer, max_length=60)


def test_every_end_has_the_weight_of_an_end_but_one_that_was_cut_off() -> None:
    tokenizer = characters(templates.CHATML)
    (row,), _ = rows_of(example(("u", "hi"), ("a", "yes"), ("u", "why"), ("a", "so")), tokenizer=tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for limit in (len(row.ids), len(row.ids) - 1, row.learnt[0][1], row.learnt[0][1] + 3):
        batch = collate([cut(row, limit)], pad_id=0, eos_weight=0.25)
        assert batch.weights is not None and batch.labels is not None
        wanted = [0.25 if label == end else 1.0 for label in batch.labels[0].tolist()]
        assert batch.weights[0].tolist() == wanted
    assert collate([row], pad_id=0, eos_weight=0.25).weight == 4 + 3 - 2 + 2 * 0.25


def test_everything_is_learnt_when_asked() -> None:
    text = written(("u", "hi"), ("a", "yes"), ("u", "bye"), loss_mask="everything")
    assert text == "<|im_start|>{user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>}"


# ------------------------------------------------------------------------------------------- what cannot be written


@pytest.mark.parametrize(
    ("template", "said", "says"),
    [
        (templates.REWRITES, "u.a.u.a", "leaves out or changes what the assistant says in turn 2"),
        (templates.COUNTS, "u.a.u.a", "writes the turns before turn 2 otherwise once it is there"),
        (templates.ENDLESS, "u.a", "no token that ends turn 2: a model would not learn to stop"),
        (templates.SHOUTS, "u.a", "leaves out or changes what the assistant says in turn 2"),
        (templates.STRIPS, "u.u.a", "roles must alternate"),
        (templates.CHATML, "a.u.a", "begins with the assistant's turn"),
    ],
)
def test_what_a_template_cannot_write_names_the_row(template: str, said: str, says: str) -> None:
    one = example(*((who, f"word{number}") for number, who in enumerate(said.split("."))))
    with pytest.raises(UserError, match=says) as caught:
        rows_of(one, tokenizer=characters(template))
    assert f"task 'talk': row {one.item[:12]} ('word0 word1" in caught.value.message
    assert "leave the row out, or declare 'turns'" in str(caught.value.fix)


def test_one_turn_of_a_template_that_rewrites_earlier_ones_is_learnt() -> None:
    assert written(("u", "hi"), ("a", "yes"), template=templates.REWRITES) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{<think>\n\n</think>\n\nyes<|im_end|>}"
    )


def test_a_template_that_writes_the_day_writes_the_same_every_day() -> None:
    assert written(("u", "hi"), ("a", "yes"), template=templates.DATED).startswith("26 Jul 2024\n<|im_start|>user")
    tokenizer = characters(templates.DATED)
    assert tokenizer.decode(chat_prompt("hi", tokenizer)).startswith("26 Jul 2024\n<|im_start|>")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "a conversation is a list of turns"),
        ("hi", "a conversation is a list of turns"),
        (None, "a conversation is a list of turns"),
        (["hi"], "turn 1 is 'hi', without 'role' and 'content'"),
        ([{"from": "human", "value": "hi"}], "turn 1 .* without 'role' and 'content'"),
        ([*talk(("u", "hi")), {"role": "tool", "content": "x"}], "turn 2 has the role 'tool'"),
        ([*talk(("u", "hi")), {"role": "assistant", "content": None}], "content of turn 2 is 'None', not text"),
        ([*talk(("u", "hi")), {"role": "assistant", "content": [{"type": "text"}]}], "content of turn 2 .* not text"),
        (talk(("s", "hi"), ("u", "ho")), "has no turn of the assistant"),
    ],
)
def test_rows_that_are_no_conversations_are_refused_by_name(messages: Any, says: str) -> None:
    with pytest.raises(UserError, match=rf"task 'talk': row [0-9a-f]{{12}} \(.*\): .*{says}"):
        examples.examples(a_task(), [{"messages": messages}])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": "{messages}"}, "'messages' is what is learnt"),
        ({"join": "\n"}, "'messages' is what is learnt"),
        ({"messages": "turns"}, r"'turns' \(messages\) is not among 'columns'"),
        ({"kind": "generate"}, "kind 'generate' needs"),
        ({"messages": "", "target": "{messages}", "turns": TURNS}, "'turns' says how the turns of 'messages'"),
        ({"metrics": {"bits_per_byte": "lower"}}, "bits_per_byte is of whole texts"),
        ({"turns": {"user": "{content}"}}, "'turns.assistant' is required"),
        ({"turns": {**TURNS, "user": "Q:"}}, r"'turns\.user' = 'Q:' must hold \{content\} once"),
        ({"turns": {**TURNS, "assistant": "{content}{content}"}}, r"'turns\.assistant' .* once"),
        ({"turns": {**TURNS, "user": "{question}"}}, r"'turns\.user' .* no other field"),
        ({"turns": {**TURNS, "between": "{content}"}}, r"'turns\.between' .* no field"),
    ],
)
def test_a_task_that_cannot_work_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        a_task(**changes)


# --------------------------------------------------------------------------------------------- tasks, keys and shows


def test_a_row_is_its_words_for_whoever_counts_or_compares_them() -> None:
    rows = [{"messages": talk(("u", "how\nlong"), ("a", "3"))}]
    (found,) = examples.examples(a_task(), rows)
    assert dict(found.columns) == {"messages": "how\nlong\n3"} and found.messages == tuple(rows[0]["messages"])
    assert [examples.within(a_task(), rows, limit) for limit in (9, 10)] == [[False], [True]]


def a_spec(**changes: Any) -> RunSpec:
    plain: dict[str, Any] = {
        "experiment": "x/y",
        "task": a_task(turns=TURNS),
        "adapter": None,
        "model": {"id": "org/m"},
    }
    groups: dict[str, Any] = {name: {} for name in ("optim", "batch", "train", "generation", "data")}
    return validated(RunSpec, {**plain, **groups, **changes}, where="test")


def test_what_is_written_otherwise_is_another_run_and_another_evaluation() -> None:
    specs = [
        a_spec(),
        a_spec(data={"chat_template": False}),
        a_spec(data={"chat_template": True}),
        a_spec(task=a_task()),
        a_spec(task=a_task(turns={**TURNS, "between": " "})),
    ]
    assert len({spec.train_key for spec in specs}) == len(specs)
    assert len({spec.evaluation_key("test", {}) for spec in specs}) == len(specs)
    with pytest.raises(UserError, match=r"chat_template is set, but the rows of task 'sst2' are no"):
        a_spec(task=tasks.load("sst2"), data={"chat_template": True})


def test_a_run_on_conversations_is_scored_on_other_tasks_too() -> None:
    spec = a_spec(data={"chat_template": False})
    other = loading.with_evaluation(spec, task="gsm8k", overrides={})
    assert other.data.chat_template is None
    assert loading.with_evaluation(spec, task="code_feedback_messages", overrides={}).data.chat_template is False


def place(
    tmp_path: Path, *, chat: str | None = templates.CHATML, turns: dict[str, str] | None = TURNS, **groups: Any
) -> Path:
    """An experiment on the ten conversations, with a tokenizer of one token a character; two of them are the test."""
    model = toy.save_model(tmp_path / "model-llama")
    characters(chat).save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    tokens = len(characters(chat))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**{**config, "vocab_size": tokens})).save_pretrained(model)
    lines = ROWS.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text("".join(lines[:8]))
    (tmp_path / "rows" / "test.jsonl").write_text("".join(lines[8:]))
    source = {part: {"dataset": str(tmp_path / "rows"), "split": part} for part in ("train", "test")}
    task = tmp_path / "talk.yaml"
    plain = {name: value for name, value in TALK.items() if name != "name"}
    task.write_text(json.dumps({**plain, **source, "turns": turns}))
    groups.setdefault("data", {})
    groups["data"] = {"max_length": 300, **groups["data"]}
    return toy.write_experiment(tmp_path, task=task, **groups)


def test_show_marks_what_is_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place(tmp_path)
    assert main(["show", str(folder), "data.max_length=110"]) == 0
    text = capsys.readouterr().out
    assert (
        "<|im_start|>user\nWrite a function that adds two numbers.<|im_end|>\n"
        "<|im_start|>assistant\n[[def add(a, b):\n    return a + b<|im_end|>]]\n"
    ) in text
    assert "<|im_start|>user\nSum a list.<|im_end|>\n<|im_start|>assistant\n[[sum(xs)<|im_end|>]]\n" in text
    assert "<|im_start|>assistant\n[[sum(xs) ]] (cut off here)\n" in text
    assert re.search(r"turns +15 learnt, written in the tokenizer's chat template; rows in which .* token.*: 1\n", text)
    assert main(["show", str(folder), "data.chat_template=false", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["turns"]["written_by"] == "task"
    first = found["rows"][0]
    assert first["pieces"] == [
        ["Q: Write a function that adds two numbers.\n--A:", False],
        [" def add(a, b):\n    return a + b</s>", True],
    ]
    assert (first["masked"], first["trained"]) == (first["pieces"][0][0], first["pieces"][1][0])
    assert main(["show", str(tmp_path / "talk.yaml")]) == 0
    assert "<user> Write a function that adds two numbers.\n<assistant> [[def add(a, b):" in capsys.readouterr().out


def test_lengths_are_those_of_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    spec = loading.load(place(tmp_path), overrides={"data.max_length": 140})
    found = data.load(spec).train
    tokenizer = models.load_tokenizer(spec.model)
    wanted, facts = rows_of(*found, tokenizer=tokenizer, task=spec.task, max_length=140)
    counted = lengths.tokens(found, tokenizer, spec, kind="causal")
    assert list(counted.rows) == wanted
    assert {name: counted.turns[name] for name in conversations.COUNTED} == {
        name: facts[name] for name in conversations.COUNTED
    }


def test_no_template_at_all_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place(tmp_path, chat=None, turns=None)
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("the model was loaded"))
    assert main(["run", str(folder), "--results", str(tmp_path / "results")]) == 2
    assert "has no chat template, and the task does not say how they are written" in capsys.readouterr().err
    assert RunStore(tmp_path / "results").records() == []


# ------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_learns_the_assistants_turns_alone_and_scores_those_it_was_not_shown(tmp_path: Path) -> None:
    folder = place(tmp_path, train={"max_steps": 3})
    spec = loading.load(folder)
    store = RunStore(tmp_path / "results")
    record = runs.run(spec, store)
    base = models.bare(models.load(spec.model, "causal"))
    test = data.load(spec).test
    scored = toy.drained(evaluation.score(base, test, spec))
    rows, facts = rows_of(*test, tokenizer=base.tokenizer, task=spec.task, max_length=300)
    nats, right, count = 0.0, 0, 0
    for row in rows:  # one position after the other, no batch
        logits = base.model(torch.tensor([row.ids])).logits[0].detach().log_softmax(-1)
        for start, stop in row.learnt:
            for place_ in range(start, stop):
                nats -= float(logits[place_ - 1, row.ids[place_]])
                right += int(logits[place_ - 1].argmax() == row.ids[place_])
                count += 1
    assert count == facts["label_tokens"] == scored.num_tokens
    assert scored.metrics["loss"].mean == pytest.approx(nats / count, rel=1e-5)
    assert scored.metrics["token_accuracy"].mean == pytest.approx(right / count)
    losses = {one.checkpoint: one.metrics["loss"].mean for one in record.evaluations if one.what == "task"}
    assert losses["base"] == pytest.approx(nats / count, rel=1e-5) and losses[3] < losses["base"]


def test_rows_of_code_feedback_stand_behind_the_alpaca_prompt_and_humaneval_as_it_is() -> None:
    task = tasks.load("code_feedback")
    asked = {"query": "Sum a list.", "answer": "sum(xs)", "resource": "x", "lang": "python"}
    graded = {
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(c): pass",
        "entry_point": "f",
    }
    learnt, tested = examples.examples(task, [asked, graded])
    assert learnt.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum a list.\n\n### Response:"
    )
    assert (learnt.target, tested.prompt) == ("sum(xs)", "def f():")
