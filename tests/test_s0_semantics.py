"""What experiments of peft's method comparison mean here, against independent computations of the same rules."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import toy
from peftlab.config import loading
from peftlab.config import task as tasks
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.events import Evaluated
from peftlab.graders import numeric
from peftlab.job import evaluating, preflight, runs
from peftlab.modelling import models
from peftlab.protocols import Example, Prediction
from peftlab.records.store import RunStore
from peftlab.rows import data, sources, texts, tokenise
from peftlab.scores import evaluation, language

MIRROR = Path(os.environ.get("PEFTLAB_MIRROR") or Path(__file__).parents[2] / "shared" / "data")
needs_mirror = pytest.mark.skipif(not (MIRROR / "mirror.json").is_file(), reason=f"no mirror at {MIRROR}")


def a_run(tmp_path: Path, rows: list[dict[str, str]], *, overrides: dict[str, Any] | None = None, **train: Any) -> Any:
    """A run on a file of rows, all of them for training but the last two, which are the test."""
    folder = tmp_path / "rows"
    folder.mkdir(exist_ok=True)
    for split, part in (("train", rows[:-2]), ("test", rows[-2:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = {"dataset": str(folder), "split": "train"}
    task = {
        "name": "plain",
        "version": 1,
        "kind": "generate",
        "train": {**source, **train},
        "valid": {**source, "sample": 5, "sample_by": "numpy"},
        "test": {**source, "split": "test"},
        "columns": {"question": ["query", "question"], "answer": ["response", "answer"]},
        "prompt": "Question: {question}\nAnswer:",
        "target": "{answer}",
        "grader": {"name": "numeric", "modes": ["strict", "s0"]},
        "metrics": {"exact_match": "higher"},
        "allow_overlap": 1.0,
    }
    parameters = {"task": task, "model": {"id": "some/model"}, "train": {"max_steps": 1}}
    experiment = tmp_path / "experiments" / "full" / "x"
    experiment.mkdir(parents=True, exist_ok=True)
    (experiment / "training_params.json").write_text(json.dumps(parameters))
    return loading.load(experiment, overrides=overrides)


def long_rows(*lengths: int) -> list[dict[str, str]]:
    """Rows of exactly so many characters of query, space and response together; numbers make them different."""
    found = []
    for number, length in enumerate(lengths):
        query = f"what is {number}? ".ljust(length // 2, "q")
        found.append({"query": query, "response": str(number).rjust(length - 1 - len(query), " ")})
    assert [len(row["query"] + " " + row["response"]) for row in found] == list(lengths)
    return found


# ------------------------------------------------------------------------------------------------------ which rows


def test_long_rows_are_left_out_in_file_order_before_anything_is_drawn(tmp_path: Path) -> None:
    rows = long_rows(60, 101, 100, 99, 400, 60, 61, 62, 63, 64, 50, 50)
    found = data.load(a_run(tmp_path, rows, max_characters=100))
    kept = [row for row in rows[:-2] if not len(row["query"] + " " + row["response"]) > 100]
    valid = {row.columns["question"] for row in found.valid}
    assert [row.columns["question"] for row in found.train] == [
        row["query"] for row in kept if row["query"] not in valid
    ]
    facts = found.facts["parts"]["train"]
    assert facts["removed_as_too_long"] == 2 and facts["declared"] == 10 and facts["available"] == 10
    assert facts["rows"] + facts["removed_as_claimed"] + facts["removed_as_too_long"] == 10
    assert "removed_as_too_long" not in found.facts["parts"]["valid"]
    drawn = data.load(a_run(tmp_path, rows, max_characters=100, sample=0.999999))
    assert drawn.facts["parts"]["train"]["sampled_from"] == len(found.train)


def test_the_limit_can_be_moved_and_switched_off(tmp_path: Path) -> None:
    rows = long_rows(60, *range(101, 108), 100, 99, 50, 50)  # more long rows than validation can take
    plain = a_run(tmp_path, rows)
    limited = a_run(tmp_path, rows, max_characters=100)
    off = a_run(tmp_path, rows, max_characters=100, overrides={"data.max_characters": 0})
    moved = a_run(tmp_path, rows, overrides={"data.max_characters": 100})
    assert off.train_key == plain.train_key != limited.train_key == moved.train_key
    assert data.load(moved).fingerprints == data.load(limited).fingerprints != data.load(off).fingerprints
    with pytest.raises(UserError, match=r"train is an empty data set: other parts .* or they have more than 10 char"):
        data.load(a_run(tmp_path, rows, max_characters=10))


def test_a_part_of_the_split_can_be_named(tmp_path: Path) -> None:
    rows = long_rows(*[60] * 12)
    assert len(data.load(a_run(tmp_path, rows, overrides={"data.train_split": "train[:7]"})).train) < 7
    with pytest.raises(UserError, match="no file for split 'other'"):
        data.load(a_run(tmp_path, rows, overrides={"data.train_split": "other"}))


def test_the_draw_is_that_of_numpys_global_shuffle(tmp_path: Path) -> None:
    rows = [{"query": f"what is {number}?", "response": str(number)} for number in range(203)]
    before = np.random.get_state()
    try:
        np.random.seed(0)
        indices = np.arange(201)
        np.random.shuffle(indices)
        np.random.seed(7)
        held = np.random.get_state()
        found = data.load(a_run(tmp_path, rows))
        assert all(np.array_equal(a, b) for a, b in zip(held, np.random.get_state(), strict=True))
    finally:
        np.random.set_state(before)
    assert [row.reference for row in found.valid] == [str(number) for number in indices[:5]]
    assert [row.reference for row in found.train] == [str(n) for n in range(201) if n not in set(indices[:5])]
    with pytest.raises(UserError, match="32 bits"):
        data.load(a_run(tmp_path, rows, overrides={"data.data_seed": -1}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"sample_by": "numpy"}, "not given"), ({"max_characters": 0}, "greater than 0"), ({"sample_by": "x"}, "rank")],
)
def test_fields_that_mean_nothing(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        a_run(tmp_path, long_rows(*[60] * 12), **fields)


# ------------------------------------------------------------------------------------------------- the shipped tasks


def gsm8k(split: str) -> list[dict[str, str]]:
    with gzip.open(MIRROR / "gsm8k" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def shipped(tmp_path: Path, name: str, **overrides: Any) -> RunSpec:
    folder = toy.write_experiment(tmp_path)
    return loading.load(folder, task=name, overrides={key.replace("__", "."): v for key, v in overrides.items()})


@needs_mirror
@pytest.mark.parametrize("name", ["metamath_gsm8k", "metamath_gsm8k_heldout"])
def test_a_mirror_with_a_part_says_so_and_the_part_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    with pytest.raises(UserError, match=r"no split 'train' of meta-math/MetaMathQA; it has: train_10 \(a part\)") as no:
        data.load(shipped(tmp_path / "1", name))
    assert "data.train_split" in str(no.value.fix)
    spec = shipped(tmp_path / "2", name, data__train_split="train_10")
    rows = data.load(spec)
    assert rows.partial and rows.facts["partial"] == ["train"]
    table = sources.read(spec.task.train)  # type: ignore[arg-type]
    kept = [row for row in table.rows if len(row["query"] + " " + row["response"]) <= 1300]
    assert rows.facts["parts"]["train"]["removed_as_too_long"] == 10 - len(kept) > 0
    for row, example in zip(kept, rows.train, strict=True):
        whole = f"Question: {row['query']} Think step by step.\nAnswer:{row['response']}"
        assert example.prompt + example.target == whole


@needs_mirror
def test_validation_is_the_shuffle_of_the_whole_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    rows = data.load(shipped(tmp_path, "metamath_gsm8k", data__train_split="train_10"))
    train = gsm8k("train")
    order = np.arange(len(train))
    np.random.RandomState(0).shuffle(order)
    assert len(train) == 7473
    assert [row.columns["question"] for row in rows.valid] == [train[n]["question"] for n in order[:50]]
    assert [row.columns["question"] for row in rows.test] == [row["question"] for row in gsm8k("test")]


@needs_mirror
def test_the_held_out_validation_stands_in_neither_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTLAB_MIRROR", str(MIRROR))
    rows = data.load(shipped(tmp_path, "metamath_gsm8k_heldout", data__train_split="train_10"))
    with gzip.open(MIRROR / "math" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        known = {json.loads(line)["problem"].strip().lower() for line in file}
    known |= {row["question"].strip().lower() for split in ("train", "test") for row in gsm8k(split)}
    assert len(rows.valid) == 200
    assert not known & {row.columns["question"].strip().lower() for row in rows.valid}
    for mode in ("strict", "flexible", "s0"):
        assert all(
            numeric.grade(Prediction(text="The answer is: " + row.reference.removesuffix(".0")), row, mode).score == 1
            for row in rows.valid
        )


@needs_mirror
def test_scores_lost_to_commas_are_those_of_the_documentation() -> None:
    lost = 0
    for row in gsm8k("test"):
        example = Example(item="x", reference=row["answer"])
        assert numeric.grade(Prediction(text=row["answer"]), example, "s0").score == 1
        plain = "The answer is: " + row["answer"].rpartition("#### ")[2].replace(",", "")
        assert numeric.grade(Prediction(text=plain), example, "strict").score == 1
        lost += numeric.grade(Prediction(text=plain), example, "s0").score == 0
        assert not any(mark in row["question"] for mark in ("he answer is ", "#### ")), "no prompt declares anything"
    assert lost == 14


def test_both_tasks_differ_in_validation_alone() -> None:
    one, other = (tasks.load(name) for name in ("metamath_gsm8k", "metamath_gsm8k_heldout"))
    assert one.train == other.train and one.test == other.test and one.valid != other.valid
    assert one.prompt == other.prompt == "Question: {question} Think step by step.\nAnswer:"
    assert one.target == other.target == "{answer}" and not one.stop and one.max_new_tokens == 300
    assert list(one.metrics) == tasks.measured_metrics(one) == ["exact_match", "exact_match_flexible", "exact_match_s0"]


# ------------------------------------------------------------------------------------------------------ generation


def test_batches_in_file_order_have_padded_limits(tmp_path: Path) -> None:
    """Against transformers itself, told `max_length` for each batch, with rows in the order of the data."""
    size, whole, new = 3, 26, 14
    folder = toy.write_experiment(tmp_path)
    resolved = loading.load(
        folder,
        overrides={
            "batch.eval_order": "file",
            "batch.per_device_eval_batch_size": size,
            "generation.limits": "batch",
            "generation.max_length": whole,
            "generation.max_new_tokens": new,
        },
    )
    built = models.bare(models.load(resolved.model, "causal"))
    questions = [f"{'9' * (1 + 5 * n % 17)} + 1" for n in range(11)]
    examples = [Example(item=str(n), prompt=f"{q} =", reference="7") for n, q in enumerate(questions)]
    samples = toy.drained(evaluation.score(built, examples, resolved)).samples
    expected, limits = [], []
    for start in range(0, len(examples), size):
        ids = [tokenise.prompt_ids(one.prompt, built.tokenizer) for one in examples[start : start + size]]
        width = max(map(len, ids))
        padded = torch.tensor([[built.pad_id] * (width - len(one)) + list(one) for one in ids])
        limit = min(new + width, whole)
        limits.append(limit - width)
        config = GenerationConfig(max_length=limit, pad_token_id=built.pad_id, eos_token_id=list(built.stop_ids))
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
        output = built.model.generate(input_ids=padded, attention_mask=mask, generation_config=config)
        expected += built.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    assert [sample["item"] for sample in samples] == [one.item for one in examples]
    assert [sample["prediction"]["text"] for sample in samples] == expected
    assert len(set(limits)) > 1 and max(limits) < new + 1


def test_order_and_limits_are_part_of_the_evaluation_key_alone(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    plain = loading.load(folder)
    for name, value in (("batch.eval_order", "file"), ("generation.limits", "batch")):
        changed = loading.load(folder, overrides={name: value})
        assert changed.train_key == plain.train_key
        assert changed.evaluation_key("test", {}) != plain.evaluation_key("test", {})


# ------------------------------------------------------------------------------------------------------ forgetting


@pytest.fixture
def wiki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A mirror with more than the 100 rows that are read."""
    pages = [f"Page {n}. " + f"Some words of page number {n}. " * (1 + n % 9 + 40 * (n == 3)) for n in range(103)]
    folder = tmp_path / "mirror" / "wiki"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    entry = {"HuggingFaceFW/finewiki:en": {"folder": "wiki", "splits": {"train": "train.jsonl"}}}
    (folder.parent / "mirror.json").write_text(json.dumps(entry))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(folder.parent))
    return pages


