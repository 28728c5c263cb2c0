from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftlab import protocols
from peftlab.config import examples
from peftlab.config import task as tasks
from peftlab.config.settings import validated
from peftlab.config.source import Source
from peftlab.config.spec import RunSpec
from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.protocols import Example, Prediction
from peftlab.rows import data, overlap, sources, texts
from peftlab.rows.sources import Table

NUM_ROWS = 40
MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
needs_mirror = pytest.mark.skipif(not (MIRROR / "mirror.json").is_file(), reason=f"no mirror at {MIRROR}")


def a_task(**changes: Any) -> Task:
    plain = {
        "name": "plain",
        "version": 1,
        "kind": "generate",
        "columns": {"question": "question", "answer": "answer"},
        "prompt": "Q: {question}\nA:",
        "target": " {answer}",
        "grader": {"name": "numeric"},
        "metrics": {"exact_match": "higher"},
    }
    return validated(Task, {**plain, **changes}, where="test")


def run_of(task: Task, *, seed: int = 0, few_shot: int = 0, **settings: Any) -> RunSpec:
    groups = {"optim": {}, "batch": {}, "train": {}, "generation": {"few_shot": few_shot}, "data": settings}
    plain = {"experiment": "x/y", "task": task, "seed": seed, "adapter": None, "model": {"id": "some/model"}, **groups}
    return validated(RunSpec, plain, where="test")


