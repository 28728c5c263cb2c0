"""Dialect s3: evaluation files read in as runs with answers, graded here; runs written out as such files, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import peftlab as pl
import toy
from peftlab.cli import main
from peftlab.dialects import _s3_names
from peftlab.errors import UserError
from peftlab.job import regrading
from peftlab.protocols import Example, Prediction, find, names
from peftlab.records import exchange
from peftlab.records.atomic import write_atomic
from peftlab.records.payload import read_samples
from peftlab.records.record import Record, to_json
from peftlab.records.store import RunStore
from peftlab.verdicts.compare import compare

ARGS: dict[str, Any] = {
    "peft_type": "hira",
    "model_name": "EleutherAI/gpt-neo-1.3B",
    "dataset": "boolq",
    "r_ab": 64,
    "target_modules": "q_proj, v_proj",
    "batch": 8,
    "grad_acc": 32,
    "lr": 5e-05,
    "epoch": 1.0,
    "warmup": 100,
    "weight_decay": 0.01,
    "load_bit": 16,
    "seed": 36,
    "beam_size": 8,
    "max_new_tokens": 16,
    "do_sample": False,
    "eval_strategy": "steps",
    "enable_grad_ckpt": True,
    "decoding": "default",
    "ckpt": "results_hira/gpt-neo-1.3B-common_170k-hira-lr=5.00e-05-r_ab=64-seed=36-x-20250613/",
}
CONFIG = {"peft_type": "HIRA", "r": 64, "target_modules": ["q_proj", "v_proj"], "peft_version": "0.15.0"}
FIGURES = [{"mem_used": 11000.5, "train_seconds": 3600.0}, {"trainable": 100, "all": 5000, "trainable%": 2.0}]
BOOLQ = [
    ("the correct answer is true", "true"),
    ("True, or false", "true"),
    ("untrue", "true"),  # no ends of words are looked at
    ("false", "true"),
    ("", "false"),
    ("no", "false"),
]


def answers(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"context": f"question {n}", "pred": pred, "gt": gold} for n, (pred, gold) in enumerate(pairs)]


def written(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def a_file(folder: Path, pairs: Sequence[tuple[str, str]] = BOOLQ, config: Any = CONFIG, **args: Any) -> str:
    given = {name: value for name, value in {**ARGS, **args}.items() if value is not None}
    name = f"output_-1_{given['dataset']}_beam={given.get('beam_size')}_eval.jsonl"
    return written(folder / name, [given, config, *FIGURES, *answers(pairs)])


def imported(store: RunStore, *files: str) -> list[Record]:
    return [one.record for one in exchange.import_files(store, files, dialect="s3")]


def means(record: Record) -> dict[str, float]:
    return {name: metric.mean for name, metric in record.evaluations[0].metrics.items()}


# ---------------------------------------------------------------------------------------------------------- import


def test_an_evaluation_file_becomes_a_run_whose_answers_are_graded_here(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "results")
    (record,) = imported(store, a_file(tmp_path))
    assert (record.experiment, record.method, record.seed) == ("hira/gpt-neo-1.3B-r64", "hira", 36)
    assert record.task == "commonsense_170k", "what it was trained on stands in the checkpoint's folder"
    assert record.imported_from == "s3" and record.status == "finished"
    (found,) = record.evaluations
    assert (found.task, found.part, found.num_items) == ("boolq_generated", "test", 6)
    assert list(found.metrics) == ["acc_s3", "acc", "acc_strict"]
    # by hand: theirs lowers the case and takes the first of the two words; LLM-Adapters' reads lower case only
    assert means(record) == pytest.approx({"acc_s3": 3 / 6, "acc": 2 / 6, "acc_strict": 1 / 6})
    assert found.metrics["acc_s3"].standard_error == pytest.approx((0.25 * 6 / 5 / 6) ** 0.5)
    assert found.baselines == {"baseline_constant_answer": pytest.approx(4 / 6)}
    assert found.grader == {
        "name": "option",
        "modes": ["s3", "first", "strict"],
        "version": find("graders", "option").version,
    }
    assert record.spec["optim"] == {"learning_rate": 5e-05, "weight_decay": 0.01, "warmup_steps": 100}
    assert record.spec["adapter"]["target_modules"] == ["q_proj", "v_proj"]
    assert found.settings["generation"]["num_beams"] == 8
    assert (record.cost.num_trainable_parameters, record.cost.seconds) == (100, {"train": 3600.0})
    assert "no peak" in record.cost.unknown["memory"] and "step 0" in record.cost.unknown["step"]


def test_the_answers_and_outcomes_of_each_item_are_kept(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "results")
    (record,) = imported(store, a_file(tmp_path))
    folder = store.evaluation_folder(record, record.evaluations[0])
    assert folder is not None
    samples = read_samples(folder)
    assert [one["prediction"]["text"] for one in samples] == [pred for pred, _ in BOOLQ]
    assert [one["reference"] for one in samples] == [gold for _, gold in BOOLQ]
    assert samples[2]["grades"]["s3"] == {"score": 1.0, "answer": "true", "valid": True}
    assert np.load(folder / "acc_s3.npy").tolist() == [1, 1, 1, 0, 0, 0]
    option = find("graders", "option")  # whoever grades them again finds the same
    for sample in samples:
        again = option.grade(
            Prediction(**sample["prediction"]), Example(item=sample["item"], reference=sample["reference"]), "s3"
        )
        assert again.score == sample["grades"]["s3"]["score"]


def test_two_of_them_on_the_same_items_are_paired(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "results")
    right = [(gold, gold) for _, gold in BOOLQ] * 10
    wrong = [("", gold) for _, gold in right]
    files = [a_file(tmp_path / "a", right), a_file(tmp_path / "b", wrong, peft_type="lora", config=None)]
    records = imported(store, *files)
    (table,) = compare(records, store.evaluation_folder).tables
    assert table.metric == "acc_s3"
    (pair,) = table.pairs
    assert pair.num_items == 60 and abs(pair.difference) == 1.0
    assert not any("never paired" in note for note in table.notes)


DATASETS: list[tuple[str, list[tuple[str, str]], dict[str, float]]] = [
    ("obqa", [("Solution: 3", "solution3"), ("solution2 or 1", "solution2"), ("none", "solution1")], {"acc_s3": 2 / 3}),
    (
        "common_170k",
        [("the correct answer is answer2", "the correct answer is answer2"), ("ending1", "ending2")],
        {"acc_s3": 0.5, "acc": 0.5},
    ),
    ("gsm8k", [("so 3 + 4 = 7", "It is 7.\n#### 7"), ("The answer is 8", "9")], {"exact_match_flexible": 0.5}),
    ("mmlu", [("A", "A"), (" b", "B"), ("E", "C"), ("", "D")], {"acc": 0.5}),
    ("e2e", [("the cat sat", "The cat sat."), ("dog", "cat")], {"rouge": 0.5}),
]


@pytest.mark.parametrize(("dataset", "pairs", "expected"), DATASETS, ids=[one[0] for one in DATASETS])
def test_each_kind_of_answer_is_graded(
    dataset: str, pairs: list[tuple[str, str]], expected: Mapping[str, float], tmp_path: Path
) -> None:
    (record,) = imported(RunStore(tmp_path / "results"), a_file(tmp_path, pairs, dataset=dataset))
    found = means(record)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert record.evaluations[0].task == _s3_names.DATASETS[dataset].task


@pytest.mark.parametrize("dataset", ["boolq", "mmlu"])
def test_imported_answers_are_graded_again(dataset: str, tmp_path: Path) -> None:
    pairs = BOOLQ if dataset == "boolq" else [("A", "A"), ("b", "C")]
    store = RunStore(tmp_path / "results")
    (record,) = imported(store, a_file(tmp_path, pairs, dataset=dataset))
    before = means(record)
    list(regrading.regrade(record.key, store))
    (again,) = store.find(record.key)
    assert means(again) == before and again.evaluations[0].items == record.evaluations[0].items
    if dataset == "boolq":
        list(regrading.regrade(record.key, store, grader="option/strict"))
        list(regrading.regrade(record.key, store, grader="rouge"))
        (other,) = store.find(record.key)
        assert list(other.evaluations[0].metrics)[:3] == ["acc_s3", "acc", "acc_strict"]
        # by hand: F1 of the one word: 2/6 in the first answer of five words, 1/2 in the second, 0 in the others
        assert means(other)["rouge_rouge"] == pytest.approx((2 / 6 + 1 / 2) / 6)
        folder = store.evaluation_folder(other, other.evaluations[0])
        assert folder is not None and np.load(folder / "acc_s3.npy").tolist() == [1, 1, 1, 0, 0, 0]


def test_every_data_set_of_theirs_has_a_task_of_ours() -> None:
    for graded in _s3_names.DATASETS.values():
        assert set(graded.modes) <= set(find("graders", graded.grader).modes)
        assert (Path(toy.__file__).parents[1] / "src/peftlab/tasks" / f"{graded.task}.yaml").is_file()


def test_full_fine_tuning_a_missing_seed_and_a_step_in_the_path(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "results")
    path = a_file(tmp_path / "checkpoint-240", config=None, peft_type="fft", seed=None, ckpt=None)
    (record,) = imported(store, path)
    assert (record.method, record.experiment) == ("full", "full-finetuning/gpt-neo-1.3B")
    assert record.evaluations[0].checkpoint == 240 and "step" not in record.cost.unknown
    assert record.seed == 0 and "filed as seed 0" in record.cost.unknown["seed"]
    assert record.task == "boolq_generated"


def damaged(folder: Path) -> dict[str, tuple[str, str]]:
    good = [ARGS, CONFIG, *FIGURES, *answers(BOOLQ)]
    half = written(folder / "half.jsonl", good)
    Path(half).write_text(Path(half).read_text()[:-20])
    return {
        "cut off": (half, "not JSON"),
        "no arguments": (written(folder / "b.jsonl", answers(BOOLQ)), "no row of arguments"),
        "no answers": (written(folder / "c.jsonl", good[:4]), "nothing to grade"),
        "a strange set": (a_file(folder, dataset="boolqq"), "did you mean 'boolq'"),
        "no gold": (written(folder / "d.jsonl", [*good, {"pred": "x", "gt": None, "context": ""}]), "answer 7: 'gt'"),
        "gold of another set": (a_file(folder / "e", [("true", "seven")]), "names no option"),
        "a text as rate": (a_file(folder / "f", lr="high"), "'lr' = 'high' is no number"),
        "a bare list": (str(_dumped(folder / "predictions_boolq.json", answers(BOOLQ))), "says not what was trained"),
        "no model": (a_file(folder / "g", model_name=None), "'model_name' is missing"),
    }


def _dumped(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("what", range(9))
def test_a_file_that_is_not_whole_is_refused_and_nothing_is_written(what: int, tmp_path: Path) -> None:
    path, message = list(damaged(tmp_path).values())[what]
    good = a_file(tmp_path / "good")
    with pytest.raises(UserError) as caught:
        imported(RunStore(tmp_path / "results"), good, path)
    assert message in f"{caught.value.message} {caught.value.fix}" and Path(path).name in caught.value.message
    assert not (tmp_path / "results").exists()


def test_an_experiment_is_not_read_from_it(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    with pytest.raises(UserError, match="one of results"):
        pl.load(folder, dialect="s3")
    assert "s3" in names("dialects")


# ---------------------------------------------------------------------------------------------------------- export

TASK = """
version: 1
kind: generate
train: {dataset: "%(rows)s", split: "train"}
test: {dataset: "%(rows)s", split: "test"}
columns: {instruction: instruction, output: output, answer: answer}
prompt: "{instruction} ="
target: " {output}"
max_new_tokens: 4
grader: {name: option, modes: [first, s3]}
metrics: {acc: higher, acc_s3: higher}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, Record, Record]:
    """A run on a set that the format knows, and one on a set that it does not."""
    root = tmp_path_factory.mktemp("s3")
    rows = root / "rows"
    rows.mkdir()
    for part, count in (("train", 8), ("test", 6)):
        made = [
            {"instruction": f"is {n} + {len(part)} even", "output": word, "answer": word}
            for n in range(count)
            for word in [("true", "false")[n % 2]]
        ]
        (rows / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    task = root / "boolq_generated.yaml"
    task.write_text(TASK % {"rows": rows})
    folder = toy.write_experiment(root, task=task, train={"max_steps": 2})
    store = RunStore(root / "results")
    run = pl.run(pl.load(folder), store)
    evaluations = tuple(found.model_copy(update={"task": "toy"}) for found in run.evaluations)
    other = run.model_copy(update={"key": "e" * 16, "experiment": "lora/other", "evaluations": evaluations})
    write_atomic(store.path_of(other), to_json(other))
    return store, run, other


def test_a_run_is_written_as_their_tree_and_comes_back(
    trained: tuple[RunStore, Record, Record], tmp_path: Path
) -> None:
    store, run, _ = trained
    files = exchange.export(store, [run.key], dialect="s3", folder=tmp_path / "out")
    names_ = sorted(str(one.path.relative_to(tmp_path / "out")) for one in files if one.path)
    assert [name.rpartition("/")[2] for name in names_] == [
        "output_boolq_eval.jsonl",
        "predictions_boolq.json",
        "output.jsonl",
    ]
    assert (
        names_[0].startswith("results_lora/model-llama-boolq-lora-lr=1.00e-02-seed=0-")
        and "/checkpoint-2/" in names_[0]
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / names_[0]).read_text().splitlines()]
    assert rows[0]["peft_type"] == "lora" and rows[0]["r_ab"] == 4 and rows[0]["dataset"] == "boolq"
    assert rows[1]["peft_type"] == "LORA" and set(rows[2]) == {"mem_used", "train_seconds"}
    assert rows[3]["trainable%"] == pytest.approx(100 * rows[3]["trainable"] / rows[3]["all"])
    assert len(rows) == 4 + 6 and rows[4]["context"] == "is 0 + 4 even =" and rows[4]["gt"] == "true"

    elsewhere = RunStore(tmp_path / "elsewhere" / "results")
    (back,) = imported(elsewhere, *(str(tmp_path / "out" / name) for name in names_[:2]))  # both hold the same
    own, its = run.evaluation("last"), back.evaluation("last")
    assert own is not None and its is not None
    for name in ("acc", "acc_s3"):
        assert its.metrics[name].mean == own.metrics[name].mean
        assert its.metrics[name].standard_error == pytest.approx(own.metrics[name].standard_error)
    assert its.items == own.items, "so that both can be paired"
    assert (back.experiment, back.task, its.checkpoint) == (run.experiment, run.task, 2)

    (here,) = exchange.import_files(store, [str(tmp_path / "out" / names_[0])], dialect="s3")
    assert not here.new and here.record.key == run.key, "the run itself is here"


