"""Writes what benchmarks/methods.py measured: src/peftlab/methods/measured.yaml, and docs/methods.md for people."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import methods  # noqa: E402

from peftlab.cli import catalogue, environment  # noqa: E402
from peftlab.config.settings import read_yaml  # noqa: E402

TABLE = ROOT / "src" / "peftlab" / "methods" / "measured.yaml"
PAGE = ROOT / "docs" / "methods.md"
COLUMNS = (
    "smollm2 float32",
    "smollm2 bfloat16",
    "minilm float32",
    "minilm bfloat16",
    "tiny-llama float32",
    "tiny-bert float32",
    "tiny-llama bfloat16",
    "tiny-llama bnb-int8",
    "tiny-llama bnb-nf4",
    "tiny-llama torchao-int8",
)
SHORT = {"exact": "=", "stated": "stated", "refused": "refused", "exempt": "-", "broken": "BROKEN"}
ROUNDED_AWAY = "merging into quantised weights"
SAME = 1e-6
"""Two rows whose losses are this close (relatively) in every step are the same computation."""
INVARIANTS = (
    "gradients", "loss", "frozen", "start", "differs", "reload", "plain peft", "merge", "disable", "neighbours",
    "resume", "seed", "second", "gradient checkpointing", "generates", "own loss",
)  # fmt: skip
SHOWN = (
    "start",
    "reload",
    "plain peft",
    "merge",
    "disable",
    "resume",
    "neighbours",
    "second",
    "gradient checkpointing",
    "generates",
)


def code(finding: Mapping[str, Any]) -> str | float:
    """A finding as it stands in the table: `=`, a figure, or a word."""
    if finding["verdict"] == "within":
        return float(f"{finding['figure']:.1e}")
    return SHORT[finding["verdict"]]


def write(folder: Path) -> None:
    """Read every file of a folder, put it over what the table holds, and write table and page."""
    rows: dict[str, dict[str, Any]] = {}
    if TABLE.is_file():
        rows = {name: dict(row) for name, row in read_yaml(TABLE)["rows"].items()}
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    by_place = {(cell["row"], cell["model"], cell["dtype"]): cell for cell in cells}
    for cell in cells:
        if cell["row"] not in methods.rows():
            continue
        row = rows.setdefault(cell["row"], {})
        for key in ("peft_type", "method", "rate", "needs"):
            if cell.get(key):
                row[key] = cell[key]
        if cell.get("of"):
            row["of"] = cell["of"]
        column = f"{cell['model']} {cell['dtype']}"
        row[column] = entry(cell, by_place.get((cell.get("of"), cell["model"], cell["dtype"])))
    for row in rows.values():
        row.setdefault("peft_type", None)
    ordered = {name: rows[name] for name in methods.rows() if name in rows}
    versions = {name: environment.versions()[name] for name in ("peft", "transformers", "torch")}
    TABLE.write_text(table_text(versions, ordered), encoding="utf-8")
    PAGE.write_text(page_text(versions, ordered), encoding="utf-8")
    print(f"{len(ordered)} rows: {TABLE.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


def entry(cell: Mapping[str, Any], parent: Mapping[str, Any] | None) -> dict[str, Any]:
    """One cell of the table."""
    for word in ("refused", "crashed", "died"):
        if word in cell:
            said = str(cell[word]).strip().splitlines()[-1 if word == "crashed" else 0]
            return {word: plain(said)}
    findings = cell["findings"]
    if "training" in findings:
        return {"broken": plain(findings["training"]["text"])}
    entry: dict[str, Any] = {name: code(findings[name]) for name in INVARIANTS if name in findings}
    entry["differs from parent"] = differs(cell, parent)
    before, after = (float(f"{value:.4g}") for value in cell["loss"])
    entry |= {"trainable": cell["trainable"], "before": before, "after": after}
    entry |= {"step seconds": float(f"{cell['seconds_per_step']:.2g}"), "seconds": round(cell["seconds"], 1)}
    entry["kilobytes"] = round(cell["bytes"] / 1000)
    notes = {
        name: plain(finding["text"])
        for name, finding in findings.items()
        if finding["verdict"] in ("refused", "broken") or (finding["verdict"] == "stated" and name in SHOWN)
        if ROUNDED_AWAY not in finding["text"]
    }
    return {**entry, **({"notes": notes} if notes else {})}


def plain(text: str) -> str:
    """A reason without the place and the figure that it was found at, so that the same one stands once."""
    text = " ".join(text.split())
    text = re.sub(r"^\S*adapter_config\.json: ", "", text)
    text = re.sub(r"^.*, on purpose: ", "on purpose: ", text)
    return re.sub(r"(?<=[ (])/\S+", "...", text)[:200]


def differs(cell: Mapping[str, Any], parent: Mapping[str, Any] | None) -> str:
    """Whether a variant's losses are not its parent's; else it was not exercised."""
    if not cell.get("of"):
        return "-"
    if parent is None or "losses" not in parent:
        return "parent not measured"
    pairs = zip(cell["losses"], parent["losses"], strict=True)
    same = all(abs(one - other) <= SAME * abs(other) for one, other in pairs)
    return "not exercised" if same else "yes"


def broken(entry: Mapping[str, Any]) -> list[str]:
    """What does not hold in a cell."""
    odd = [name for name, value in entry.items() if value == "BROKEN"]
    return odd or [word for word in ("refused", "crashed", "died", "broken") if word in entry]


def table_text(versions: Mapping[str, str], rows: Mapping[str, Any]) -> str:
    """The table as YAML: one line for each row and column."""
    lines = [
        "# Written by benchmarks/methods.py --write; measured, not declared. docs/methods.md says what the words mean.",
        f"versions: {json.dumps(dict(versions))}",
        "rows:",
    ]
    for name, row in rows.items():
        lines.append(f"  {json.dumps(name)}:")
        lines += [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items()]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------------- page


def trains(entry: Mapping[str, Any] | None) -> bool:
    """Trains with a falling loss, and reloads."""
    return entry is not None and all(well(entry.get(key)) for key in ("gradients", "loss", "frozen", "reload"))


def well(value: Any) -> bool:
    """A figure, or a word for something that holds."""
    return isinstance(value, float) or value in ("=", "stated", "-")


def merges(entry: Mapping[str, Any] | None) -> bool:
    """Merges within its t."""
    return entry is not None and (isinstance(entry.get("merge"), float) or entry.get("merge") == "=")


def coverage(rows: Mapping[str, Any]) -> list[list[str]]:
    """Counts over peft's types, for each column."""
    known = {name.lower() for name in catalogue.peft_types()}
    types = {name: row for name, row in rows.items() if name in known}
    found = []
    for column in COLUMNS:
        entries = {name: row[column] for name, row in types.items() if column in row}
        if entries:
            good = sum(trains(entry) for entry in entries.values())
            resumed = sum(well(entry.get("resume")) for entry in entries.values())
            merged = sum(merges(entry) for entry in entries.values())
            whole = sum(not broken(entry) for entry in entries.values())
            few_bits = any(column.endswith(base) for base in methods.FULL)  # asked of them: train and reload
            numbers = (good, *(("-",) * 3 if few_bits else (resumed, merged, whole)))
            total = f" of {len(types)}" + (f", {len(entries)} measured" if len(entries) < len(types) else "")
            found.append([column, *(f"{number}{total}" if number != "-" else "-" for number in numbers)])
    return found


