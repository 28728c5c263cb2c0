from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from peftlab import protocols
from peftlab.config import references
from peftlab.config import task as tasks
from peftlab.config.examples import examples, with_shots
from peftlab.config.settings import validated
from peftlab.config.source import Source
from peftlab.config.task import Task
from peftlab.config.templates import fill, template_fields
from peftlab.errors import UserError

DATASET = {"dataset": "some/data", "revision": "abc"}
PLAIN: dict[str, Any] = {
    "name": "plain",
    "version": 1,
    "kind": "generate",
    "train": {**DATASET, "split": "train"},
    "valid": {**DATASET, "split": "train", "sample": 2},
    "test": {**DATASET, "split": "test"},
    "columns": {"question": ["query", "question"], "answer": "answer"},
    "prompt": "Q: {question}\nA:",
    "target": " {answer}",
    "grader": {"name": "numeric", "modes": ["strict"]},
    "metrics": {"exact_match": "higher"},
}
CHOOSE = {
    **{name: value for name, value in PLAIN.items() if name != "columns"},
    "kind": "choose",
    "columns": {"question": "question", "options": "options", "answer": "answer"},
    "target": " {choice}",
    "choices": "options",
}
CLASSIFY: dict[str, Any] = {
    **{name: value for name, value in PLAIN.items() if name not in ("columns", "prompt", "target")},
    "kind": "classify",
    "columns": {"first": "first", "label": "label"},
    "pair": ["first"],
    "labels": ["no", "yes"],
    "reference": "label",
}

REGRESS: dict[str, Any] = {
    **{name: value for name, value in CLASSIFY.items() if name != "labels"},
    "kind": "regress",
    "grader": {"name": "correlation"},
    "metrics": {"pearson": "higher", "mse": "lower"},
}
TEXT: dict[str, Any] = {
    **{name: PLAIN[name] for name in ("name", "version", "train", "valid", "test")},
    "kind": "text",
    "columns": {"text": "text"},
    "target": "{text}",
    "metrics": {"loss": "lower", "perplexity": "lower"},
}


def task(base: dict[str, Any] | None = None, **changes: Any) -> Task:
    return validated(Task, {**(base or PLAIN), **changes}, where="test")


def source(**fields: Any) -> Source:
    return validated(Source, fields, where="test")


# --------------------------------------------------------------------------------------------- tasks that come along


@pytest.mark.parametrize("name", tasks.available())
def test_a_shipped_task_loads_and_pins_its_rows(name: str) -> None:
    found = tasks.load(name)
    json.dumps(found.identity())
    for part in tasks.PARTS:
        rows = getattr(found, part)
        if rows is None:  # a task to score models on has test rows only
            assert found.train is None and part != "test"
            continue
        pinned = references.is_commit(rows.revision) or rows.revision == "refs/convert/parquet"  # a script's rows
        assert pinned if rows.dataset else rows.version
    assert found.primary_metric in found.metrics
    assert found.description and found.citation and found.licence


@pytest.mark.parametrize("name", tasks.available())
def test_a_shipped_task_names_a_grader_that_knows_its_modes(name: str) -> None:
    choice = tasks.load(name).grader
    if choice is None:
        assert tasks.load(name).kind == "text"
        return
    if choice.name not in protocols.names("graders"):
        pytest.skip(f"no grader {choice.name} here")
    assert set(choice.modes) <= set(protocols.find("graders", choice.name).modes)


def test_the_parts_of_generated_tasks_lie_far_apart() -> None:
    for name in tasks.available():
        parts = [getattr(tasks.load(name), part) for part in tasks.PARTS]
        if parts[0] is not None and parts[0].generator:
            spans = sorted((part.seed, part.seed + part.size) for part in parts)
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans)), name


# ------------------------------------------------------------------------------------------------- loading a file


