"""The filter language of `--where`: which runs to look at, as `method == "lora" and exact_match > 0.3`.

A filter is parsed and never evaluated: Python's own parser gives a tree, of which only comparisons `name op literal`,
joined by and, or, not, & and |, are taken over; anything else is refused with its place. Names are those of
`columns.values`; a dotted name is one name, nothing is looked up inside a value.

A value that is missing compares false with every literal but None: `forgetting == None` finds the runs without it, and
`not forgetting > 0.1` finds them too, as `not` turns false into true.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftlab.errors import UserError, nearest
from peftlab.records.record import Record
from peftlab.verdicts import columns

MAX_CHARACTERS = 10_000
MAX_DEPTH = 100

Value = str | float | bool | None

_OPERATORS: Mapping[type[ast.cmpop], str] = {
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
}
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_FORM = "write comparisons like name > 0.3 or name in ['a', 'b'], joined by and, or, not"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`name op literal`.

    Attributes:
        literals: One, or those of the list after `in`.
        place: Where the name stands in the expression, in characters.
    """

    name: str
    operator: str
    literals: tuple[Value, ...]
    place: int = 0


@dataclass(frozen=True, kw_only=True)
class Not:
    """The opposite of a filter."""

    inner: Filter


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Several filters, of which all (`and`) or one (`or`) must hold."""

    by: Literal["and", "or"]
    parts: tuple[Filter, ...]


Filter = Comparison | Not | Joined


# ------------------------------------------------------------------------------------------------------- parsing


def parse(expression: str) -> Filter:
    """The filter that a text describes.

    Raises:
        UserError: It is none; the message shows the place.

    Example:
        >>> parse("seed in [0, 1]")
        Comparison(name='seed', operator='in', literals=(0, 1), place=0)
    """
    text = _line(expression)
    if not text:
        raise UserError("--where: the filter is empty", fix=_FORM)
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"--where: the filter has {len(text)} characters", fix=f"keep it below {MAX_CHARACTERS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes and "is" beside a number: what matters is refused below
            tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise _refused(text, max((error.offset or 1) - 1, 0), f"not a filter: {_short(error.msg)}") from None
    except (ValueError, MemoryError, RecursionError):
        reason = "it is nested too deeply, or holds characters that are no text"
        raise _refused(text, None, f"not a filter: {reason}") from None
    return _Parser(text).filter(tree.body)


def _line(expression: str) -> str:
    """A filter may be written over several lines."""
    return " ".join(expression.replace("\r", "\n").split("\n")).strip()


class _Parser:
    """Takes over what the language has from a syntax tree, and refuses the rest with its place in the text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def filter(self, node: ast.expr, depth: int = 0) -> Filter:
        """The filter at a node."""
        if depth > MAX_DEPTH:
            raise self._refused(node, "nested too deeply")
        if isinstance(node, ast.BoolOp):
            parts = tuple(self.filter(part, depth + 1) for part in node.values)
            return Joined(by="and" if isinstance(node.op, ast.And) else "or", parts=parts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            parts = (self.filter(node.left, depth + 1), self.filter(node.right, depth + 1))
            return Joined(by="and" if isinstance(node.op, ast.BitAnd) else "or", parts=parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return Not(inner=self.filter(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if isinstance(node, ast.Name | ast.Attribute):
            raise self._refused(node, "a comparison is missing", fix="compare the column with a value: name == True")
        raise self._refused(node, f"{_called(node)} is not allowed")

    def _comparison(self, node: ast.Compare) -> Comparison:
        mixed = [part for part in (node.left, *node.comparators) if isinstance(part, ast.BinOp)]
        if any(isinstance(part.op, ast.BitAnd | ast.BitOr) for part in mixed):
            raise self._refused(
                mixed[0], "& and | bind tighter than a comparison", fix="write and, or; or use parentheses"
            )
        if len(node.ops) > 1:
            raise self._refused(
                node.comparators[1], "a comparison follows a comparison", fix="write: 1 < name and name < 3"
            )
        sign = _OPERATORS.get(type(node.ops[0]))
        if sign is None:
            raise self._refused(node.comparators[0], "'is' is not allowed", fix="write == or !=")
        name = self._name(node.left)
        right = node.comparators[0]
        if sign in ("in", "not in"):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                raise self._refused(right, f"after '{sign}' a list is needed", fix=f"write: {name} {sign} ['a', 'b']")
            literals = tuple(self._literal(item) for item in right.elts)
        else:
            literals = (self._literal(right),)
        if sign in _ORDER and (literals[0] is None or isinstance(literals[0], bool)):
            raise self._refused(right, f"nothing is {sign} {literals[0]}", fix="use == or !=")
        return Comparison(name=name, operator=sign, literals=literals, place=self._place(node.left))

    def _name(self, node: ast.expr) -> str:
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute) and len(parts) < MAX_DEPTH:
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            return ".".join([inner.id, *reversed(parts)])
        if isinstance(node, ast.Constant):
            raise self._refused(node, "a comparison begins with the name of a column", fix="turn it round: name > 0.3")
        raise self._refused(inner, f"{_called(inner)} is not allowed: a comparison begins with the name of a column")

    def _literal(self, node: ast.expr) -> Value:
        if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
            number = self._literal(node.operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                if isinstance(node.op, ast.USub):
                    return -number
                if isinstance(node.op, ast.UAdd):
                    return number
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
            return node.value
        elif isinstance(node, ast.Name):
            known = {"true": "True", "false": "False", "null": "None", "none": "None"}.get(node.id.lower())
            fix = f"write {known}" if known else f"write text in quotes: '{node.id}'"
            raise self._refused(node, f"{node.id} is no literal", fix=fix)
        fix = "compare with a number, 'text', True, False or None"
        raise self._refused(node, f"{_called(node)} is no literal", fix=fix)

    def _refused(self, node: ast.expr, reason: str, *, fix: str = _FORM) -> UserError:
        return _refused(self._text, self._place(node), reason, fix=fix)

    def _place(self, node: ast.expr) -> int:
        """Offsets of syntax trees count bytes, and there is one line."""
        return len(self._text.encode()[: node.col_offset].decode(errors="ignore"))


_CALLED: Mapping[type[ast.expr], str] = {
    ast.Call: "a call",
    ast.Subscript: "a subscript",
    ast.Attribute: "an attribute",
    ast.Constant: "a bare value",
    ast.BinOp: "arithmetic",
    ast.UnaryOp: "a sign or ~",
    ast.Lambda: "a lambda",
    ast.IfExp: "a conditional",
    ast.JoinedStr: "a formatted text",
    ast.NamedExpr: "an assignment",
    ast.List: "a list",
    ast.Tuple: "a tuple",
    ast.Set: "a set",
    ast.Dict: "a dictionary",
    ast.Compare: "a comparison",
    ast.BoolOp: "a condition",
}


def _called(node: ast.expr) -> str:
    return _CALLED.get(type(node), "this")


def _refused(text: str, place: int | None, reason: str, *, fix: str = _FORM) -> UserError:
    return UserError(f"--where: {reason}{_pointer(text, place)}", fix=fix)


def _short(message: str) -> str:
    """What Python says about a syntax error, without its advice for programmers."""
    return message.partition(" (")[0].partition(";")[0].partition(". ")[0][:80]


def _pointer(text: str, place: int | None) -> str:
    """The text around a place, on one line, with a mark below it."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text)
    if place is None:
        return f"\n  {shown[:60]}{'...' if len(shown) > 60 else ''}"
    start = max(0, place - 50)
    return f"\n  {shown[start : place + 50]}\n  {' ' * (min(place, len(shown)) - start)}^"


# ------------------------------------------------------------------------------------------------------ matching


def comparisons(found: Filter) -> Iterator[Comparison]:
    """Every comparison in a filter, from left to right."""
    match found:
        case Comparison():
            yield found
        case Not(inner=inner):
            yield from comparisons(inner)
        case Joined(parts=parts):
            for part in parts:
                yield from comparisons(part)


def matches(found: Filter, row: Mapping[str, Any]) -> bool:
    """Whether a row of named values passes a filter; a name that the row does not have is a missing value."""
    match found:
        case Joined(by=by, parts=parts):
            return (all if by == "and" else any)(matches(part, row) for part in parts)
        case Not(inner=inner):
            return not matches(inner, row)
        case Comparison():
            return _holds(found, row.get(found.name))


def _holds(comparison: Comparison, value: Any) -> bool:
    literals, sign = comparison.literals, comparison.operator
    if sign in _ORDER:
        return _kind(value) == _kind(literals[0]) and _ORDER[sign](value, literals[0])
    if value is None and None not in literals:
        return False
    found = any(_kind(value) == _kind(literal) and value == literal for literal in literals)
    return found == (sign in ("==", "in"))


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "yes or no"
    if isinstance(value, int | float):
        return "numbers"
    return "nothing" if value is None else "text" if isinstance(value, str) else "lists"


def select(records: Sequence[Record], expression: str, *, task: str | None = None) -> list[Record]:
    """The records that pass a filter.

    Args:
        records: Any.
        expression: In the language above.
        task: Whose metrics are meant by a bare metric's name; None: those of each run's own task.

    Raises:
        UserError: It is no filter, names a column that no record has, or compares text with numbers.

    Example:
        >>> select([], "method == 'lora' and exact_match > 0.3")
        []
    """
    found = parse(expression)
    rows = [columns.values(record, task) for record in records]
    if rows:
        _check(found, rows, _line(expression))
    return [record for record, row in zip(records, rows, strict=True) if matches(found, row)]


_FIXES = {
    "text": "write the value in quotes",
    "yes or no": "write True or False",
    "numbers": "write a number, without quotes",
}


def _check(found: Filter, rows: Sequence[Mapping[str, Any]], text: str) -> None:
    known = {name for row in rows for name in row}
    for comparison in comparisons(found):
        name = comparison.name
        if name not in known:
            guess = nearest(name, known)
            fix = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(sorted(known)[:40])}, ..."
            raise _refused(text, comparison.place, f"unknown column '{name}'", fix=fix)
        kinds = {_kind(row.get(name)) for row in rows} - {"nothing"}
        for literal in comparison.literals:
            if kinds and literal is not None and _kind(literal) not in kinds:
                holds = " and ".join(sorted(kinds))
                fix = _FIXES.get(holds, "compare another column")
                raise _refused(text, comparison.place, f"'{name}' holds {holds}, never {literal!r}", fix=fix)