def page_text(versions: Mapping[str, str], rows: Mapping[str, Any]) -> str:
    """The page."""
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [
        INTRODUCTION.format(versions=named),
        markdown(
            ("model, precision", "train and reload", "resume byte for byte", "merge", "nothing broken"), coverage(rows)
        ),
    ]
    for column in COLUMNS:
        present = {name: row[column] for name, row in rows.items() if column in row}
        if present and not column.startswith("tiny"):
            parts += [
                f"\n## {column}\n",
                markdown(HEAD, [line(name, rows[name], entry) for name, entry in present.items()]),
            ]
    parts += ["\n## What is not so\n", *notes(rows)]
    return "\n".join(parts) + "\n"


HEAD = ("method", "trainable", "loss", "s a step", "KB", *SHOWN, "variant", "s in all")


def line(name: str, row: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    """One row of a column's table."""
    for word in ("refused", "crashed", "died", "broken"):
        if word in entry:
            return [name, f"{word}: see below", *[""] * (len(HEAD) - 2)]
    shown = [str(entry.get(key, "")) for key in SHOWN]
    if entry.get("loss") == "BROKEN":
        shown[0] += " (loss rises)"
    return [
        name,
        f"{entry['trainable']:,}",
        f"{entry['before']:g} to {entry['after']:g}",
        f"{entry['step seconds']:g}",
        f"{entry['kilobytes']:,}",
        *shown,
        entry["differs from parent"],
        f"{entry['seconds']:g}",
    ]


def notes(rows: Mapping[str, Any]) -> list[str]:
    """Each refusal and each thing that is broken, with its reason; what several columns say stands once."""
    found = []
    for name, row in rows.items():
        said: dict[str, list[str]] = {}
        for column in COLUMNS:
            entry = row.get(column, {})
            told = {word: entry[word] for word in ("refused", "crashed", "died", "broken") if word in entry}
            for what, text in {**told, **entry.get("notes", {})}.items():
                said.setdefault(f"{what}: {text}", []).append(column)
        if said:
            found.append(f"* **{name}**")
            found += [f"    * {text} ({', '.join(columns)})" for text, columns in said.items()]
    return found


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)


INTRODUCTION = """# Methods, measured

What holds for each method of peft, its variants and ways to start: found by trying, with {versions}.
Written by `python benchmarks/methods.py --write`; `peftlab doctor EXPERIMENT` asks the same of your model and config.

Each row trains on four short rows again and again: three steps, a checkpoint, three more. `=` means equal to the last
bit; a number is the largest difference of a logit where it lies within the stated t (a share of the largest logit: 1e-4
in float32, 0.08 in bfloat16); a reload or a merge that is off by half of what the adapter does is broken, however small
that is. *stated* is so on purpose, with its reason; *refused* is said before anything is trained, or by peft; `-` does
not apply; **BROKEN** is wrong, and nothing here hides it. Losses show that gradients flow; they rank nothing.

* *start*: the output before step 1 is the base's. *reload*: saved, and loaded onto a fresh base as a run does it.
* *plain peft*: the saved folder loaded by peft alone. *merge*: merged into the base in float32, whatever it was trained
  in, the weights give the output of the adapter on that base; converted forms are compared there, too.
* *disable*: with the adapter switched off the output is the base's. *resume*: stopped at step 3 of 6 and taken up.
* *neighbours*: a row's output does not depend on its batch. *second*: a second adapter leaves the first alone.
* *variant*: its losses differ from its parent's; else it is *not exercised* here.

Bases of 8 and 4 bits were tried on a tiny random llama only: whether a method trains and comes back from its file.
Merging into them is refused, as it rounds the adapter away.

## Coverage

Of the types that peft offers (variants not counted):
"""