def saved(folder: Path, data: dict[str, Any]) -> str:
    path = folder / "plain.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in data.items() if name != "name"}))
    return str(path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    assert tasks.load(saved(tmp_path, PLAIN)) == task()


def test_code_beside_a_file_of_ones_own_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, PLAIN)
    (tmp_path / "plain.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match="would run as part of the task"):
        tasks.load(path)


def test_unknown_names_and_keys_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        tasks.load("gsm8")
    with pytest.raises(UserError, match="task file not found"):
        tasks.load(str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="unknown key 'promt'; did you mean 'prompt'"):
        tasks.load(saved(tmp_path, {**PLAIN, "promt": ""}))
    with pytest.raises(UserError, match="filled in by peftlab"):
        tasks.load(saved(tmp_path, {**PLAIN, "convert": "abc"}))


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (PLAIN, {"target": ""}, "kind 'generate' needs target"),
        (PLAIN, {"prompt": "{qestion}"}, "'prompt' uses {qestion}"),
        (PLAIN, {"prompt": "{choice}"}, "'prompt' uses {choice}"),
        (PLAIN, {"target": "{choice}"}, "'target' uses {choice}"),
        (CHOOSE, {"prompt": "{choise}"}, "'prompt' uses {choise}"),
        (PLAIN, {"prompt": "{question.__class__}"}, "only plain fields"),
        (PLAIN, {"prompt": "{question!r}"}, "only plain fields"),
        (PLAIN, {"prompt": "{question:>9}"}, "only plain fields"),
        (PLAIN, {"prompt": "{question"}, "template"),
        (PLAIN, {"prompt": "{0}"}, "only plain fields"),
        (PLAIN, {"reference": "gold"}, "'gold' (reference, choices, pair)"),
        (CHOOSE, {"choices": "choises"}, "'choises' (reference, choices, pair)"),
        (CLASSIFY, {"pair": ["second"]}, "'second' (reference, choices, pair)"),
        (CLASSIFY, {"pair": ["first", "first", "first"]}, "one or two columns"),
        (PLAIN, {"choices": "answer"}, "belongs to kind 'choose'"),
        (PLAIN, {"metrics": {}}, "at least one metric"),
        (PLAIN, {"version": 2}, "version"),
        (PLAIN, {"grader": None}, "kind 'generate' needs grader"),
        (PLAIN, {"pair": ["question"]}, "'pair' belongs to kind 'classify'"),
        (PLAIN, {"labels": ["a", "b"]}, "'labels' belongs to kind 'classify'"),
        (PLAIN, {"join": ""}, "'join' belongs to kind 'text'"),
        (CLASSIFY, {"chat_template": False}, "'chat_template' belongs to kind 'generate'"),
        (REGRESS, {"labels": ["a", "b"]}, "'labels' belongs to kind 'classify'"),
        (REGRESS, {"pair": []}, "kind 'regress' needs pair"),
        (TEXT, {"prompt": "{text}"}, "takes neither 'prompt' nor 'grader'"),
        (TEXT, {"grader": {"name": "numeric"}}, "takes neither 'prompt' nor 'grader'"),
        (TEXT, {"target": "text"}, "'target' = 'text' lacks a column"),
    ],
)
def test_a_task_that_cannot_work_is_refused(base: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        task(base, **changes)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either 'dataset' or 'generator'"),
        ({"dataset": "a/b", "generator": "c"}, "either 'dataset' or 'generator'"),
        ({"dataset": "a/b"}, "needs 'split'"),
        ({"generator": "c", "size": 3}, "needs 'seed' and 'size'"),
        ({"generator": "c", "size": 3, "seed": 1, "split": "train"}, "split has no meaning for a generator"),
        ({"dataset": "a/b", "split": "train", "seed": 1}, "seed has no meaning for a dataset"),
        ({"dataset": "./b", "split": "train", "revision": "x"}, "revision has no meaning for a local file or folder"),
        ({"dataset": "a/b", "split": "train", "sample": 1.0}, "ratio below 1"),
        ({"dataset": "a/b", "split": "train", "sample": 0}, "above 0"),
    ],
)
def test_a_source_that_means_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        source(**fields)
    assert message in caught.value.message


# ------------------------------------------------------------------------------------------------------- identity


def test_pools_are_equal_where_rows_can_be_shared() -> None:
    assert source(dataset="a/b", split="train[:5]").pool == source(dataset="a/b", split="train[5:]").pool
    assert source(dataset="a/b", split="train").pool != source(dataset="a/b", split="test").pool
    assert source(dataset="./x.jsonl", split="train").pool == source(dataset="./x.jsonl", split="test").pool
    generated = {"generator": "c", "size": 3}
    assert source(**generated, seed=1).pool == source(**generated, seed=2).pool
    assert source(**generated, seed=1).pool != source(**generated, seed=1, options={"x": 1}).pool


