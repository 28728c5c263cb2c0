"""The rows of a run: which rows each part takes, apart from the other parts, with fingerprints and overlap figures.

Reads through `sources.py`; turns no text into tokens (`tokenise.py` does). What it decides depends only on the task and
on `data.data_seed`, never on the run's seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftlab import seeds
from peftlab.config.examples import examples, within
from peftlab.config.source import Source
from peftlab.config.spec import RunSpec
from peftlab.config.task import CLAIM_ORDER, PARTS, Part, Task
from peftlab.config.templates import template_fields
from peftlab.digest import digest
from peftlab.errors import UserError
from peftlab.protocols import Example
from peftlab.rows import overlap, sources
from peftlab.rows.sources import Table

_DRAWN = {"sample", "sample_by", "split", "max_characters", "between", "partial"}
"""Fields of a source that say which of its rows are meant."""
NOTABLE_NGRAM_OVERLAP = 0.01
"""Share of test items with a run of words from training rows that is said, where a task knows of none."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The examples of a run.

    Attributes:
        train: Training rows, in file order.
        valid: Validation rows.
        test: Test rows.
        shots: Few-shot examples: training rows whose text is in neither validation nor test.
        fingerprints: For each part the digest of its ordered item ids and references.
        facts: Counts, origins, overlap figures and notes on them, for the record.
        partial: Whether a part comes from less than a published split.
    """

    train: tuple[Example, ...] = ()
    valid: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    shots: tuple[Example, ...] = ()
    fingerprints: Mapping[str, str]
    facts: Mapping[str, Any]
    partial: bool = False


def load(spec: RunSpec) -> Rows:
    """Read and divide the rows of a run's task.

    Parts that draw from one pool share no row: the test takes its rows first, then validation, and training gets the
    rest. For a published split this goes by row number. For a generator it goes by text, since row `i` of seed `s` is
    row `i - 1` of seed `s + 1` and small pools repeat themselves.

    Raises:
        UserError: Data that cannot be read, an empty part, a draw of more rows than there are, or more test items
            in the training rows than the task allows.
    """
    task = spec.task
    tables = _read_all(task)
    chosen: dict[Part, list[Example]] = {part: [] for part in PARTS}
    part_facts: dict[str, Any] = {}
    taken = _Taken(numbers={}, texts={})
    for part in CLAIM_ORDER:
        if part in tables:
            chosen[part], part_facts[part] = _take(task, part, tables[part], taken, spec.data.data_seed)
    allowed = spec.data.allow_overlap if spec.data.allow_overlap is not None else task.allow_overlap
    facts: dict[str, Any] = {
        "parts": {part: part_facts[part] for part in PARTS if part in part_facts},
        "overlap": _overlap(task, chosen, allowed, tables.get("test")),
        "partial": sorted(part for part, table in tables.items() if table.partial),
    }
    facts["notes"] = _notes(task, facts["overlap"], len(chosen["test"]))
    shots = _shots(task, chosen, spec.generation.few_shot, spec.data.data_seed)
    named: dict[str, list[Example]] = {str(part): chosen[part] for part in PARTS if part in tables}
    if shots:
        named["shots"] = shots
    return Rows(
        train=tuple(chosen["train"]),
        valid=tuple(chosen["valid"]),
        test=tuple(chosen["test"]),
        shots=tuple(shots),
        fingerprints={name: fingerprint(rows) for name, rows in named.items()},
        facts=facts,
        partial=bool(facts["partial"]),
    )


def fingerprint(rows: Sequence[Example]) -> str:
    """Digest of the rows' item ids and references, in order."""
    return digest([[row.item, row.reference] for row in rows])


def _read_all(task: Task) -> dict[Part, Table]:
    """Each part's whole split; parts of one split read it once."""
    tables: dict[Part, Table] = {}
    seen: dict[str, Table] = {}
    for part in PARTS:
        source: Source | None = getattr(task, part)
        if source is None:
            continue
        plain = source.model_dump(mode="json", exclude=_DRAWN)
        key = digest({**plain, "split": source.split_name})
        if key not in seen:
            with _about(task, part):
                seen[key] = sources.read(source)
        tables[part] = Table(
            rows=seen[key].rows,
            origin={**seen[key].origin, **({"split": source.split} if source.split else {})},
            partial=seen[key].partial or source.partial,
        )
    return tables


