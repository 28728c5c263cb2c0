"""`peftlab show`: rows as the model sees them, with the part that the loss is taken on in [[ ]], and their lengths.

Tokenises with the experiment's own tokenizer; a task alone is shown as text. Trains and scores nothing.
"""

from __future__ import annotations

import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from peftlab.cli import arguments, tables, units
from peftlab.config.folders import YAML_SUFFIXES
from peftlab.config.loading import bare
from peftlab.config.settings import read_yaml
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError

if TYPE_CHECKING:
    from peftlab.protocols import Example
    from peftlab.rows import data
    from peftlab.rows.lengths import Bin
    from peftlab.rows.tokenise import TokenRow

NUM_ROWS = 3
PATIENCE_SECONDS, REPEAT_SECONDS = 2.0, 10.0
"""After how long it is said what takes so long, and how often again."""

_NO_MODEL = "none"
_BAR_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row as text: what is only read, what is learnt, a class, and whether the end was cut off.

    Of a conversation `pieces` are its text, in order, each with whether it is learnt; elsewhere there are none.
    """

    item: str
    masked: str
    trained: str
    pieces: tuple[tuple[str, bool], ...] = ()
    label: int | float | None = None
    truncated: bool = False


def show(
    target: str, settings: Sequence[str], *, dialect: str | None = None, every_row: bool = False, as_json: bool = False
) -> None:
    """Show the first rows of an experiment or a task, and what all rows come to."""
    if _is_experiment(target, dialect):
        spec = arguments.load_spec(target, arguments.parse(settings), dialect)
        for note in spec.notes:
            typer.echo(f"note: {note}", err=True)
        found = _experiment(spec, every_row=every_row)
    elif settings:
        raise UserError(f"{target} is a task; settings go with an experiment", fix="name an experiment folder")
    else:
        found = _task(bare(_NO_MODEL, task=target))
    if as_json:
        tables.write_json(found)
    else:
        _draw(found)


def _is_experiment(target: str, dialect: str | None) -> bool:
    """A folder, or a YAML file with a model in it; a task's YAML has none."""
    path = Path(target)
    single = path.suffix in YAML_SUFFIXES and path.is_file()
    return path.is_dir() or dialect is not None or (single and "model" in read_yaml(path))


# ------------------------------------------------------------------------------------------------- what there is


def _task(spec: RunSpec) -> dict[str, Any]:
    rows = _read(spec)
    examples = (rows.train or rows.valid or rows.test)[:NUM_ROWS]
    return {"task": spec.task.name, "rows": [asdict(_untokenised(one)) for one in examples], **_facts(rows)}


def _untokenised(one: Example) -> Shown:
    """A row before any tokenizer; a classification learns its reference."""
    if one.messages:
        turns = [
            piece
            for turn in one.messages
            for piece in ((f"<{turn['role']}> ", False), (turn["content"], turn["role"] == "assistant"), ("\n", False))
        ]
        return _in_pieces(one.item, turns)
    return Shown(item=one.item, masked=" || ".join(one.pair) or one.prompt, trained=one.target or str(one.reference))


def _in_pieces(item: str, pieces: Sequence[tuple[str, bool]], *, truncated: bool = False) -> Shown:
    said = ["".join(text for text, learnt in pieces if learnt is wanted) for wanted in (False, True)]
    return Shown(item=item, masked=said[0], trained=said[1], pieces=tuple(pieces), truncated=truncated)