def test_the_training_identity_follows_the_parts_that_take_rows_before_training() -> None:
    plain = task().identity()
    assert set(plain) >= {"train", "valid"} and "test" not in plain
    other = task(valid={**DATASET, "split": "train", "sample": 3})
    assert other.identity() != plain
    assert task(test={**DATASET, "split": "test", "sample": 3}).identity() == plain
    for change in ({"description": "x"}, {"stop": ["x"]}, {"allow_overlap": 0.5}, {"metrics": {"f1": "higher"}}):
        assert task(**change).identity() == plain
    for change in ({"prompt": "{question}"}, {"target": "{answer}"}, {"columns": {**PLAIN["columns"], "x": "x"}}):
        assert task(**change).identity() != plain


def test_a_cluster_and_a_way_of_asking_leave_keys_as_they_are() -> None:
    for changes in ({"cluster": "passage"}, {"chat_template": True}):
        other = task(**changes)
        assert other.identity() == task().identity()
        assert other.evaluation_identity("test") == task().evaluation_identity("test")


def test_what_stands_between_texts_changes_both_identities() -> None:
    plain, joined, bare = task(TEXT), task(TEXT, join="\n\n"), task(TEXT, join="")
    assert len({json.dumps(one.identity()) for one in (plain, joined, bare)}) == 3
    assert len({json.dumps(one.evaluation_identity("test")) for one in (plain, joined, bare)}) == 3
    assert tasks.measured_metrics(plain) == ["loss", "perplexity"] and tasks.graded_by(plain) is None


def test_a_cluster_is_a_value_of_the_row_and_no_part_of_its_id() -> None:
    rows = [{"question": "q", "answer": "1", "passage": passage} for passage in ("a", 7, None, "long " * 40)]
    found = examples(task(cluster="passage"), rows)
    assert [one.cluster for one in found[:3]] == ["a", "7", None]
    assert found[3].cluster is not None and len(found[3].cluster) < 40 and "long" not in found[3].cluster
    assert len({one.item for one in [*found, *examples(task(), rows)]}) == 1
    with pytest.raises(UserError, match="no column 'pasage'") as caught:
        examples(task(cluster="pasage"), rows)
    assert "did you mean 'passage'? mend 'cluster'" in str(caught.value.fix)


def test_a_regression_reads_numbers_and_text_that_spells_them() -> None:
    rows = [{"first": "a", "label": value} for value in (3, "2.5", -1.0)]
    assert [one.reference for one in examples(task(REGRESS), rows)] == [3.0, 2.5, -1.0]
    for bad in (None, True, "high", "nan", float("inf"), [1]):
        with pytest.raises(UserError, match="is no finite number"):
            examples(task(REGRESS), [{"first": "a", "label": bad}])


def test_the_evaluation_identity_follows_the_parts_that_take_rows_before_it() -> None:
    shared = {**DATASET, "split": "train"}
    alone = task(test={**shared, "sample": 5})
    larger = task(test={**shared, "sample": 6})
    assert alone.evaluation_identity("valid") != larger.evaluation_identity("valid")
    assert task().evaluation_identity("valid") == task(test={**DATASET, "split": "other"}).evaluation_identity("valid")
    assert task().evaluation_identity("test") == task(train={**DATASET, "split": "x"}).evaluation_identity("test")


def test_a_local_file_is_named_by_its_content(tmp_path: Path) -> None:
    identities = []
    for folder, text in (("one", '{"a": 1}\n'), ("two", '{"a": 1}\n'), ("three", '{"a": 2}\n')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(text)
        local = {"dataset": str(tmp_path / folder), "split": "train"}
        identities.append(task(train=local, valid={**local, "sample": 1}).identity())
    assert identities[0] == identities[1] != identities[2]
    assert str(tmp_path) not in json.dumps(identities)


# ------------------------------------------------------------------------------------------------ rows to examples


def test_rows_become_examples_in_order() -> None:
    found = examples(task(), [{"query": "1 + 1 = {x}", "answer": "2"}, {"question": "3", "answer": 3, "more": None}])
    assert [one.prompt for one in found] == ["Q: 1 + 1 = {x}\nA:", "Q: 3\nA:"]
    assert [one.target for one in found] == [" 2", " 3"]
    assert [one.reference for one in found] == ["2", 3]
    assert found[0].columns == {"question": "1 + 1 = {x}", "answer": "2"}


def test_an_item_is_its_task_columns() -> None:
    one, same, other = examples(
        task(),
        [
            {"question": "a", "answer": "b", "idx": 1},
            {"query": "a", "answer": "b", "idx": 2},
            {"question": "a", "answer": "c", "idx": 1},
        ],
    )
    assert one.item == same.item != other.item


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(), min_size=2), st.text("ab {}", max_size=12))
def test_values_are_never_read_as_templates(values: dict[str, str], template: str) -> None:
    try:
        names = template_fields(template)
    except ValueError:
        return
    if set(names) <= set(values):
        text = fill(template, values)
        literal = template.replace("{{", "\0").replace("}}", "\1")
        for name in values:
            literal = literal.replace("{" + name + "}", "\2" + name + "\3")
        for name, value in values.items():
            literal = literal.replace("\2" + name + "\3", value)
        if not any(mark in value for value in values.values() for mark in "\0\1\2\3"):
            assert text == literal.replace("\0", "{").replace("\1", "}")


