"""The code tasks on their real rows: prompts as bigcode's, references that pass and others that do not, overlap."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

import toy
from peftlab.config import loading
from peftlab.config.groups import ExecutionSettings
from peftlab.config.source import Source
from peftlab.errors import UserError
from peftlab.graders import program
from peftlab.protocols import Example, Prediction
from peftlab.rows import data, overlap, sources

MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not (MIRROR / "humaneval").is_dir(), reason=f"no mirror with HumanEval at {MIRROR}")
COUNTS = {"humaneval": (0, 0, 164), "mbpp": (374, 90, 500), "mbpp_sanitized": (120, 43, 257)}
OVERLAP = {("code_alpaca", None): 0, ("evol_instruct", None): 0, ("evol_instruct", "evol_2"): 2}


def rows_of(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> data.Rows:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    return data.load(loading.bare("any/model", task=name, overrides=overrides))


def raw(name: str) -> list[dict[str, Any]]:
    with gzip.open(MIRROR / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@needs_data
@pytest.mark.parametrize("name", COUNTS)
def test_every_part_has_its_published_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(tmp_path, name, monkeypatch)
    assert (len(rows.train), len(rows.valid), len(rows.test)) == COUNTS[name]
    assert not rows.facts["notes"] and rows.facts["parts"]["test"]["duplicates"] == 0


@needs_data
def test_rows_are_asked_as_bigcode_asks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompts, worked out here from the raw rows, in their order; its tests in ours."""
    for name, file in (("humaneval", "humaneval/test.jsonl.gz"), ("mbpp", "mbpp/test.jsonl.gz")):
        for example, row in zip(rows_of(tmp_path, name, monkeypatch).test, raw(file), strict=True):
            if name == "humaneval":
                expected, tests = row["prompt"].strip(), row["test"]
                assert example.reference["entry"] == row["entry_point"]
            else:
                expected = '"""\n' + row["text"] + "\n" + row["test_list"][0] + '\n"""\n'
                tests = "\n".join(row["test_list"]).replace("\r\n", "\n")
            assert example.prompt == expected == example.reference["before"]
            assert example.reference["tests"].endswith(tests)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "split"), OVERLAP)
def test_instructions_are_asked_in_the_alpaca_prompt(
    name: str, split: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test stays HumanEval's own form, and shares as many runs of 13 words as the task says."""
    rows = rows_of(tmp_path, name, monkeypatch, **({"data.train_split": split} if split else {}))
    plain = rows_of(tmp_path, "humaneval", monkeypatch)
    assert [row.item for row in rows.test] == [row.item for row in plain.test] and len(rows.valid) == 90
    assert all(row.prompt.endswith("\n\n### Response:") and "### Instruction:\n" in row.prompt for row in rows.train)
    inputs = {"\n\n### Input:\n" in row.prompt for row in rows.train}
    assert inputs == ({True, False} if name == "code_alpaca" else {False})
    assert rows.facts["overlap"]["ngram13_items"] == OVERLAP[name, split]
    assert overlap.NGRAM == 13 and rows.partial


def graded(rows: list[Example], said: list[str]) -> list[str | None]:
    """Why each answer fails; as in a chat, so that no stop word ends a solution of several functions."""
    predictions = [Prediction(text=f"```python\n{text}\n```") for text in said]
    found = dict(program.grade_all(predictions, rows, "chat", ExecutionSettings()))
    return [found[number].why for number in range(len(rows))]


def solution(row: Example) -> str:
    """The whole program of the data set: HumanEval's begins with its prompt."""
    return (row.reference["before"] if row.reference["entry"] else "") + row.target


@needs_data
@pytest.mark.slow
def test_references_pass_and_others_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fifth row of HumanEval; all rows of the three sets: the test below."""
    rows = list(rows_of(tmp_path, "humaneval", monkeypatch).test)[::5]
    assert graded(rows, [solution(row) for row in rows]) == [None] * len(rows)
    others = [row.reference["before"] + other.target for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)]
    empty = [row.reference["before"] for row in rows]
    halves = [solution(row)[: len(row.reference["before"]) + len(row.target) // 2] for row in rows]
    for wrong in (others, empty, halves):
        found = graded(rows, wrong)
        assert sum(why is not None for why in found) >= len(rows) - 1  # half of a solution may be one


@needs_data
@pytest.mark.full
@pytest.mark.parametrize("name", COUNTS)
def test_all_references_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_of(tmp_path, name, monkeypatch)
    rows = [*found.train, *found.valid, *found.test]
    assert graded(rows, [solution(row) for row in rows]) == [None] * sum(COUNTS[name])


# -------------------------------------------------------------------------------------------------- rows by a number


def between(tmp_path: Path, lines: list[dict[str, Any]], **span: tuple[int, int]) -> data.Rows:
    (tmp_path / "numbered").mkdir()
    file = tmp_path / "numbered" / "test.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"dataset": str(file.parent), "split": "test", "between": span}
    task = toy.write_task(tmp_path / "task", train=3)
    task.write_text(json.dumps({**json.loads(task.read_text()), "test": source}))
    return data.load(loading.bare("any/model", task=str(task)))


def test_rows_are_taken_by_a_number(tmp_path: Path) -> None:
    lines = [{"question": f"q{number}", "answer": "1", "n": number} for number in (5, 1, 3, 2, 9)]
    rows = between(tmp_path, lines, n=(2, 5))
    assert [row.columns["question"] for row in rows.test] == ["q5", "q3", "q2"]
    assert rows.facts["parts"]["test"]["declared"] == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [("5", "asks for whole numbers in column 'n'"), (None, "asks for whole numbers"), (50, "no row has 'n' between")],
)
def test_numbers_that_cannot_be_compared_are_said(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        between(tmp_path, [{"question": "q", "answer": "1", "n": value}], n=(2, 5))


def test_what_is_between_is_part_of_the_identity(tmp_path: Path) -> None:
    plain = {"dataset": "org/set", "split": "all"}
    first, second = (Source.model_validate({**plain, "between": {"n": [1, last]}}) for last in (2, 3))
    assert first.identity() != second.identity() and first.pool == second.pool == Source.model_validate(plain).pool
    assert "between" not in Source.model_validate(plain).identity()
    rows = [{"n": number} for number in range(5)]
    assert list(sources.between(first, rows, range(5))) == [1, 2]
    with pytest.raises(ValueError, match="between has no meaning for a generator"):
        Source.model_validate({"generator": "chain_sum", "seed": 1, "size": 2, "between": {"n": [1, 2]}})