@contextmanager
def _about(task: Task, part: Part) -> Iterator[None]:
    """Mistakes found in the block are said to be of this part."""
    try:
        yield
    except UserError as error:
        raise UserError(f"task '{task.name}', {part}: {error.message}", fix=error.fix) from error


@contextmanager
def _in_file(table: Table) -> Iterator[None]:
    """Mistakes found in the block are said to be of the local file that the rows came from, if they did."""
    try:
        yield
    except UserError as error:
        file = table.origin.get("file")
        raise UserError(f"{file}: {error.message}" if file else error.message, fix=error.fix) from error


# ------------------------------------------------------------------------------------------- what each part takes


@dataclass(frozen=True)
class _Taken:
    """Rows that earlier parts hold, by pool: row numbers of published splits, texts of generated rows."""

    numbers: dict[str, set[int]]
    texts: dict[str, set[overlap.Text]]


def _take(task: Task, part: Part, table: Table, taken: _Taken, data_seed: int) -> tuple[list[Example], dict[str, Any]]:
    source: Source = getattr(task, part)
    take = _take_published if source.generator is None else _take_generated
    with _in_file(table):
        rows, facts = take(task, part, table, taken, data_seed)
    facts["rows"] = len(rows)
    facts["duplicates"] = len(rows) - len({row.item for row in rows})
    return rows, {"source": dict(table.origin), "partial": table.partial, "available": len(table.rows), **facts}


def _take_published(
    task: Task, part: Part, table: Table, taken: _Taken, data_seed: int
) -> tuple[list[Example], dict[str, Any]]:
    source: Source = getattr(task, part)
    with _about(task, part):
        wanted = sources.between(source, table.rows, sources.window(str(source.split), len(table.rows)))
    short = _short(task, source, table, wanted)
    claimed = taken.numbers.setdefault(source.pool, set())
    free = [number for number in short if number not in claimed]
    numbers = _drawn(task, part, free, data_seed)
    claimed.update(numbers)
    facts = {"declared": len(wanted), "removed_as_claimed": len(short) - len(free), "sampled_from": None}
    if source.max_characters is not None:
        facts["removed_as_too_long"] = len(wanted) - len(short)
    if source.sample is not None:
        facts["sampled_from"] = len(free)
    return examples(task, [table.rows[number] for number in numbers]), facts


def _take_generated(
    task: Task, part: Part, table: Table, taken: _Taken, data_seed: int
) -> tuple[list[Example], dict[str, Any]]:
    source: Source = getattr(task, part)
    rows = examples(task, table.rows)
    texts = input_texts(task, rows)
    short = _short(task, source, table, range(len(rows)))
    claimed = taken.texts.setdefault(source.pool, set())
    free = [number for number in short if texts[number] not in claimed]
    facts = {"declared": len(rows), "removed_same_text": len(short) - len(free), "sampled_from": None}
    if source.max_characters is not None:
        facts["removed_as_too_long"] = len(rows) - len(short)
    if part == "test":
        distinct = list({texts[number]: number for number in reversed(free)}.values())
        facts["removed_duplicates"] = len(free) - len(distinct)
        free = sorted(distinct)
    numbers = _drawn(task, part, free, data_seed)
    claimed.update(texts[number] for number in numbers)
    if source.sample is not None:
        facts["sampled_from"] = len(free)
    return [rows[number] for number in numbers], facts


def _short(task: Task, source: Source, table: Table, numbers: Sequence[int]) -> Sequence[int]:
    """The row numbers whose rows are within the source's `max_characters`, in order."""
    if source.max_characters is None:
        return numbers
    kept = within(task, [table.rows[number] for number in numbers], source.max_characters)
    return [number for number, keep in zip(numbers, kept, strict=True) if keep]