def test_a_column_that_the_data_has_not() -> None:
    with pytest.raises(UserError, match=r"no column \('query', 'question'\); it has \['answer', 'text'\]"):
        examples(task(), [{"text": "a", "answer": "b"}])


@pytest.mark.parametrize("value", [None, ["a", "b"]])
def test_what_is_no_text_is_not_written_into_a_prompt(value: Any) -> None:
    with pytest.raises(UserError, match=r"column 'question' of a row is .*, not text"):
        examples(task(), [{"question": value, "answer": "b"}])


def test_a_row_that_is_no_plain_data() -> None:
    with pytest.raises(UserError, match="no plain data"):
        examples(task(), [{"question": "a", "answer": float("nan")}])


def test_choices_are_continuations() -> None:
    (one,) = examples(task(CHOOSE), [{"question": "q", "options": ["x", "y", "z"], "answer": 2}])
    assert one.choices == (" x", " y", " z") and one.target == " z" and one.reference == 2


@pytest.mark.parametrize("answer", [3, -1, "x", None, True])
def test_an_answer_that_is_no_choice(answer: Any) -> None:
    with pytest.raises(UserError, match="no index into the 3 choices"):
        examples(task(CHOOSE), [{"question": "q", "options": ["x", "y", "z"], "answer": answer}])


def test_labels_by_number_or_name() -> None:
    found = examples(task(CLASSIFY), [{"first": "a", "label": 1}, {"first": "b", "label": "no"}])
    assert [(one.reference, one.pair) for one in found] == [(1, ("a",)), (0, ("b",))]


def test_hidden_labels_cannot_be_used() -> None:
    with pytest.raises(UserError, match="'label' = -1 is no index into the 2 labels"):
        examples(task(CLASSIFY), [{"first": "a", "label": -1}])


def test_shots_stand_before_the_prompt() -> None:
    one, two = examples(task(separator=" || "), [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}])
    assert with_shots(task(separator=" || "), two, [one]) == "Q: a\nA: b || Q: c\nA:"
    assert with_shots(task(), two, []) == two.prompt


# ------------------------------------------------------------------------------------------------ multiple choice


def multiple_choice(options: list[str], answer: str, question: str = "Why is it so:") -> dict[str, Any]:
    written = " ".join(f"Answer{number}: {option}" for number, option in enumerate(options, start=1))
    names = "/".join(f"answer{number}" for number in range(1, len(options) + 1))
    text = f"Please choose the correct answer to the question: {question}\n\n{written}\n\nAnswer format: {names}"
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


@pytest.mark.parametrize("size", [2, 3, 4, 5, 11])
def test_any_number_of_options(size: int) -> None:
    options = [f"the option: {number} of Answer" for number in range(size)]
    row = multiple_choice(options, f"answer{size}", question="One?\n\nTwo:")
    (one,) = examples(tasks.load("openbookqa"), [row])
    assert one.prompt == "One?\n\nTwo:"
    assert one.choices == tuple(" " + option for option in options)
    assert one.reference == size - 1 and one.target == " " + options[-1]


def test_a_question_ends_without_white_space() -> None:
    (one,) = examples(tasks.load("openbookqa"), [multiple_choice(["a ", "b"], "answer1", question="Why? ")])
    assert one.prompt == "Why?" and one.choices == (" a", " b")


def test_rows_of_another_shape_are_refused() -> None:
    good = multiple_choice(["a", "b"], "answer1")
    with pytest.raises(UserError, match="no multiple-choice row"):
        examples(tasks.load("openbookqa"), [{**good, "answer": "answer3"}])
    with pytest.raises(UserError, match="no multiple-choice row"):
        examples(tasks.load("openbookqa"), [{**good, "instruction": "What is this?"}])