LETTER = {
    "columns": {"about": "", "question": "q", "a": "1", "b": "2", "c": "3", "d": "4", "letters": "", "answer": "2"},
    "reference": 2,
    "prediction": {"index": 1, "scores": [-3.0, -1.0, -2.0, -4.0]},
}
SENTENCE = {
    "columns": {"meaning": "name[X]", "text": "X it is.", "references": ""},
    "reference": ["X it is.", "It is X."],
    "prediction": {"text": "X."},
}


@pytest.mark.parametrize(
    ("dataset", "sample", "row"),
    [
        ("mmlu", LETTER, {"pred": "B", "gt": "C"}),
        ("mmlu", {**LETTER, "prediction": {"scores": [-1.0, -2.0, -3.0, -4.0]}}, {"pred": "A", "gt": "C"}),
        ("mmlu", {**LETTER, "prediction": {}}, {"pred": "", "gt": "C"}),
        ("e2e", SENTENCE, {"context": "CONTEXT: name[X] TARGET:", "pred": "X.", "gt": "X it is."}),
    ],
)
def test_letters_and_sentences_are_written_as_theirs(
    dataset: str, sample: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    (record,) = imported(RunStore(tmp_path / "results"), a_file(tmp_path, [("A", "A")], dataset=dataset))
    plain = {**record.model_dump(mode="python"), "provenance": {}}
    files = find("dialects", "s3").export_files(plain, {"samples": lambda evaluation: [{"item": "x", **sample}]})
    (text,) = [text for name, text in files.items() if name.endswith("_eval.jsonl")]
    written_row = json.loads(text.splitlines()[-1])
    assert {name: written_row[name] for name in row} == row and written_row["item"] == "x"


def test_what_the_format_has_no_word_for_is_refused(trained: tuple[RunStore, Record, Record], tmp_path: Path) -> None:
    store, _, other = trained
    with pytest.raises(UserError, match="no scored answers on a data set of s3: it was scored on toy"):
        exchange.export(store, [other.key], dialect="s3", folder=tmp_path)
    found = exchange.export(store, [], dialect="s3", folder=tmp_path)
    assert [one.record.key for one in found if one.left_out is not None] == [other.key]
    elsewhere = RunStore(tmp_path / "results")
    (back,) = imported(elsewhere, *[str(one.path) for one in found if one.path and one.path.suffix == ".json"])
    with pytest.raises(UserError, match="was imported from s3"):
        exchange.export(elsewhere, [back.key], dialect="s3", folder=tmp_path / "again")


def test_the_verbs(trained: tuple[RunStore, Record, Record], tmp_path: Path, capsys: Any) -> None:
    store, run, _ = trained
    mine = ["--results", str(store.places.main)]
    assert main(["results", "export", "--format", "s3", run.key, "--to", str(tmp_path / "out"), *mine]) == 0
    assert capsys.readouterr().out.count("output") == 2
    path = a_file(tmp_path)
    theirs = ["--results", str(tmp_path / "results")]
    assert main(["results", "import", "--format", "s3", path, *theirs]) == 0
    assert "hira/gpt-neo-1.3B-r64" in capsys.readouterr().out
    assert main(["results", "show", "hira/gpt-neo-1.3B-r64", *theirs]) == 0
    assert "s3: its answers, graded here" in capsys.readouterr().out