def _drawn(task: Task, part: Part, free: Sequence[int], data_seed: int) -> list[int]:
    """The row numbers that a part takes of the free ones.

    By `rank`, every row gets a random rank from the stream (data_seed, split, part), and the lowest ranks are taken: so
    a larger draw of the same rows contains the smaller one, and the order of the file is kept. By `numpy`, they are the
    first of numpy's legacy shuffle under the data seed, in the order of that shuffle (peft's method comparison).
    """
    source: Source = getattr(task, part)
    sample = source.sample
    if not free:
        limit = "" if source.max_characters is None else f", or they have more than {source.max_characters} characters"
        raise UserError(
            f"task '{task.name}': {part} is an empty data set: other parts hold all of its rows{limit}",
            fix="name another split or slice, or draw fewer rows for the other parts",
        )
    if sample is None:
        return list(free)
    count = sample if isinstance(sample, int) else round(sample * len(free))
    if count > len(free):
        raise UserError(
            f"task '{task.name}': {part} asks for {count} rows, there are {len(free)}", fix="ask for fewer rows"
        )
    if count == 0:
        raise UserError(
            f"task '{task.name}': {part} is an empty data set: {sample} of {len(free)} rows", fix="ask for more rows"
        )
    if source.sample_by == "numpy":
        return [free[position] for position in _legacy_shuffle(len(free), data_seed)[:count]]
    return sorted(free[position] for position in _ranked(len(free), data_seed, "split", part)[:count])


def _ranked(count: int, data_seed: int, *stream: str) -> list[int]:
    """The numbers below `count` in a seeded random order.

    Made from the raw output of the bit generator, which numpy keeps stable; its shuffles may change with a version.
    """
    ranks = seeds.generator(data_seed, *stream).bit_generator.random_raw(count)
    order: list[int] = np.argsort(ranks, kind="stable").tolist()
    return order


def _legacy_shuffle(count: int, data_seed: int) -> list[int]:
    """What `np.random.seed(s); np.random.shuffle(np.arange(count))` gives, without touching the global generator.

    numpy freezes the streams of its legacy generator (NEP 19).
    """
    if not 0 <= data_seed < 2**32:
        raise UserError(
            f"data.data_seed = {data_seed}: numpy's legacy generator takes seeds of 32 bits",
            fix="give one between 0 and 4294967295, or draw with sample_by: rank",
        )
    order = np.arange(count)
    np.random.RandomState(data_seed).shuffle(order)
    shuffled: list[int] = order.tolist()
    return shuffled


def _shots(task: Task, chosen: Mapping[Part, Sequence[Example]], count: int, data_seed: int) -> list[Example]:
    """Worked examples for prompts: distinct training rows that are, by text, in neither test nor validation."""
    if count == 0:
        return []
    seen = {*input_texts(task, chosen["test"]), *input_texts(task, chosen["valid"])}
    shots: list[Example] = []
    train = chosen["train"]
    for position in _ranked(len(train), data_seed, "rows", "shots"):
        text = input_texts(task, [train[position]])[0]
        if text not in seen:
            seen.add(text)
            shots.append(train[position])
        if len(shots) == count:
            return shots
    raise UserError(
        f"generation.few_shot = {count}: task '{task.name}' has only {len(shots)} training rows for it",
        fix="ask for fewer worked examples",
    )


# ------------------------------------------------------------------------------------------------------ overlap


def input_columns(task: Task) -> tuple[str, ...]:
    """The columns that a model is shown before it answers: those of the prompt or the pair.

    Where the prompt names the choice, the choices and the ending that all of them have are shown too.
    """
    shown = [*template_fields(task.prompt), *task.pair]
    if task.names_choice:
        shown += [task.choices, *template_fields(task.target)]
        shown = [name for name in shown if name != "choice"]
    return tuple(dict.fromkeys(name for name in shown if name != task.reference)) or tuple(task.columns)


def input_texts(task: Task, rows: Sequence[Example]) -> list[overlap.Text]:
    """What identifies rows by text: their input columns, with white space and case evened out."""
    names = input_columns(task)
    return [overlap.normal(row.columns[name] for name in names) for row in rows]


def _overlap(
    task: Task, chosen: Mapping[Part, Sequence[Example]], allowed: float, test_table: Table | None
) -> dict[str, Any]:
    """Shares of test (and validation) items that stand in the training rows.

    `exact`: all input columns equal, whatever the answer. `ngram13`: a run of 13 words of an input column stands in
    any column of a training row, answers included. Unknown without training rows or items: None, with the reason.
    """
    test = _shares(task, chosen["test"], chosen["train"])
    if test["exact"] is not None and test["exact"] > allowed:
        assert test_table is not None
        _refuse_leak(task, chosen, allowed, test_table)
    valid = _shares(task, chosen["valid"], chosen["train"])
    known = {"allowed": allowed, "known_ngram13": task.known_ngram_overlap}
    return {"columns": list(input_columns(task)), **known, **test, "valid": valid}


