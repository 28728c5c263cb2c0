"""`--where`: what the filter language takes, what it means, and that nothing else gets through."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli_material import a_record, evaluation, store, working_folder
from peftlab.cli import main
from peftlab.errors import UserError
from peftlab.records.record import Cost
from peftlab.verdicts import columns
from peftlab.verdicts.where import Comparison, comparisons, matches, parse, select

ROW: Mapping[str, Any] = {"method": "lora", "seed": 1, "score": 0.5, "shared": True, "optim.rate": 1e-3, "gone": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('method == "lora" and score > 0.3', True),
        ("method == 'ia3' or score >= 0.5", True),
        ("not method == 'lora'", False),
        ("(method == 'ia3') | (seed < 2)", True),
        ("(method == 'lora') & (seed < 1)", False),
        ("seed in [0, 1] and method not in ('ia3', 'full')", True),
        ("seed in {5}", False),
        ("seed in []", False),
        ("optim.rate <= +0.001 and score > -1", True),
        ("optim . rate == 1e-3", True),
        ("shared == True and shared != False", True),
        ("score == 0.5 and\n  (seed == 1)", True),
        # and before or; not before and
        ("method == 'lora' or seed == 9 and score == 9", True),
        ("not seed == 9 and score == 0.5", True),
        # what is missing compares false, and None finds it
        ("gone > 0 or gone <= 0 or gone == 0 or gone != 0 or gone in [0] or gone not in [0]", False),
        ("unheard > 0 or unheard != 'a'", False),
        ("gone == None and unheard == None and seed != None", True),
        ("gone in [None, 3] and seed not in [None]", True),
        ("not gone > 0", True),
        # yes is not 1, text is not a number
        ("shared == 1", False),
        ("seed == '1'", False),
        ("method > 3", False),
        ("method < 'm'", True),
    ],
)
def test_what_a_filter_means(text: str, expected: bool) -> None:
    assert matches(parse(text), ROW) is expected


@pytest.mark.parametrize(
    ("text", "reason", "place"),
    [
        ("__import__('os').system('x') == 1", "a call", 0),
        ("score > 1 and open('x')", "a call", 14),
        ("method.upper() == 'LORA'", "a call", 0),
        ("adapter['r'] > 1", "a subscript", 0),
        ("score > limit", "limit is no literal", 8),
        ("method == lora", "lora is no literal", 10),
        ("shared == true", "true is no literal", 10),
        ("0.1 < score", "begins with the name", 0),
        ("0 < score < 1", "a comparison follows a comparison", 12),
        ("score > 0 & seed < 1", "bind tighter", 8),
        ("score + 1 > 2", "arithmetic", 0),
        ("score > 1 + 1", "arithmetic", 8),
        ("method is 'lora'", "'is'", 10),
        ("method in 'lora'", "a list is needed", 10),
        ("seed == [1]", "a list is no literal", 8),
        ("seed in [other]", "other is no literal", 9),
        ("score > None", "nothing is > None", 8),
        ("score", "a comparison is missing", 0),
        ("True", "a bare value", 0),
        ("~(score > 1)", "a sign or ~", 0),
        ("lambda: 1", "a lambda", 0),
        ("(a := 1) == 1", "an assignment", 1),
        ("f'{score}' == 1", "a formatted text", 0),
        ("score == f'{open(1)}'", "a formatted text", 9),
        ("method == b'x'", "a bare value", 10),
        ("score > 1j", "a bare value", 8),
        ("score if seed else 1", "a conditional", 0),
        ("[x for x in 'a'] == 1", "this is not allowed", 0),
        ("method == 'lora", "unterminated string", 10),
        ("method == 'lora' and", "not a filter", None),
        ("(score > 1", "'(' was never closed", 0),
        ("score > 1)", "unmatched ')'", 9),
        ("score > 1; import os", "not a filter", 9),
        ("", "empty", None),
        ("score > 1\0", "not a filter", None),
        ("(" * 10_000 + "score > 1" + ")" * 10_000, "characters", None),
        ("(" * 3_000 + "score > 1" + ")" * 3_000, "not a filter", None),
        ("not " * 2_000 + "score > 1", "nested too deeply", None),
        ("score > " + "-" * 5_000 + "1", "not a filter", None),
        ("a" + ".b" * 4_900 + " > 1", "not a filter", None),
        ("score > " + "9" * 5_000, "not a filter", None),
    ],
)
def test_what_is_refused_and_where(text: str, reason: str, place: int | None) -> None:
    with pytest.raises(UserError) as refused:
        parse(text)
    message = refused.value.message
    assert reason in message
    assert refused.value.fix
    assert len(message) < 400
    if place is not None:
        lines = message.splitlines()
        assert lines[-1].index("^") == place + 2, message
        assert lines[-2].strip() == text


def test_the_place_is_counted_in_characters() -> None:
    with pytest.raises(UserError) as refused:
        parse("method == 'äöü' and score > limit")
    line, mark = refused.value.message.splitlines()[-2:]
    assert line[mark.index("^") :] == "limit"


# ------------------------------------------------------------------------------------------------------- properties

NAMES = ("method", "seed", "score", "optim.rate", "shared", "gone")
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
Meaning = Callable[[Mapping[str, Any]], bool]

numbers = st.integers(-3, 3) | st.sampled_from([0.5, -0.25, 1e-3])
texts = st.sampled_from(["lora", "ia3", "", "it's", 'say "x"', "a\\b", "ä"])
literals = numbers | texts | st.booleans()


def same(value: Any, literal: Any) -> bool:
    """Equality without True being 1."""
    return isinstance(value, bool) == isinstance(literal, bool) and value == literal


@st.composite
def single(draw: st.DrawFn) -> tuple[str, Meaning]:
    """A comparison as text, and what it means, written independently of the parser."""
    name, sign = draw(st.sampled_from(NAMES)), draw(st.sampled_from([*COMPARE, "==", "!=", "in", "not in"]))
    if sign in COMPARE:
        bound = draw(numbers | texts)

        def ordered(row: Mapping[str, Any]) -> bool:
            value = row.get(name)
            comparable = isinstance(value, str) == isinstance(bound, str) and not isinstance(value, bool)
            return value is not None and comparable and COMPARE[sign](value, bound)

        return f"{name} {sign} {bound!r}", ordered
    some = draw(st.lists(literals, max_size=3)) if sign.endswith("in") else [draw(literals)]
    wanted = sign in ("==", "in")

    def equal(row: Mapping[str, Any]) -> bool:
        value = row.get(name)
        return value is not None and any(same(value, one) for one in some) == wanted

    return f"{name} {sign} {some!r}" if sign.endswith("in") else f"{name} {sign} {some[0]!r}", equal


def joined(parts: st.SearchStrategy[tuple[str, Meaning]]) -> st.SearchStrategy[tuple[str, Meaning]]:
    def negated(one: tuple[str, Meaning]) -> tuple[str, Meaning]:
        return f"not ({one[0]})", lambda row: not one[1](row)

    def both(two: tuple[tuple[str, Meaning], tuple[str, Meaning], str]) -> tuple[str, Meaning]:
        (first, a), (second, b), sign = two
        together = (lambda row: a(row) and b(row)) if sign in ("and", "&") else (lambda row: a(row) or b(row))
        return f"({first}) {sign} ({second})", together

    return parts.map(negated) | st.tuples(parts, parts, st.sampled_from(["and", "or", "&", "|"])).map(both)


filters = st.recursive(single(), joined, max_leaves=8)
rows = st.fixed_dictionaries(
    {},
    optional={
        "method": texts,
        "seed": st.integers(-3, 3),
        "score": numbers | st.just(float("nan")),
        "optim.rate": numbers | st.none(),
        "shared": st.booleans(),
    },
)


@settings(max_examples=200, deadline=None)
@given(filters, rows)
def test_a_filter_means_what_its_text_says(found: tuple[str, Meaning], row: Mapping[str, Any]) -> None:
    text, meaning = found
    assert matches(parse(text), row) is bool(meaning(row)), text


@settings(max_examples=50, deadline=None)
@given(filters, rows)
def test_brackets_and_spaces_change_nothing(found: tuple[str, Meaning], row: Mapping[str, Any]) -> None:
    text = f" ({found[0]})\n"
    assert matches(parse(text), row) == matches(parse(found[0]), row)
    names = [comparison.name for comparison in comparisons(parse(found[0]))]
    assert set(names) <= set(NAMES)


PIECES = (
    *(
        "method",
        "score",
        "optim.rate",
        "__class__",
        "__import__",
        "os",
        "'lora'",
        '"',
        "'",
        "0.3",
        "-1",
        "None",
        "True",
    ),
    *("==", "!=", "<", ">", "in", "not in", "not", "and", "or", "&", "|", "~", "is", "(", ")", "[", "]", "{", "}", ","),
    *(".", ":", ":=", "=", "+", "*", "**", "//", "lambda", "if", "else", "for", "yield", "await", "import", ";", "\\"),
    *("\n", "\t", "\0", "#", "f'{", "b'", "0x", "1j", "...", "@", "%", "\ud800", "\u2028", "é", "\x0c"),
)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join))
@example("score > 1 \\")
@example("score > 0x")
@example("'\\N{nothing}' == 1")
@example("1 if score > 1 else open('x')")
def test_any_text_is_a_filter_or_a_clear_refusal(text: str) -> None:
    try:
        found = parse(text)
    except UserError as refused:
        assert refused.message.startswith("--where: ") and refused.fix
        return
    assert all(isinstance(one, Comparison) for one in comparisons(found))
    assert matches(found, ROW) in (True, False)


def test_nothing_is_executed(tmp_path: Path) -> None:
    target = tmp_path / "made"
    inside = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for text in (inside, f"score > {inside}", f"seed in [{inside}]", f"[{inside}] == 1", f"f'{{{inside}}}' == 1"):
        with pytest.raises(UserError):
            parse(text)
    assert not target.exists()


# ------------------------------------------------------------------------------------------------- over real records


def test_columns_of_a_record() -> None:
    other = evaluation(100, "last", 0.7).model_copy(update={"task": "other"})
    record = a_record(
        evaluations=(
            evaluation("base", "base", 0.1),
            evaluation(100, "last", 0.5),
            evaluation(100, "last", 0.4, part="valid"),
            other,
        ),
        training={"epochs": 0.5, "final_loss": 1.5, "forgetting": {"change": None, "reason": "not asked for"}},
        rows={"num_rows": 40},
    )
    found = columns.values(record)
    assert (found["exact_match"], found["base.exact_match"], found["valid.exact_match"]) == (0.5, 0.1, 0.4)
    assert found["other.exact_match"] == columns.values(record, "other")["exact_match"] == 0.7
    assert (found["optim.learning_rate"], found["train_seconds"], found["total_seconds"]) == (0.001, 75.0, 80.0)
    assert (found["train_samples"], found["train_loss"]) == (20, 1.5)
    assert found["forgetting"] is None
    assert columns.reason(record, "forgetting") == "not asked for"
    unknown = a_record(cost=Cost(unknown={"memory_bytes": "the system does not tell"}))
    assert columns.reason(unknown, "memory_max") == "the system does not tell"
    memory = {"average": 2.0, "percentile_99": 3.0, "maximum": 5.0}
    above = columns.values(a_record(cost=Cost(memory_bytes={**memory, "before_model": 1.5})))
    assert (above["memory_avg"], above["memory_99th"], above["memory_max"]) == (0.5, 1.5, 3.5)
    absolute = a_record(cost=Cost(memory_bytes=memory))
    for name in ("memory_avg", "memory_99th", "memory_max"):
        assert columns.values(absolute)[name] is None
        assert "level before the model" in columns.reason(absolute, name)


def test_select_names_what_no_record_has() -> None:
    records = [a_record(), a_record(key="b" * 16, seed=1)]
    assert [one.seed for one in select(records, "seed == 1 and exact_match > 0.3")] == [1]
    with pytest.raises(UserError, match="unknown column 'metod'") as refused:
        select(records, "seed == 1 and metod == 'lora'")
    assert refused.value.fix == "did you mean 'method'?"
    assert refused.value.message.splitlines()[-1].index("^") == len("seed == 1 and ") + 2
    with pytest.raises(UserError, match=r"unknown column .method\.__class__"):
        select(records, "method.__class__ == 'str'")
    with pytest.raises(UserError, match="'seed' holds numbers, never '0'"):
        select(records, "seed == '0'")
    with pytest.raises(UserError, match="'method' holds text, never 3"):
        select(records, "method > 3")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch)


def test_results_and_compare_take_a_filter(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record(), a_record(key="fedcba9876543210", experiment="ia3/second", method="ia3", arm="b" * 16, score=0.2))
    assert main(["results", "--where", "exact_match > 0.3"]) == 0
    shown = capsys.readouterr().out
    assert "0123456789ab" in shown and "fedcba987654" not in shown
    assert main(["compare", "--where", "method == 'ia3'"]) == 0
    shown = capsys.readouterr().out
    assert "ia3/second" in shown and "lora/first" not in shown
    assert main(["results", "--where", "seed > 7"]) == 0
    assert "no runs that pass the filter" in capsys.readouterr().err
    assert main(["results", "--json", "--where", "seed > 7"]) == 0
    assert capsys.readouterr().out.strip() == "[]"


@pytest.mark.parametrize("verb", [["results"], ["compare"], ["report", "results"]])
@pytest.mark.parametrize(
    "text", ["open('made', 'w')", "method.__class__ == 1", "metod == 'a'", "method == 'a", "(" * 10_000, "score"]
)
def test_bad_filters_on_the_command_line(
    place: Path, capsys: pytest.CaptureFixture[str], verb: list[str], text: str
) -> None:
    store(a_record())
    before = sorted(place.rglob("*"))
    assert main([*verb, "--where", text]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: --where: ") and "  fix: " in errors
    assert "Traceback" not in errors
    assert sorted(place.rglob("*")) == before
