"""Tasks whose answers are free text, on ten made-up rows each; ROUGE and BLEU against formulas written out here."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.config.task import Task
from peftlab.errors import UserError
from peftlab.graders import choice, rouge
from peftlab.protocols import Example, Grade, Prediction
from peftlab.scores import grading

ROWS = Path(__file__).parent / "cases" / "rows"
NAMES = sorted(path.stem for path in ROWS.glob("*.jsonl"))
GENERATED = [name for name in NAMES if name != "mmlu"]


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text(encoding="ascii").splitlines()]


def task_and_examples(name: str) -> tuple[Task, list[Example]]:
    task = tasks.load(name)
    return task, examples(task, rows_of(name))


# ---------------------------------------------------------------------------------------------------------- tasks


def test_there_are_ten_rows_of_each() -> None:
    assert NAMES == ["convai2", "dailydialog", "e2e", "mmlu", "samsum"]
    assert all(len(rows_of(name)) == 10 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_becomes_an_item_of_its_own(name: str) -> None:
    _, found = task_and_examples(name)
    assert len({one.item for one in found}) == 10
    assert all(one.prompt and not one.prompt[-1].isspace() for one in found)


@pytest.mark.parametrize("name", GENERATED)
def test_the_gold_text_scores_all_and_the_next_item_s_does_not(name: str) -> None:
    task, found = task_and_examples(name)
    right = grading.grade(task, found, [Prediction(text=one.target) for one in found])
    assert {metric: one.mean for metric, one in right.metrics.items()} == pytest.approx(
        dict.fromkeys(task.metrics, 1.0)
    )
    other = grading.grade(task, found, [Prediction(text=found[index - 1].target) for index in range(10)])
    nothing = grading.grade(task, found, [Prediction(text=" ") for _ in found])
    assert all(metric.mean < 1 for metric in other.metrics.values())
    assert all(metric.mean == 0 for metric in nothing.metrics.values())
    assert next(iter(right.metrics)) == task.primary_metric == "rouge"


def test_prompts_as_they_are_shown() -> None:
    shown = {name: task_and_examples(name)[1][-1] for name in NAMES}
    assert shown["mmlu"].prompt == (
        "The following are multiple choice questions (with answers).\n\nWhat do plants take in by their roots?\n"
        "A. light\nB. sound\nC. water\nD. wind\nAnswer:"
    )
    assert shown["mmlu"].choices == (" A", " B", " C", " D") and shown["mmlu"].target == " C"
    assert task_and_examples("mmlu")[1][0].prompt.startswith(
        "The following are multiple choice questions (with answers) about high school geography."
    )
    assert shown["samsum"].prompt == ("Summarize this dialogue:\nTea: happy birthday!\r\nUwe: thanks a lot\n\nSummary:")
    assert shown["dailydialog"].prompt == "A: Where are you from ?\nB: From the north .\nA:"
    assert shown["dailydialog"].target == " It must be cold there ."
    assert shown["convai2"].prompt == (
        "B's persona: i have two dogs .\nB's persona: i work on a boat .\nA: hello , how are you ?\n"
        "B: fine , just back from work .\nA: what do you do there ?\nB:"
    )
    assert shown["e2e"].prompt == "CONTEXT: name[Salt Lane], eatType[pub], food[Nordic], area[riverside] TARGET:"


def test_items_of_one_source_share_a_cluster() -> None:
    assert [one.cluster for one in task_and_examples("convai2")[1]] == [str(number // 2) for number in range(10)]
    first, *_ = task_and_examples("e2e")[1]
    assert first.cluster == "name[The Blue Door], eatType[pub], food[Thai]"


def test_references_of_a_meaning_are_all_taken_and_a_row_without_any_has_its_own_text() -> None:
    _, found = task_and_examples("e2e")
    assert found[0].reference == ["The Blue Door is a pub that serves Thai food."]
    second = found[5].reference[1]
    assert len(found[5].reference) == 2 and rouge.grade(Prediction(text=second), found[5], "rouge_l").score == 1


def test_whoever_does_not_reply_spoke_last() -> None:
    """B replies, so of two turns B said the first, and of three A did."""
    row = {"personality": ["i fish ."], "candidates": ["no", "sure"], "conv_id": "7"}
    (found,) = examples(tasks.load("convai2"), [{**row, "history": ["hi", "hello"]}])
    assert found.prompt == "B's persona: i fish .\nB: hi\nA: hello\nB:" and found.target.strip() == "sure"
    (found,) = examples(tasks.load("convai2"), [{**row, "history": ["hi", "hello", "so ?"]}])
    assert found.prompt == "B's persona: i fish .\nA: hi\nB: hello\nA: so ?\nB:"


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("mmlu", {"question": "q", "choices": ["a", "b", "c"], "answer": 0}),
        ("dailydialog", {"utterances": ["alone"]}),
        ("convai2", {"history": [], "candidates": ["x"]}),
    ],
)
def test_a_row_of_another_shape_is_named(name: str, broken: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"no (row|conversation)"):
        examples(tasks.load(name), [broken])


def test_a_letter_is_chosen_by_its_likelihood() -> None:
    _, found = task_and_examples("mmlu")
    for one in found:
        scores = tuple(-1.0 if index == one.reference else -2.0 for index in range(4))
        assert choice.grade(Prediction(scores=scores), one, "acc").score == 1
        assert choice.grade(Prediction(scores=scores[1:] + scores[:1]), one, "acc").score == 0


# ---------------------------------------------------------------------------------------------------------- ROUGE


def words_of(text: str) -> list[str]:
    """Plain words of plain sentences: the stemmer has nothing to do on words of up to three letters."""
    return text.lower().split()


def f1(shared: int, answer: int, reference: int) -> Fraction:
    """2 P R / (P + R) with P = shared / answer and R = shared / reference."""
    return Fraction(2 * shared, answer + reference) if shared else Fraction(0)


def longest(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by its definition."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return longest(a[:-1], b[:-1]) + 1
    return max(longest(a[:-1], b), longest(a, b[:-1]))


def n_grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def expected(answer: str, reference: str, mode: str) -> Fraction:
    a, b = words_of(answer), words_of(reference)
    if mode == "rouge_l":
        return f1(longest(a, b), len(a), len(b))
    size = int(mode[-1])
    ours, theirs = n_grams(a, size), n_grams(b, size)
    return f1((ours & theirs).total(), ours.total(), theirs.total())


def test_rouge_follows_its_formulas_on_random_sentences() -> None:
    draw = random.Random(5)
    words = ["a", "the", "cat", "dog", "sat", "ran", "on", "mat", "to", "we"]
    for _ in range(300):
        answer, *references = [" ".join(draw.choices(words, k=draw.randint(1, 7))) for _ in range(draw.randint(2, 4))]
        for mode in rouge.MODES:
            best = max(expected(answer, one, mode) for one in references)
            found = rouge.grade(Prediction(text=answer), Example(item="x", reference=references), mode)
            assert found.score == pytest.approx(float(best), abs=1e-12), (answer, references, mode)


@pytest.mark.parametrize(
    ("mode", "score"),
    # Lin 2004, section 3: "police killed the gunman" / "police kill the gunman" share police, the, gunman in order
    [("rouge_l", Fraction(3, 4)), ("rouge_1", Fraction(3, 4)), ("rouge_2", Fraction(1, 3))],
)
def test_the_example_of_the_paper(mode: str, score: Fraction) -> None:
    example = Example(item="x", reference="police killed the gunman")
    assert rouge.grade(Prediction(text="police shot the gunman"), example, mode).score == pytest.approx(float(score))


@pytest.mark.parametrize("reference", [None, 3, [], ["x", 4], [""], "  "])
def test_a_reference_that_is_no_text_is_the_user_s(reference: Any) -> None:
    with pytest.raises(UserError, match="item x: the reference"):
        rouge.grade(Prediction(text="x"), Example(item="x", reference=reference), "rouge_l")


@pytest.mark.parametrize(("library", "ask"), [("rouge_score", rouge._scorer), ("sacrebleu.metrics", rouge._metric)])
def test_an_absent_library_names_the_extra(library: str, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match="needs the library") as caught:
        ask.__wrapped__(*(["rouge_l"] if ask is rouge._scorer else []))
    assert "peftlab[nlg]" in str(caught.value.fix)


# ----------------------------------------------------------------------------------------------------------- BLEU


def bleu_by_hand(pairs: Sequence[tuple[str, list[str]]]) -> float:
    """Papineni et al. 2002: geometric mean of clipped precisions of 1 to 4 words, times the brevity penalty."""
    matched, every = [0] * 4, [0] * 4
    answered = closest = 0
    for answer, references in pairs:
        words = answer.split()
        answered += len(words)
        closest += min((abs(len(one.split()) - len(words)), len(one.split())) for one in references)[1]
        for size in range(1, 5):
            ours = n_grams(words, size)
            most: Counter[tuple[str, ...]] = Counter()
            for one in references:
                most |= n_grams(one.split(), size)
            matched[size - 1] += (ours & most).total()
            every[size - 1] += ours.total()
    penalty = 1.0 if answered >= closest else math.exp(1 - closest / answered)
    return penalty * math.exp(sum(math.log(hit / all_) for hit, all_ in zip(matched, every, strict=True)) / 4)


def random_pairs(count: int, seed: int) -> list[tuple[str, list[str]]]:
    draw = random.Random(seed)
    words = ["the", "cat", "sat"]  # few, so that longer runs are shared too: without any, smoothing would show
    made = [[" ".join(draw.choices(words, k=draw.randint(4, 14))) for _ in range(4)] for _ in range(count)]
    return [(answer, references[: draw.randint(1, 3)]) for answer, *references in made]


def bleu_of(pairs: Sequence[tuple[str, list[str]]]) -> list[float]:
    grades = [Grade(score=0.0, answer=answer or None, valid=bool(answer)) for answer, _ in pairs]
    found = rouge.corpus(grades, [Example(item="x", reference=references) for _, references in pairs])
    return list(found["bleu"])


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_the_papers_and_its_numbers_are_pseudo_values(seed: int) -> None:
    pairs = random_pairs(30, seed)
    values = bleu_of(pairs)
    assert sum(values) / 30 == pytest.approx(bleu_by_hand(pairs), abs=1e-9)
    left_out = [bleu_by_hand(pairs[:index] + pairs[index + 1 :]) for index in range(30)]
    differences = [values[index] - values[0] for index in range(30)]
    assert differences == pytest.approx([-29 * (one - left_out[0]) for one in left_out], abs=1e-8)


def test_bleu_of_one_item_of_none_and_of_silence() -> None:
    assert rouge.corpus([], []) == {}
    assert bleu_of([("the cat sat on the mat", ["the cat sat on the mat"])]) == pytest.approx([1.0])
    assert bleu_of([("", ["the cat"]), ("", ["a dog"])]) == [0.0, 0.0]