def _shares(task: Task, items: Sequence[Example], train: Sequence[Example]) -> dict[str, Any]:
    if not items or not train:
        reason = "no items" if train else "no training rows"
        return {"exact": None, "exact_items": None, "ngram13": None, "ngram13_items": None, "reason": reason}
    texts = input_texts(task, items)
    exact = overlap.equal(texts, input_texts(task, train))
    shared = overlap.sharing(texts, (tuple(row.columns.values()) for row in train))
    return {
        "exact": len(exact) / len(items),
        "exact_items": len(exact),
        "ngram13": len(shared) / len(items),
        "ngram13_items": len(shared),
    }


def _notes(task: Task, found: Mapping[str, Any], count: int) -> list[str]:
    """What a reader of the scores should know: leaks known by name, and more shared runs of words than are known.

    A test that is a draw may by chance hold more of a known overlap than its whole split: two standard errors more.
    """
    notes = [f"known leak: {sentence}" for sentence in task.known_leaks]
    known = task.known_ngram_overlap or NOTABLE_NGRAM_OVERLAP
    drawn = task.test is not None and task.test.sample is not None
    chance = 2 * math.sqrt(known * (1 - known) / count) if drawn and count else 0.0
    if found["ngram13"] is not None and found["ngram13"] > known + chance:
        what = f"{known:.1%} is known of this task" if task.known_ngram_overlap else "none is known of this task"
        notes.append(
            f"{found['ngram13_items']} of {count} test items ({found['ngram13']:.1%}) share {overlap.NGRAM} words in a "
            f"row with training rows; {what}"
        )
    return notes


def refuse_overlap(spec: RunSpec, rows: Rows, own: RunSpec, *, trained_on: Sequence[Example]) -> None:
    """Refuse to score a run on another task whose test items stand among the rows that it was trained on.

    Two tasks may have one question in columns of their own, with its options or without them. So an item stands there
    if its texts are equal to those of a training row, or stand in what one was trained on, or hold what one was asked.

    Raises:
        UserError: More of them than `data.allow_overlap` (or the task) allows.
    """
    texts, asked = input_texts(spec.task, rows.test), input_texts(own.task, trained_on)
    allowed = spec.data.allow_overlap if spec.data.allow_overlap is not None else spec.task.allow_overlap
    known = {" ".join(text) for text in asked}
    equal = {place for place, text in enumerate(texts) if " ".join(text) in known}
    inside = {place for place, _ in overlap.standing(texts, (tuple(row.columns.values()) for row in trained_on))}
    around = {place for _, place in overlap.standing(asked, texts)}
    found = [texts[place] for place in sorted(equal | inside | around)]
    if rows.test and len(found) / len(rows.test) > allowed:
        raise UserError(
            f"{len(found)} of {len(rows.test)} test items of '{spec.task.name}' stand in the rows that this run was "
            f"trained on; for example: {' | '.join(found[0])[:200]}",
            fix="score another task, or accept it: data.allow_overlap=1.0",
        )


def _refuse_leak(task: Task, chosen: Mapping[Part, Sequence[Example]], allowed: float, table: Table) -> None:
    """Raise, unless the test is a draw that by chance holds more of an overlap that its whole split is allowed."""
    items, known = chosen["test"], set(input_texts(task, chosen["train"]))
    exact = overlap.equal(input_texts(task, items), known)
    source = task.test
    if source is not None and source.sample is not None and source.split is not None:
        numbers = sources.between(source, table.rows, sources.window(source.split, len(table.rows)))
        whole = examples(task, [table.rows[number] for number in numbers])
        if len(overlap.equal(input_texts(task, whole), known)) / len(whole) <= allowed:
            return
    share = len(exact) / len(items)
    shown = " | ".join(items[exact[0]].columns[name] for name in input_columns(task))[:200]
    raise UserError(
        f"task '{task.name}': {len(exact)} of {len(items)} test items ({share:.2%}) stand in the training rows, "
        f"{allowed:.2%} is allowed; for example: {shown}",
        fix=f"train on other rows, or accept it: data.allow_overlap={math.ceil(share * 1e4) / 1e4}",
    )