def _experiment(spec: RunSpec, *, every_row: bool) -> dict[str, Any]:
    rows = _read(spec)
    if not rows.train:
        raise UserError(f"task '{spec.task.name}' has no training rows", fix="name 'train' in the task file")
    from peftlab.modelling import models
    from peftlab.rows import lengths

    with patience(lambda: f"loading the tokenizer of {spec.model.id}"):
        tokenizer = models.load_tokenizer(spec.model)
    kind, done = models.kind_of(spec), [0]
    with patience(lambda: f"tokenising: {done[0]} of {len(rows.train)} rows"):
        found = lengths.tokens(
            rows.train,
            tokenizer,
            spec,
            kind=kind,
            at_most=None if every_row else lengths.AT_MOST,
            tell=lambda count: done.__setitem__(0, count),
        )
        padding = lengths.padding(found.rows, spec.batch, seed=spec.seed, num_processes=spec.launch.num_processes)
    return {
        "experiment": spec.experiment,
        "task": spec.task.name,
        "model": spec.model.id,
        "rows": [asdict(as_text(tokenizer, row)) for row in found.rows[:NUM_ROWS]],
        "lengths": lengths.summary(found),
        "limit": spec.data.max_length,
        "loss_mask": spec.data.loss_mask,
        "turns": dict(found.turns),
        "histogram": [asdict(one) for one in lengths.histogram(found.lengths)],
        "batch_size": spec.batch.per_device_train_batch_size,
        "order": spec.batch.order,
        "padding": dict(padding),
        **_facts(rows),
    }


def _read(spec: RunSpec) -> data.Rows:
    with patience(lambda: f"reading the rows of {spec.task.name}"):
        from peftlab.rows import data

        return data.load(spec)


def _facts(rows: data.Rows) -> dict[str, Any]:
    parts = {name: part["rows"] for name, part in rows.facts["parts"].items()}
    facts = {"overlap": dict(rows.facts["overlap"]), "notes": list(rows.facts["notes"])}
    return {"parts": parts, "partial": list(rows.facts["partial"]), **facts}


def as_text(tokenizer: Any, row: TokenRow) -> Shown:
    """A row's tokens as text, divided where the loss begins; those of a conversation wherever it begins and ends."""
    if row.spans is not None:
        places = [0, *(place for span in row.spans for place in span), len(row.ids)]
        parts = [tokenizer.decode(row.ids[start:stop]) if start < stop else "" for start, stop in pairwise(places)]
        pieces = [(text, number % 2 == 1) for number, text in enumerate(parts) if text]
        return _in_pieces(row.item, pieces, truncated=row.truncated)
    masked, trained = row.ids[: row.labels_from], row.ids[row.labels_from :]
    return Shown(
        item=row.item,
        masked=tokenizer.decode(masked),
        trained=tokenizer.decode(trained) if trained else "",
        label=row.label,
        truncated=row.truncated,
    )


# ----------------------------------------------------------------------------------------------------------- drawing


def _draw(found: Mapping[str, Any]) -> None:
    for number, row in enumerate(found["rows"], start=1):
        typer.echo(f"{'' if number == 1 else chr(10)}--- row {number} ({row['item'][:12]})")
        typer.echo(marked(Shown(**row), colours=_colours()))
    typer.echo("")
    if "histogram" in found:
        from peftlab.rows.lengths import Bin

        for line in bars([Bin(**one) for one in found["histogram"]], limit=found["limit"]):
            typer.echo(line)
        typer.echo("")
    tables.write_pairs(_pairs(found))


def marked(row: Shown, *, colours: bool) -> str:
    """A row's text with what the loss is taken on in [[ ]], and where it was cut off."""
    pieces = row.pieces or ((row.masked, False), (row.trained, True))
    texts = [
        _learnt(f"[[{_visible(text)}]]", colours) if learnt and text else _visible(text) for text, learnt in pieces
    ]
    if row.label is not None:
        texts.append(_learnt(f"[[label {row.label}]]", colours))
    return f"{''.join(texts)}{' (cut off here)' if row.truncated else ''}"


def _learnt(text: str, colours: bool) -> str:
    return typer.style(text, fg="green", bold=True) if colours else text