def test_the_loss_of_pages_is_pooled_over_their_tokens(tmp_path: Path, wiki: list[str]) -> None:
    found = texts.for_forgetting("finewiki")
    assert not isinstance(found, str)
    written, facts = found
    assert written == wiki[:100] and facts["rows"] == 100 and facts["row_tokens"] == 768
    resolved = loading.load(toy.write_experiment(tmp_path))
    built = models.bare(models.load(resolved.model, "causal"))
    scored = toy.drained(language.text_loss(built, written[:8], batch_size=8, row_tokens=300))
    losses: list[float] = []
    for page in written[:8]:
        ids = torch.tensor([built.tokenizer(page)["input_ids"][:300]])
        with torch.no_grad():
            logits = built.model(input_ids=ids).logits
        losses += torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none").tolist()
    metric = scored.metrics["loss"]
    assert metric.mean == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metric.n == 8 and scored.num_tokens == len(losses) and metric.standard_error > 0
    assert scored.outcomes["loss"].mean() == pytest.approx(metric.mean, rel=1e-12)


def test_a_run_measures_the_text_that_it_names_or_says_why_not(
    tmp_path: Path, wiki: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy.write_experiment(tmp_path, train={"max_steps": 2}, data={"forgetting": "finewiki"})
    record = runs.run(loading.load(folder), RunStore(tmp_path / "with"))
    found = record.evaluation("last", what="text")
    assert found is not None and found.task == "finewiki" and found.num_items == 100
    assert record.training["forgetting"]["change"] is not None
    monkeypatch.delenv("PEFTLAB_MIRROR")
    record = runs.run(loading.load(folder), RunStore(tmp_path / "without"))
    assert record.evaluation("last", what="text") is None
    forgetting = record.training["forgetting"]
    assert forgetting["change"] is None and "finewiki is not at hand" in forgetting["reason"]


def test_too_few_rows_are_another_text(tmp_path: Path, wiki: list[str]) -> None:
    path = tmp_path / "mirror" / "wiki" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:99]))
    with pytest.raises(UserError, match="first 100 rows of HuggingFaceFW/finewiki, 99 are there"):
        texts.for_forgetting("finewiki")