def load(task: Task, **options: Any) -> data.Rows:
    return data.load(run_of(task, **options))


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Data sets by name, instead of the mirror and the hub; `many` has NUM_ROWS different rows."""
    held = {"many": [{"question": f"what is number {n}", "answer": str(n)} for n in range(NUM_ROWS)]}

    def read(source: Source, *, first: int | None = None) -> Table:
        rows = held[f"{source.dataset or source.generator}"]
        if source.generator:
            rows = rows[source.seed : source.seed + source.size]  # type: ignore[operator]
        return Table(rows=rows, origin={"from": "memory"}, partial=source.split_name == "part")

    monkeypatch.setattr(sources, "read", read)
    return held


def many(split: str = "train", **fields: Any) -> dict[str, Any]:
    return {"dataset": "many", "split": split, **fields}


def generated(seed: int, size: int, name: str = "sums", **fields: Any) -> dict[str, Any]:
    return {"generator": name, "seed": seed, "size": size, **fields}


def numbers(rows: Any) -> list[int]:
    return [int(row.reference) for row in rows]


# ---------------------------------------------------------------------------------------- parts of one published split


def test_without_draws_every_row_stands_in_its_place() -> None:
    rows = load(a_task(train=many("train[:30]"), test=many("train[30:]")))
    assert numbers(rows.train) == list(range(30)) and numbers(rows.test) == list(range(30, 40))
    assert rows.valid == () and not rows.partial


bound = st.integers(0, NUM_ROWS)
draw = st.one_of(st.none(), st.integers(1, 12), st.floats(0.05, 0.95))


@settings(max_examples=60, deadline=None)
@given(bounds=st.tuples(*[bound] * 6), draws=st.tuples(draw, draw, draw), data_seed=st.integers(0, 5))
def test_parts_of_one_split_share_no_row_whatever_the_slices(
    bounds: tuple[int, ...], draws: tuple[Any, ...], data_seed: int
) -> None:
    parts = {}
    for number, part in enumerate(("test", "valid", "train")):
        start, stop = sorted(bounds[2 * number : 2 * number + 2])
        parts[part] = many(f"train[{start}:{stop}]", **({"sample": draws[number]} if draws[number] else {}))
    held = {"many": [{"question": f"what is number {n}", "answer": str(n)} for n in range(NUM_ROWS)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read", lambda source: Table(rows=held["many"], origin={}))
        try:
            rows = load(a_task(**parts), data_seed=data_seed)
        except UserError as error:
            assert "empty data set" in error.message or "there are" in error.message
            return
    taken: set[int] = set()
    for part in ("test", "valid", "train"):
        found = numbers(getattr(rows, part))
        facts = rows.facts["parts"][part]
        window = sources.window(parts[part]["split"], NUM_ROWS)
        free = [number for number in window if number not in taken]
        assert found == sorted(found) and set(found) <= set(free)
        assert facts["removed_as_claimed"] == len(window) - len(free) and facts["declared"] == len(window)
        sample = parts[part].get("sample")
        expected = len(free) if sample is None else sample if isinstance(sample, int) else round(sample * len(free))
        assert len(found) == facts["rows"] == expected
        taken.update(found)


def test_the_test_takes_its_rows_first() -> None:
    rows = load(a_task(train=many(), valid=many(sample=5), test=many("train[:20]", sample=10)))
    assert set(numbers(rows.test)) <= set(range(20))
    assert len(rows.train) == 25 and len(rows.valid) == 5
    assert rows.facts["parts"]["train"]["removed_as_claimed"] == 15
    assert rows.facts["parts"]["valid"]["sampled_from"] == 30


def test_draws_depend_on_the_data_seed_alone_and_grow_by_adding() -> None:
    def drawn(count: int | float, **options: Any) -> list[int]:
        return numbers(load(a_task(train=many(sample=count)), **options).train)

    assert drawn(10) == drawn(10, seed=7) != drawn(10, data_seed=1)
    assert set(drawn(10)) < set(drawn(20))
    assert drawn(0.25) == drawn(10)
    assert drawn(10) == [0, 4, 7, 8, 11, 17, 20, 24, 28, 31], "which rows a seed draws is part of every published key"


def test_draws_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match="train asks for 41 rows, there are 40"):
        load(a_task(train=many(sample=41)))
    with pytest.raises(UserError, match=r"train is an empty data set: 0\.01 of 40 rows"):
        load(a_task(train=many(sample=0.01)))
    with pytest.raises(UserError, match="train is an empty data set: other parts hold all"):
        load(a_task(train=many(), test=many()))


def test_a_part_of_a_split_is_marked() -> None:
    rows = load(a_task(train=many("part")))
    assert rows.partial and rows.facts["partial"] == ["train"]


def test_one_split_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Source] = []
    whole = sources.read

    def counted(source: Source) -> Table:
        asked.append(source)
        return whole(source)

    monkeypatch.setattr(sources, "read", counted)
    rows = load(a_task(train=many("train[:10]"), valid=many("train[10:20]"), test=many("other[20:]")))
    assert len(asked) == 2
    assert rows.facts["parts"]["valid"]["source"]["split"] == "train[10:20]"


# ---------------------------------------------------------------------------------------------------- generated rows


def test_generated_parts_share_no_text_and_the_test_repeats_none(tables: dict[str, list[dict[str, Any]]]) -> None:
    numbered = [n % 25 if n < 60 else n for n in range(200)]
    tables["sums"] = [{"question": f"{n} + 1", "answer": str(n + 1)} for n in numbered]
    rows = load(a_task(train=generated(50, 60), valid=generated(55, 10), test=generated(0, 30)))
    assert numbers(rows.test) == [1 + n for n in range(25)]
    assert numbers(rows.valid) == [61 + n for n in range(5)]
    assert numbers(rows.train) == [66 + n for n in range(45)]
    assert rows.facts["parts"]["test"]["removed_duplicates"] == 5


def test_rows_of_neighbouring_seeds_are_removed_by_text(tables: dict[str, list[dict[str, Any]]]) -> None:
    tables["sums"] = [{"question": f"{n % 50} + 1", "answer": str(n)} for n in range(200)]
    rows = load(a_task(train=generated(8, 12), valid=generated(5, 10), test=generated(0, 10)))
    assert numbers(rows.test) == list(range(10))
    assert numbers(rows.valid) == [10, 11, 12, 13, 14] and rows.facts["parts"]["valid"]["removed_same_text"] == 5
    assert numbers(rows.train) == [15, 16, 17, 18, 19] and rows.facts["parts"]["train"]["removed_same_text"] == 7


def test_rows_that_a_draw_left_over_are_free_for_training(tables: dict[str, list[dict[str, Any]]]) -> None:
    tables["sums"] = tables["many"]
    rows = load(a_task(train=generated(0, 20), test=generated(0, 10, sample=4)))
    assert len(rows.test) == 4 and len(rows.train) == 16
    assert sorted(numbers(rows.test) + numbers(rows.train)) == list(range(20))


def test_duplicates_in_training_are_kept_and_counted(tables: dict[str, list[dict[str, Any]]]) -> None:
    tables["sums"] = [{"question": f"{n % 4} + 1", "answer": str(n % 4)} for n in range(20)]
    rows = load(a_task(train=generated(0, 10)))
    assert len(rows.train) == 10 and rows.facts["parts"]["train"]["duplicates"] == 6


# ----------------------------------------------------------------------------------------------------------- overlap


def leaky(tables: dict[str, list[dict[str, Any]]], share: float = 0.5) -> dict[str, Any]:
    count = int(share * 10)
    copied = [{"question": f"  What IS\tnumber {n} ", "answer": "other"} for n in range(count)]
    fresh = [{"question": f"how many are {n}", "answer": str(n)} for n in range(10 - count)]
    tables["tests"] = copied + fresh
    return {"train": many(), "test": {"dataset": "tests", "split": "test"}}


def test_test_items_in_the_training_rows_are_an_error(tables: dict[str, list[dict[str, Any]]]) -> None:
    parts = leaky(tables)
    with pytest.raises(UserError, match=r"5 of 10 test items \(50\.00%\).*1\.00% is allowed.*What IS") as caught:
        load(a_task(**parts))
    assert "data.allow_overlap=0.5" in str(caught.value.fix)


def test_a_known_overlap_is_allowed_up_to_its_figure_and_recorded(tables: dict[str, list[dict[str, Any]]]) -> None:
    parts = leaky(tables)
    rows = load(a_task(**parts, allow_overlap=0.5))
    assert rows.facts["overlap"]["exact"] == 0.5 and rows.facts["overlap"]["exact_items"] == 5
    assert rows.facts["overlap"]["allowed"] == 0.5 and rows.facts["overlap"]["columns"] == ["question"]
    assert len(rows.test) == 10  # a published split is never altered
    assert load(a_task(**parts), allow_overlap=0.5).facts["overlap"]["exact"] == 0.5
    with pytest.raises(UserError):
        load(a_task(**parts, allow_overlap=0.5), allow_overlap=0.49)


def test_a_draw_may_by_chance_hold_more_of_an_allowed_overlap(tables: dict[str, list[dict[str, Any]]]) -> None:
    parts = leaky(tables, 0.2)
    shares = set()
    for data_seed in range(6):
        parts["test"]["sample"] = 3
        shares.add(load(a_task(**parts, allow_overlap=0.2), data_seed=data_seed).facts["overlap"]["exact"] > 0.2)
    assert shares == {True, False}
    with pytest.raises(UserError):
        for data_seed in range(6):
            load(a_task(**parts, allow_overlap=0.1), data_seed=data_seed)


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def repeated_runs(tables: dict[str, list[dict[str, Any]]], share: float, **sample: Any) -> dict[str, Any]:
    """A hundred test items of which so many have thirteen words of a training row, and none all of it."""
    tables["words"] = [{"question": f"{LONG} here", "answer": "1"}]
    count = int(100 * share)
    tables["tests"] = [{"question": f"{LONG if n < count else ''} item {n}", "answer": "1"} for n in range(100)]
    return {
        "train": {"dataset": "words", "split": "train"},
        "test": {"dataset": "tests", "split": "test", **sample},
    }


@pytest.mark.parametrize(
    ("share", "known", "notes"),
    [
        (0.01, 0.0, 0),
        (0.02, 0.0, 1),
        (0.46, 0.46, 0),
        (0.47, 0.46, 1),
    ],
)
def test_shared_runs_of_words_are_said_above_what_is_known(
    share: float, known: float, notes: int, tables: dict[str, list[dict[str, Any]]]
) -> None:
    rows = load(a_task(**repeated_runs(tables, share), known_ngram_overlap=known))
    assert rows.facts["overlap"]["exact"] == 0 and rows.facts["overlap"]["ngram13"] == share
    assert rows.facts["overlap"]["known_ngram13"] == known
    assert len(rows.facts["notes"]) == notes
    if notes:
        assert f"{int(100 * share)} of 100 test items" in rows.facts["notes"][0]


def test_a_draw_may_by_chance_hold_more_shared_runs_than_are_known(tables: dict[str, list[dict[str, Any]]]) -> None:
    for data_seed in range(20):  # two standard errors of 20 items at 40 % are 22 %
        rows = load(a_task(**repeated_runs(tables, 0.4, sample=20), known_ngram_overlap=0.4), data_seed=data_seed)
        assert bool(rows.facts["notes"]) == (rows.facts["overlap"]["ngram13"] > 0.4 + 2 * (0.24 / 20) ** 0.5)
    assert not load(a_task(**repeated_runs(tables, 0.4, sample=20), known_ngram_overlap=0.4)).facts["notes"]


def test_known_leaks_are_notes_of_the_rows() -> None:
    rows = load(a_task(train=many(), test=many(sample=2), known_leaks=["the test is made of the training rows"]))
    assert rows.facts["notes"] == ["known leak: the test is made of the training rows"]


def test_overlap_is_unknown_without_training_rows() -> None:
    figures = load(a_task(test=many())).facts["overlap"]
    assert figures["exact"] is None and figures["reason"] == "no training rows"
    assert load(a_task(train=many())).facts["overlap"]["reason"] == "no items"


def test_equal_answers_alone_are_no_overlap(tables: dict[str, list[dict[str, Any]]]) -> None:
    tables["tests"] = [{"question": f"another {n}", "answer": str(n)} for n in range(10)]
    rows = load(a_task(train=many(), test={"dataset": "tests", "split": "test"}))
    assert rows.facts["overlap"]["exact"] == 0 and rows.facts["overlap"]["ngram13"] == 0


WORDS = st.lists(st.sampled_from("ab"), max_size=7).map(" ".join)
TEXTS = st.lists(st.tuples(WORDS, WORDS), max_size=6)


@settings(max_examples=100, deadline=None)
@given(items=TEXTS, others=TEXTS)
def test_shared_runs_are_those_that_a_plain_search_finds(items: list[Any], others: list[Any]) -> None:
    def runs(columns: tuple[str, ...]) -> set[tuple[str, ...]]:
        lists = [column.split() for column in columns]
        return {tuple(words[i : i + 3]) for words in lists for i in range(len(words) - 2)}

    expected = []
    for position, item in enumerate(items):
        if runs(item):
            found = any(runs(item) & runs(other) for other in others)
        else:
            columns = {column for column in item if column}
            found = bool(columns) and any(columns <= set(other) for other in others)
        if found:
            expected.append(position)
    assert overlap.sharing(items, others, size=3) == expected


def test_runs_ignore_case_and_punctuation_and_need_thirteen_words() -> None:
    thirteen = "One two three four five six seven eight nine ten eleven twelve thirteen"
    other = ("x " + thirteen.upper().replace(" ", ", ") + "!", "y")
    assert overlap.sharing([(thirteen + " more",), (thirteen.replace("six", "6") + " more",)], [other]) == [0]
    assert overlap.sharing([("one two",), ("Three!",)], [other, ("one two three",), ("three", "z")]) == [1]


# ------------------------------------------------------------------------------------------------- worked examples


def test_shots_are_training_rows_in_neither_test_nor_validation(tables: dict[str, list[dict[str, Any]]]) -> None:
    tables["twice"] = [*tables["many"], *tables["many"]]
    parts = {"train": {"dataset": "twice", "split": "train"}, "valid": many("a[:10]"), "test": many("b[10:20]")}
    rows = load(a_task(**parts, allow_overlap=1.0), few_shot=20)
    assert Counter(numbers(rows.shots)) == Counter(range(20, 40))
    assert rows.fingerprints["shots"] == data.fingerprint(rows.shots)
    with pytest.raises(UserError, match=r"few_shot = 21.*only 20"):
        load(a_task(**parts, allow_overlap=1.0), few_shot=21)


def test_shots_follow_the_data_seed_and_not_the_runs_seed() -> None:
    task = a_task(train=many())
    assert load(task, few_shot=3, seed=1).shots == load(task, few_shot=3, seed=2).shots
    assert load(task, few_shot=3).shots != load(task, few_shot=3, data_seed=1).shots
    assert load(task, few_shot=3).shots == load(task, few_shot=5).shots[:3]


# ---------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_tells_rows_order_and_references(tables: dict[str, list[dict[str, Any]]]) -> None:
    def fingerprint(rows: list[dict[str, Any]]) -> str:
        tables["some"] = rows
        return load(a_task(train={"dataset": "some", "split": "train"})).fingerprints["train"]

    first, second = {"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}
    assert fingerprint([first, second]) == fingerprint([{**first, "idx": 3}, second])
    prints = [[first, second], [second, first], [first], [first, {**second, "answer": "3"}]]
    assert len({fingerprint(rows) for rows in prints}) == len(prints)


def test_facts_are_plain_data() -> None:
    rows = load(a_task(train=many(), valid=many(sample=2), test=many("test[:3]"), allow_overlap=1.0), few_shot=2)
    assert json.loads(json.dumps(rows.facts)) == rows.facts
    assert set(rows.fingerprints) == {"train", "valid", "test", "shots"}


# -------------------------------------------------------------------------------------------------- forgetting text


def test_the_forgetting_text_is_absent_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFTLAB_MIRROR", raising=False)
    assert texts.for_forgetting(None) == "data.forgetting is null"
    reason = texts.for_forgetting("wikitext2")
    assert isinstance(reason, str) and "PEFTLAB_MIRROR" in reason
    with pytest.raises(UserError, match="unknown text 'wikitext'"):
        texts.for_forgetting("wikitext")


def test_the_forgetting_text_comes_from_the_mirror_or_from_the_hub_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: dict[str, list[dict[str, Any]]]
) -> None:
    entry = {"folder": "w", "splits": {"test": "test.jsonl"}}
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "test.jsonl").write_text('{"text": " = A = \\n"}\n{"text": ""}\n')
    (tmp_path / "mirror.json").write_text(json.dumps({"Salesforce/wikitext:wikitext-2-v1": entry}))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(tmp_path))
    found = texts.for_forgetting("wikitext2")
    assert not isinstance(found, str)
    written, facts = found
    assert written == [" = A = \n", ""]
    assert facts["rows"] == 2 and facts["characters"] == 8 and facts["source"]["from"] == "mirror"
    monkeypatch.delenv("PEFTLAB_MIRROR")
    tables["Salesforce/wikitext"] = [{"text": "asked for"}]
    from_hub = texts.for_forgetting("hub:wikitext2")
    assert not isinstance(from_hub, str) and from_hub[0] == ["asked for"]


# --------------------------------------------------------------------------------------------------------- real data


def golden(task: Task, rows: Sequence[Example]) -> None:
    """The worked answers themselves score everything, in every mode, and no stop string cuts one."""
    assert task.grader is not None
    grader = protocols.find("graders", task.grader.name)
    for mode in task.grader.modes:
        assert all(grader.grade(Prediction(text=row.target), row, mode).score == 1 for row in rows)
    assert not any(stop in row.target for row in rows for stop in task.stop)


PUBLISHED = {
    "gsm8k": {"train": 7473 - 50, "valid": 50, "test": 1319},
    "mrpc": {"train": 3668, "valid": 408, "test": 1725},
    "openbookqa": {"train": 4957 - 200, "valid": 200, "test": 500},
    "math_subject": {"train": 7500 - 500, "valid": 500, "test": 5000},
    "boolq": {"train": 9427 - 200, "valid": 200, "test": 3270},
    "arc_easy": {"train": 2251 - 200, "valid": 200, "test": 2376},
    "arc_challenge": {"train": 1119 - 200, "valid": 200, "test": 1172},
    "commonsense_qa": {"train": 9741 - 200, "valid": 200, "test": 1221},
}


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_row_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    task = tasks.load(name)
    rows = load(task)
    assert {part: len(getattr(rows, part)) for part in tasks.PARTS} == PUBLISHED[name]
    assert not rows.partial
    assert rows.facts["overlap"]["exact"] <= task.allow_overlap
    assert all(row.reference is not None for row in rows.test)
    golden(task, rows.test)


@pytest.mark.slow
@needs_mirror
def test_the_overlap_that_openbookqa_declares_is_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    task = tasks.load("openbookqa").model_copy(update={"valid": None})
    assert load(task).facts["overlap"]["exact"] == task.allow_overlap == 23 / 500


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("subset", ["ARC-Easy", "ARC-Challenge", "openbookqa"])
def test_real_multiple_choice_rows_come_apart(subset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    task = tasks.load("openbookqa")
    source = Source(dataset="AGI-Edgerunners/LLM-Adapters", subset=subset, split="test")
    sizes = Counter(len(row.choices) for row in examples.examples(task, sources.read(source).rows))
    few = {"ARC-Easy": {3: 7, 4: 2365, 5: 4}, "ARC-Challenge": {3: 4, 4: 1165, 5: 3}, "openbookqa": {4: 500}}
    assert sizes == few[subset]


@pytest.mark.slow
@needs_mirror
def test_the_forgetting_text_is_wikitext(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    found = texts.for_forgetting("wikitext2")
    assert not isinstance(found, str) and found[1]["rows"] == 4358


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("arithmetic", (3672, 48, 145)), ("gsm_symbolic", (7472, 50, 1000))])
def test_generated_tasks(name: str, sizes: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.undo()
    task = tasks.load(name)
    rows = load(task)
    assert (len(rows.train), len(rows.valid), len(rows.test)) == sizes
    assert rows.facts["overlap"]["exact"] == 0 and rows.facts["overlap"]["valid"]["exact"] == 0
    golden(task, rows.test)
    for row in (*rows.train, *rows.valid, *rows.test):
        if name == "gsm_symbolic":
            assert row.target.splitlines()[-1].startswith("#### ")
        else:
            assert row.target == f" {int(row.reference)}" and len(row.target) <= 5