def bars(found: Sequence[Bin], *, limit: int) -> list[str]:
    """A histogram as text, one line a bin; the bin that the limit falls into says so."""
    most, total = max(one.rows for one in found), sum(one.rows for one in found)
    wide = len(str(found[-1].high))
    lines = ["tokens per row, before anything is cut off"]
    for one in found:
        bar = "#" * -(-one.rows * _BAR_CHARACTERS // most)
        here = "  <- data.max_length" if one.low <= limit <= one.high else ""
        share = units.share(one.rows, total)
        lines.append(f"{one.low:>{wide}} to {one.high:>{wide}}  {bar:<{_BAR_CHARACTERS}}  {one.rows} ({share}){here}")
    return lines


def _pairs(found: Mapping[str, Any]) -> dict[str, tables.Cell]:
    parts = ", ".join(f"{count} {name}" for name, count in found["parts"].items())
    pairs: dict[str, tables.Cell] = {"rows": parts + (", part of the data" if found["partial"] else "")}
    if "lengths" in found:
        pairs.update(_length_pairs(found, found["lengths"]))
    overlap = found["overlap"]
    pairs["test rows in training"] = _overlap_text(overlap, found["parts"].get("test", 0))
    if "valid" in found["parts"]:
        pairs["validation rows in training"] = _overlap_text(overlap["valid"], found["parts"]["valid"])
    if found["notes"]:
        pairs["note"] = "\n".join(found["notes"])
    return pairs


def _length_pairs(found: Mapping[str, Any], of: Mapping[str, Any]) -> dict[str, tables.Cell]:
    pairs: dict[str, tables.Cell] = {}
    if of["rows"] < of["available"]:
        pairs["looked at"] = f"{of['rows']} of {of['available']} training rows, evenly spaced; --all takes every row"
    pairs["tokens per row"] = (
        f"{of['shortest']} to {of['longest']}, mean {units.number(of['mean'])}, median {of['median']}, "
        f"95 % at most {of['p95']}, 99 % at most {of['p99']}"
    )
    cut = f"{of['truncated']} of {of['rows']} rows ({units.share(of['truncated'], of['rows'])})"
    pairs["cut off"] = f"{cut} at data.max_length={found['limit']}"
    if of["label_tokens"] is None:
        pairs["loss on"] = "the label of each row"
    else:
        share = units.share(of["label_tokens"], of["tokens"])
        pairs["loss on"] = (
            f"{of['label_tokens']} of {of['tokens']} tokens ({share}), data.loss_mask={found['loss_mask']}"
        )
        if of["rows_without_labels"]:
            pairs["without loss"] = f"{of['rows_without_labels']} rows: nothing of their target is within the limit"
    pairs.update(_turn_pairs(found["turns"]))
    orders = ", ".join(
        f"{order}{' (as declared)' if order == found['order'] else ''} {units.share(share, 1)}"
        for order, share in found["padding"].items()
    )
    pairs["padding"] = f"{orders}; {found['batch_size']} rows a batch"
    return pairs


def _turn_pairs(turns: Mapping[str, Any]) -> dict[str, tables.Cell]:
    """Of conversations: who wrote them, and what a reader of the rows should know."""
    if not turns:
        return {}
    by = {"tokenizer": "the tokenizer's chat template", "task": "the task's plain turns"}[turns["written_by"]]
    said = {
        "rows_with_markers": "rows in which somebody says a special token, which is read as one",
        "rows_with_lost_turns": "rows of which the chat template drops a turn",
        "boundary_rows": "rows tokenised in pieces, as a turn would merge with what stands before it",
    }
    odd = [f"{what}: {turns[name]}" for name, what in said.items() if turns[name]]
    return {"turns": "; ".join([f"{turns['assistant_turns']} learnt, written in {by}", *odd])}


def _overlap_text(shares: Mapping[str, Any], count: int) -> str:
    if shares["exact"] is None:
        return f"not known: {shares['reason']}"
    exact, runs = shares["exact_items"], shares["ngram13_items"]
    return (
        f"{exact} of {count} ({units.share(exact, count)}) by their whole text, "
        f"{runs} ({units.share(runs, count)}) by 13 words in a row"
    )


def _visible(text: str) -> str:
    """Text whose control characters cannot steer a terminal."""
    return "".join(sign if sign in "\n\t" or unicodedata.category(sign) != "Cc" else ascii(sign)[1:-1] for sign in text)


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def patience(text: Callable[[], str], *, after: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Say on stderr what is going on, when the block takes longer than some seconds."""
    done = threading.Event()

    def speak() -> None:
        wait = after
        while not done.wait(wait):
            print(text(), file=sys.stderr, flush=True)
            wait = REPEAT_SECONDS

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()
