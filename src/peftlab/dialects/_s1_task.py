"""The data set of a lora-ns file as a task: splits, columns, and a template divided into prompt and answer."""

from __future__ import annotations

import json
import re
import string
from typing import Any

from peftlab.config.templates import template_fields
from peftlab.dialects._s1_sections import File, Reading

MOVED = {"glue": "nyu-mll/glue", "gsm8k": "openai/gsm8k"}
"""Data sets by the short names that the hub has given up."""

REPEATED = {("nyu-mll/glue", "cola"): 0.0154}
"""Shares of published test rows that stand in their own training rows, as the tasks of the same data allow."""

GRADED = {"metamath": ("s0",), "gsm8k": ("strict", "flexible")}
"""Words in a task's name that say what its answers are, with modes of the grader `numeric`.

Of MetaMathQA's answers many are no numbers, which only the mode `s0` compares, as text.
"""

METRICS = {
    "accuracy": "acc",
    "mcc": "matthews_correlation",
    "matthews": "matthews_correlation",
    "spearmanr": "spearman",
}
"""Metrics by the names that are usual there."""

OVER_ALL_ITEMS = ("matthews_correlation", "f1", "precision", "recall")
"""Metrics of classes that are measured where the file goes by them; of three classes and more, weighted."""

CONVERSATIONS = ("m-a-p/code-feedback",)
"""Data sets whose rows are lists of messages, which no template over columns fits."""

MESSAGES = "messages"
"""Their column; a file of other conversations names it as `dataset.text_column`."""

MAX_NEW_TOKENS = 512
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
_ONE_ROW = re.compile(r"(.+)\[(\d+)\]")


def is_conversations(file: File) -> bool:
    """Whether the rows are conversations: by the data set, or by the column that the file names."""
    return file.dataset.name.lower() in CONVERSATIONS or file.dataset.text_column == MESSAGES


def graded_by(task_name: str) -> tuple[str, ...]:
    """The modes for the answers of a task of this name; none where it says nothing."""
    return next((modes for word, modes in GRADED.items() if word in task_name.lower()), ())


def metric_named(reading: Reading) -> str:
    """Our name of the metric that the file goes by; `loss` where it goes by none."""
    name = reading.file.training.metric_for_best_model.removeprefix("eval_")
    name = METRICS.get(name, name)
    weighted = name in ("f1", "precision", "recall") and reading.file.dataset.num_labels > 2
    return f"{name}_weighted" if weighted else name


def task_of(reading: Reading) -> dict[str, Any]:
    """The task, as a task file would hold it, with its name.

    Raises:
        UserError: No usable name, columns or template.
    """
    name = reading.file.task_name
    if not _NAME.fullmatch(name):
        raise reading.error(
            "task_name", f"= {name[:80]!r} cannot name a result", "use letters, digits and . _ + = - only"
        )
    kinds = {reading.classifies: _classification, reading.converses: _conversations}
    rows = kinds.get(True, _generation)(reading)
    sources = _sources(reading)
    repeated = REPEATED.get((sources["train"]["dataset"], sources["train"].get("subset", "")))
    return {"name": name, "version": 1, **sources, **rows, **({"allow_overlap": repeated} if repeated else {})}


def _sources(reading: Reading) -> dict[str, Any]:
    """Which rows each part takes. Where nothing is validated on the way, validation is what is scored at the end."""
    dataset = reading.file.dataset
    name = MOVED.get(dataset.name, dataset.name)
    if name != dataset.name:
        reading.notes.append(f"dataset.name: {dataset.name} is now {name}")
    splits = {"train": dataset.train_split, "valid": dataset.eval_split, "test": dataset.test_split}
    if splits["test"] is None and splits["valid"] is not None:
        if not reading.validates:
            splits["test"], splits["valid"] = splits["valid"], None
        else:
            reading.notes.append("no dataset.test_split: the scores are those of the validation rows")
    plain = {part: _row_as_slice(split) for part, split in splits.items() if split is not None}
    scored = [split for part, split in plain.items() if part != "train" and _whole(split) == _whole(plain["train"])]
    if scored:
        reading.notes.append(f"the rows of {' and '.join(scored)} are scored, so they are not trained on")
    subset = {"subset": dataset.subset} if dataset.subset else {}
    return {part: {"dataset": name, **subset, "split": split} for part, split in plain.items()}


def _row_as_slice(split: str) -> str:
    """`train[7]` means one row there."""
    found = _ONE_ROW.fullmatch(split)
    return f"{found[1]}[{found[2]}:{int(found[2]) + 1}]" if found else split


def _whole(split: str) -> str:
    return split.partition("[")[0]


