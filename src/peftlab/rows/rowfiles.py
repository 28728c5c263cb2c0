"""Read the rows of one file: JSON Lines, a JSON list, CSV or Parquet.

Gives plain rows, whole files at a time; which file holds a split is `task.py`'s work, which rows of it are meant is
`data.py`'s. CSV knows only text, so a number in it stays the text that stands there.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peftlab.config.source import Row
from peftlab.errors import UserError

_OTHER_SEPARATORS = (";", "\t", "|")
_LONGEST_FIELD = 16_000_000
"""Characters of a CSV field; beyond it a quote was hardly ever closed."""


def read_rows(path: Path) -> list[Row]:
    """Rows of a file, by its ending; what is gzipped is unpacked.

    Raises:
        UserError: The file cannot be read, or a line is no row; names file and line.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        if path.name.endswith(".parquet"):
            return _rows_of_parquet(path)
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            if path.name.endswith(".json"):
                return _rows_of_list(file.read(), path)
            rows = _rows_of_csv if path.name.endswith(".csv") else _rows_of_lines
            return list(rows(file, path))
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}", fix="check the file and its permissions") from None


# --------------------------------------------------------------------------------------------------------- JSON


def _rows_of_lines(lines: Any, path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}")


def _rows_of_list(content: bytes, path: Path) -> list[Row]:
    parsed = _parsed(content, str(path))
    if not isinstance(parsed, list):
        raise UserError(f"{path} holds no list of rows", fix="write [{...}, {...}], or use JSON Lines (.jsonl)")
    return [_row(value, f"{path}, row {number}") for number, value in enumerate(parsed, start=1)]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _parsed(content: bytes, where: str) -> Any:
    try:
        value = _DECODER.decode(content.decode("utf-8-sig").strip())
        if b"\\ud" in content or b"\\uD" in content:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {error}", fix="each row is one JSON object, in UTF-8") from None
    return value


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: a {type(value).__name__}, not an object", fix='write rows as {"column": value, ...}')
    return value


# ---------------------------------------------------------------------------------------------------------- CSV


def _rows_of_csv(file: Iterable[bytes], path: Path) -> Iterator[Row]:
    """Rows under the names in the first line (RFC 4180: commas, double quotes); line ends of any system."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(_text_lines(file, path), strict=True)
    try:
        header = _header(next(reader, []), path)
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} values under {len(header)} columns",
                    fix="give every row a value for each column, and put values with commas in double quotes",
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}", fix="close every quote, and double the quotes inside a value"
        ) from None


def _text_lines(file: Iterable[bytes], path: Path) -> Iterator[str]:
    """Lines as text; the whole file is UTF-8, with or without its mark, and nothing is guessed."""
    for number, line in enumerate(file, start=1):
        if b"\0" in line:
            raise UserError(f"{path}, line {number}: a zero byte: this is no UTF-8 text", fix="save it as UTF-8")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not UTF-8: {error.reason} at byte {error.start}", fix="save it as UTF-8"
            ) from None


def _header(names: list[str], path: Path) -> list[str]:
    if not names:
        raise UserError(f"{path} has no header", fix="name the columns in the first line")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled or "" in names:
        what = f"names {', '.join(doubled)} twice" if doubled and doubled != [""] else "holds an empty name"
        raise UserError(f"{path}: the header {what}", fix="give each column a name of its own in the first line")
    if len(names) == 1 and any(sign in names[0] for sign in _OTHER_SEPARATORS):
        raise UserError(f"{path}: the header is one name, {names[0]!r}", fix="separate columns by commas")
    return names


# ------------------------------------------------------------------------------------------------------ Parquet


def _rows_of_parquet(path: Path) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"reading {path} needs the library pyarrow", fix="pip install 'peftlab[parquet]', or save it as JSON Lines"
        ) from None
    try:
        rows: list[Row] = parquet.read_table(str(path)).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"cannot read {path}: {error}", fix="check that it is a whole Parquet file") from None
    return rows
