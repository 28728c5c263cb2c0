"""Where the rows of a part come from: a data set, a local folder or file, or a generator; which, and how many.

Reads no rows (`rows/sources.py` does); says what of a source is in a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Strict, model_validator

from peftlab.config import references
from peftlab.config.settings import Settings, declared, setting
from peftlab.digest import digest, file_digest
from peftlab.errors import UserError

ROW_FILES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
"""Endings of files with rows: JSON Lines, the same compressed, one JSON list, CSV with a header, or Parquet."""
Row = Mapping[str, Any]
Names = Annotated[tuple[str, ...], Strict(False)]
"""A list in YAML, a tuple here."""
Span = Annotated[tuple[int, int], Strict(False)]
"""Two numbers, both included."""


class Source(Settings):
    """Where rows come from: a data set (hub id or local folder) or a generator; which of them, and how many."""

    dataset: str | None = setting(None, "hub id, or a folder or file starting with ./ or /")
    generator: str | None = setting(None, "name of a reasoning-gym generator")
    version: str | None = setting(None, "version of the generator library whose rows are meant")
    options: dict[str, Any] = setting({}, "options of the generator")
    seed: int | None = setting(None, "the generator's seed")
    size: int | None = setting(None, "rows to generate", gt=0)
    subset: str | Names | None = setting(None, "the data set's config name, or several, whose rows are joined in order")
    revision: str | None = setting(None, "commit of the data set")
    split: str | None = setting(None, "split, with an optional slice: train, train[:1000], train[10:20]")
    max_characters: int | None = setting(
        None, "leave longer rows out, before any draw: characters of the task's columns, joined by a space", gt=0
    )
    between: dict[str, Span] = setting(
        {}, "column of the data: smallest and largest number; other rows are left out before any draw"
    )
    sample: int | float | None = setting(None, "rows drawn at random by data_seed: a count, or a ratio below 1")
    sample_by: Literal["rank", "numpy"] = setting(
        "rank", "how they are drawn: by rank, in file order; or the first of numpy's legacy shuffle, as they come"
    )
    partial: bool = setting(False, "whether these rows are only a part of those that they stand for", key="none")

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        if (self.dataset is None) == (self.generator is None):
            raise ValueError("give either 'dataset' or 'generator'")
        if self.generator is not None and (self.seed is None or self.size is None):
            raise ValueError("a generator needs 'seed' and 'size'")
        if self.dataset is not None and self.split is None:
            raise ValueError("a dataset needs 'split'")
        foreign: tuple[str, ...] = (
            ("version", "options", "seed", "size") if self.dataset else ("subset", "revision", "split", "between")
        )
        if self.dataset is not None and references.is_local(self.dataset):
            foreign += ("subset", "revision")
        given = [name for name in foreign if getattr(self, name) not in (None, {})]
        if given:
            kind = "generator" if self.generator else "local file or folder" if "subset" in foreign else "dataset"
            raise ValueError(f"{', '.join(given)} has no meaning for a {kind}")
        if self.subset == ():
            raise ValueError("'subset' is an empty list")
        if self.sample is not None and self.sample <= 0:
            raise ValueError("'sample' must be above 0")
        if isinstance(self.sample, float) and self.sample >= 1:
            raise ValueError("'sample' is a count (an integer) or a ratio below 1")
        if self.sample_by != "rank" and self.sample is None:
            raise ValueError("'sample_by' says how 'sample' is drawn, which is not given")
        return self

    def each(self) -> list[Source]:
        """One source for every subset that is named."""
        if not isinstance(self.subset, tuple):
            return [self]
        return [self.model_copy(update={"subset": name}) for name in self.subset]

    @property
    def pool(self) -> str:
        """Names the set of rows that this source draws from; parts with equal pools must be disjoint."""
        if self.generator is not None:
            return digest({"generator": self.generator, "options": self.options})
        assert self.dataset is not None
        split = None if self.dataset.endswith(ROW_FILES) and references.is_local(self.dataset) else self.split_name
        return digest({"dataset": self.dataset, "subset": self.subset, "split": split})

    @property
    def split_name(self) -> str:
        """The split without its slice."""
        return (self.split or "").partition("[")[0]

    def identity(self) -> dict[str, Any]:
        """What is declared; a local file is named by its content, wherever it lies."""
        plain = declared(self, "train")
        path = local_file(self)
        if path is not None:
            plain.update(dataset="file", content=file_digest(path))
        return plain


def local_file(source: Source) -> Path | None:
    """The file that a local source reads its split from, or None for a hub id or a generator.

    Raises:
        UserError: No such file or folder, no file for the split, or several.
    """
    if source.dataset is None or not references.is_local(source.dataset):
        return None
    path = Path(source.dataset).expanduser()
    try:
        if path.is_file() and path.name.endswith(ROW_FILES):
            return path
        if not path.is_dir():
            raise UserError(f"no data at {path}", fix=f"give a folder, or a file ending in {', '.join(ROW_FILES)}")
        present = sorted(file.name for file in path.iterdir() if file.name.endswith(ROW_FILES))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}", fix="check the path and its permissions") from None
    found = [name for name in present if name in {source.split_name + ending for ending in ROW_FILES}]
    if len(found) > 1:
        raise UserError(f"{path} holds {' and '.join(found)}: which is the split?", fix="keep one of them")
    if not found:
        shown = ", ".join(present) or "none"
        raise UserError(
            f"{path} has no file for split '{source.split_name}' (files with rows: {shown})",
            fix=f"add {source.split_name}{ROW_FILES[0]}, or name another split",
        )
    return path / found[0]