def _classification(reading: Reading) -> dict[str, Any]:
    dataset = reading.file.dataset
    texts = [dataset.text_column] if isinstance(dataset.text_column, str) else list(dataset.text_column or ())
    if not 1 <= len(texts) <= 2:
        raise reading.error("dataset.text_column", "must name one or two columns of text", "name them")
    if not dataset.label_column:
        raise reading.error("dataset.label_column", "is required", "name the column with the class")
    rows = {
        "columns": {column: column for column in (*texts, dataset.label_column)},
        "pair": texts,
        "reference": dataset.label_column,
    }
    if dataset.num_labels == 1:
        metrics = {"pearson": "higher", "spearman": "higher", "mse": "lower"}
        return {"kind": "regress", **rows, "grader": {"name": "correlation"}, "metrics": metrics}
    named = metric_named(reading)
    own = {named: "higher"} if named.removesuffix("_weighted") in OVER_ALL_ITEMS else {}
    labels = [str(number) for number in range(dataset.num_labels)]
    return {
        "kind": "classify",
        **rows,
        "labels": labels,
        "grader": {"name": "label"},
        "metrics": own | {"acc": "higher"},
    }


def _generation(reading: Reading) -> dict[str, Any]:
    prompt, target, columns = _divided(reading)
    modes = reading.modes or GRADED["gsm8k"]
    metrics = {"strict": "exact_match", "flexible": "exact_match_flexible", "s0": "exact_match_s0"}
    return {
        "kind": "generate",
        "columns": {column: column for column in columns},
        "prompt": prompt,
        "target": target,
        "reference": columns[-1],
        "max_new_tokens": MAX_NEW_TOKENS,
        "grader": {"name": "numeric", "modes": list(modes)},
        "metrics": {metrics[mode]: "higher" for mode in modes},
    }


def _conversations(reading: Reading) -> dict[str, Any]:
    """Conversations, whose assistant's turns are learnt.

    Their rows have no columns to fill a template with; the headings of the file's template, before its first and its
    last field, are written over the turns of user and assistant. Without one the tokenizer's chat template is used.
    """
    rows = {
        "kind": "text",
        "columns": {MESSAGES: MESSAGES},
        "messages": MESSAGES,
        "metrics": {"loss": "lower", "perplexity": "lower", "token_accuracy": "higher"},
    }
    learnt = "the rows are conversations: the loss is taken on every turn of the assistant, and on nothing else"
    if reading.file.dataset.prompt_template is None:
        reading.notes.append(f"{learnt}; turns are written in the tokenizer's chat template")
        return rows
    prompt, target, columns = _divided(reading)
    asks = prompt.partition(f"{{{columns[0]}}}")[0]
    answers = min((prompt.rpartition(f"{{{column}}}")[2] for column in columns[:-1]), key=len).lstrip("\n")
    turns = {
        "system": "{content}",
        "user": f"{asks}{{content}}",
        "assistant": answers + target.replace(f"{{{columns[-1]}}}", "{content}"),
        "between": "\n\n",
    }
    written = " and ".join(json.dumps(turns[role]) for role in ("user", "assistant"))
    reading.notes.append(
        f"{learnt}; dataset.prompt_template: its columns are not in such rows, so its headings stand over the turns, "
        f"{written}; in the tokenizer's own chat template: data.chat_template=true"
    )
    return {**rows, "turns": turns}


def _divided(reading: Reading) -> tuple[str, str, list[str]]:
    """Prompt, target and columns of a template: its last field is the answer, all before it is the prompt.

    Blanks before the answer go with the answer: a prompt that ends in one is cut into other tokens than the text.
    """
    key, template = "dataset.prompt_template", reading.file.dataset.prompt_template
    if template is None:
        raise reading.error(
            key,
            "is missing: which part of a row is the answer cannot be guessed",
            "write a template whose last {column} is the answer",
        )
    try:
        fields = template_fields(template)
    except ValueError as error:
        raise reading.error(key, f"cannot be used: {error}", "name columns only, such as {question}") from None
    if len(set(fields)) < 2 or fields.count(fields[-1]) > 1:
        fix = 'write for example "Question: {question}\\nAnswer: {answer}"'
        raise reading.error(key, "must show something of the row, and then its answer, once", fix)
    pieces = list(string.Formatter().parse(template))
    last = max(place for place, piece in enumerate(pieces) if piece[1] is not None)
    before = "".join(_text(literal, name) for literal, name, _, _ in pieces[:last]) + _text(pieces[last][0], None)
    after = "".join(_text(literal, None) for literal, _, _, _ in pieces[last + 1 :])
    prompt = before.rstrip(" ")
    target = before[len(prompt) :] + f"{{{fields[-1]}}}" + after
    return prompt, target, list(dict.fromkeys(fields))


def _text(literal: str, name: str | None) -> str:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    return escaped if name is None else f"{escaped}{{{name}}}"