def test_the_hub_is_asked_for_the_first_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("PEFTLAB_MIRROR", raising=False)
    asked: dict[str, Any] = {}

    def load_dataset(*names: Any, **given: Any) -> Any:
        asked.update(given, names=names)
        return datasets.IterableDataset.from_generator(lambda: ({"text": str(n)} for n in range(10**9)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = texts.for_forgetting("hub:finewiki")
    assert not isinstance(found, str) and found[0] == [str(n) for n in range(100)]
    assert asked["names"] == ("HuggingFaceFW/finewiki", "en") and asked["streaming"] is True


def test_unknown_texts_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    resolved = loading.load(toy.write_experiment(tmp_path, data={"forgetting": "finewik"}))
    with pytest.raises(UserError, match="unknown text 'finewik'") as found:
        preflight.check(resolved)
    assert "finewiki" in str(found.value.fix)


# --------------------------------------------------------------------------------------------------- not yet possible


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"quant.method": "bnb-int8"}, ("quant.method = bnb-int8 needs bitsandbytes", "peftlab[bnb]")),
        ({"quant.method": "torchao-int4"}, ("quant.method = torchao-int4 needs torchao", "quant.method=null")),
        ({"quant.method": "gptq"}, ("quant.method = gptq", "quant.method=bnb-nf4")),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], names: tuple[str, str]
) -> None:
    real = importlib.util.find_spec
    absent = ("bitsandbytes", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else real(name, *rest))

    def load(*args: Any, **settings: Any) -> Any:
        raise AssertionError("something was loaded")

    resolved = loading.load(toy.write_experiment(tmp_path), overrides=overrides)
    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(data, "load", load)
    with pytest.raises(UserError) as found:
        runs.run(resolved, RunStore(tmp_path / "results"))
    assert names[0] in found.value.message and names[1] in str(found.value.fix)
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("*.json"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_bare_model_is_scored_in_the_declared_precision(tmp_path: Path) -> None:
    model, task, store = toy.save_model(tmp_path / "model"), toy.write_task(tmp_path / "task"), RunStore(tmp_path / "r")
    keys = set()
    for overrides in ({}, {"quant.method": "bnb-int8"}, {"quant.method": "bnb-nf4"}):
        *_, last = evaluating.evaluate(str(model), store, task=str(task), overrides=overrides)
        assert isinstance(last, Evaluated)
        assert last.evaluation.settings["model"].get("quant", {}).get("method") == overrides.get("quant.method")
        keys.add(last.evaluation.key)
    assert len(keys) == 3
