"""Find items of one set of rows in another: texts that are equal, texts inside others, and shared runs of words.

A row is a tuple of texts, one for each column. Knows nothing of tasks; what is allowed is decided in `data.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

Text = tuple[str, ...]

NGRAM = 13
"""Words in a run, as in the contamination checks of the large language model reports."""

LEAST = 5
"""Words that a text must have to be looked for inside others."""

_WORD = re.compile(r"\w+")


def normal(columns: Iterable[str]) -> Text:
    """The texts without surrounding and repeated white space, in one case."""
    return tuple(" ".join(column.split()).casefold() for column in columns)


def equal(items: Sequence[Text], others: Iterable[Text]) -> list[int]:
    """Positions in `items` of those whose texts all equal those of one of `others`; both are `normal`.

    An item without any text (a blank line) is no repetition of anything.
    """
    known = set(others)
    return [position for position, item in enumerate(items) if item in known and any(item)]


def standing(items: Sequence[Text], others: Iterable[Text], *, size: int = LEAST) -> Iterator[tuple[int, int]]:
    """Positions (in `items`, in `others`) where an item stands whole in another text: each column as a run of words.

    So a question is found inside an instruction that holds it with its options. An item in which no column has `size`
    words is not looked for: a few words stand in anything. It is looked for by its rarest run of so many words.
    """
    columns = [[words for words in map(_words, item) if words] for item in items]
    longest = [max(item, key=len, default=[]) for item in columns]
    counts = Counter(run for words in longest for run in _runs(words, size))
    wanted: dict[str, list[int]] = {}
    for position, words in enumerate(longest):
        if len(words) >= size:
            wanted.setdefault(min(_runs(words, size), key=counts.__getitem__), []).append(position)
    ends = {(words[0], words[-1]) for words in map(str.split, wanted)}
    for place, other in enumerate(others):
        words = _words("\n".join(other))
        near = {
            position
            for start, pair in enumerate(zip(words, words[size - 1 :], strict=False))
            if pair in ends
            for position in wanted.get(" ".join(words[start : start + size]), ())
        }
        text = f" {' '.join(words)} " if near else ""
        for position in sorted(near):
            if all(f" {' '.join(column)} " in text for column in columns[position]):
                yield position, place


def sharing(items: Sequence[Text], others: Iterable[Text], *, size: int = NGRAM) -> list[int]:
    """Positions in `items` of those that share a run of `size` words with any column of one of `others`.

    Words are letters and digits, in one case; a run does not cross columns. An item in which no column has `size`
    words counts when one of `others` has a column with just the same words, for each of its columns that has any.
    """
    runs: dict[str, list[int]] = {}
    wholes: dict[str, list[int]] = {}
    missing: list[int] = []
    for position, item in enumerate(items):
        words = [found for found in map(_words, item) if found]
        long = [found for found in words if len(found) >= size]
        missing.append(0 if long else len({" ".join(found) for found in words}))
        for run in {run for found in long for run in _runs(found, size)}:
            runs.setdefault(run, []).append(position)
        if not long:
            for whole in {" ".join(found) for found in words}:
                wholes.setdefault(whole, []).append(position)
    return sorted(_found(others, runs, wholes, missing, size))


def _found(
    others: Iterable[Text], runs: dict[str, list[int]], wholes: dict[str, list[int]], missing: list[int], size: int
) -> set[int]:
    found: set[int] = set()
    ends = {(words[0], words[-1]) for words in map(str.split, runs)}  # far cheaper to look up than whole runs
    for other in others:
        short: dict[int, int] = {}
        for words in {column: _words(column) for column in other}.values():
            if len(words) < size:
                for position in wholes.get(" ".join(words), ()):
                    short[position] = short.get(position, 0) + 1
                continue
            for start, pair in enumerate(zip(words, words[size - 1 :], strict=False)):
                if pair in ends:
                    found.update(runs.pop(" ".join(words[start : start + size]), ()))
        found.update(position for position, count in short.items() if count == missing[position])
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: Sequence[str], size: int) -> Iterator[str]:
    return (" ".join(words[start : start + size]) for start in range(len(words) - size + 1))
