"""Rows in files of the user's own: CSV and Parquet beside JSON, and tasks written into an experiment without code."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml

import toy
from peftlab.cli import main
from peftlab.config import loading
from peftlab.config.spec import RunSpec
from peftlab.errors import UserError
from peftlab.job import runs
from peftlab.records.store import RunStore
from peftlab.rows import data, rowfiles
from peftlab.rows.rowfiles import read_rows

ROWS = [{"question": f"{a} + {b}", "answer": str(a + b)} for a, b in ((1, 2), (30, 4), (5, 66), (7, 8))]
ENDINGS = ("csv", "parquet", "jsonl", "json")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    assert read_rows(write_rows(tmp_path / f"rows.{ending}", ROWS)) == ROWS


READABLE = {
    "plain": b"a,b\n1,2\n",
    "Windows line ends": b"a,b\r\n1,2\r\n3,4\r\n",
    "UTF-8 with its mark": b"\xef\xbb\xbfa,b\n1,2\n",
    "no line end at the end": b"a,b\n1,2",
    "quotes": b'a,b\n"x, ""y""",2\n',
    "a line end in a value": b'a,b\n"one\ntwo",2\n',
    "accents": "a,b\n\u00e9,\u4e2d\n".encode(),
    "an empty value": b"a,b\n,2\n",
    "empty lines": b"a,b\n1,2\n\n3,4\n\n",
}


@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_csv_is_read_as_another_library_reads_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    text = {name: pyarrow.string() for name in ("a", "b")}
    expected = pyarrow.csv.read_csv(
        io.BytesIO(content),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=False),
    )
    assert read_rows(path) == expected.to_pylist()


def test_a_gzipped_csv_is_read_by_its_content(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "rows.csv"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n"))
    assert read_rows(path) == [{"a": "1", "b": "2"}]


UNREADABLE = {
    "nothing": (b"", "has no header"),
    "a name twice": (b"a,a\n1,2\n", "the header names a twice"),
    "an empty name": (b"a,\n1,2\n", "the header holds an empty name"),
    "semicolons": (b"a;b\n1;2\n", "the header is one name, 'a;b'"),
    "a value too few": (b"a,b\n1,2\n3\n", "line 3: 1 values under 2 columns"),
    "a value too many": (b"a,b\n1,2\n3,4,5\n", "line 3: 3 values under 2 columns"),
    "an open quote": (b'a,b\n1,2\n"3,4\n', "line 3: unexpected end of data"),
    "text after a quote": (b'a,b\n"1"x,2\n', "line 2: ',' expected after '\"'"),
    "Latin-1": ("a,b\n1,\u00e9\n".encode("latin-1"), "line 2 is not UTF-8"),
    "two encodings": ("a,b\n\u00e9,1\n".encode() + "\u00e9,2\n".encode("latin-1"), "line 3 is not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "line 1: a zero byte"),
    "a zero byte": (b"a,b\n1,2\x00\n", "line 2: a zero byte"),
    "an old Mac's line ends": (b"a,b\r1,2\r", "new-line character seen in unquoted field"),
}


@pytest.mark.parametrize(("content", "says"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_csv_that_is_none(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_rows(path)
    assert "rows.csv" in refused.value.message and says in refused.value.message and refused.value.fix


def test_a_parquet_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot read .*rows\.parquet"):
        read_rows(path)


def test_parquet_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "rows.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs the library pyarrow") as refused:
        rowfiles.read_rows(path)
    assert "peftlab[parquet]" in str(refused.value.fix)


# ------------------------------------------------------------------------------------------------- tasks without code


TASK: dict[str, Any] = {
    "name": "sums",
    "version": 1,
    "kind": "generate",
    "columns": {"question": "question", "answer": "answer"},
    "prompt": "{question} =",
    "target": " {answer}",
    "max_new_tokens": 3,
    "grader": {"name": "numeric"},
    "metrics": {"exact_match": "higher"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy.save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def experiment(path: Path, task: Any, **groups: Any) -> Path:
    """One YAML with model, adapter, task and settings."""
    content = {
        "model": {"id": "./model"},
        "adapter": toy.LORA,
        "task": task,
        "seed": 1,
        "optim": {"learning_rate": 1e-2},
        "batch": {"per_device_train_batch_size": 2},
        "train": {"max_steps": 2},
        "data": {"forgetting": None, "max_length": 64},
        **groups,
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def over(dataset: str, **changes: Any) -> dict[str, Any]:
    """The task over one file: its last row is the test."""
    parts = {"train": {"dataset": dataset, "split": "all[:3]"}, "test": {"dataset": dataset, "split": "all[3:]"}}
    return {**TASK, **parts, **changes}


def test_one_file_trains_and_its_kind_changes_nothing(folder: Path) -> None:
    """An inline task over four kinds of files: the same rows, losses, answers and bytes of the adapter."""
    found = []
    for ending in ENDINGS:
        write_rows(folder / f"rows.{ending}", ROWS)
        path = experiment(folder / f"{ending}.yaml", over(f"./rows.{ending}"))
        record = runs.run(loading.load(path), RunStore(ending))
        assert (record.status, record.task, record.seed, record.experiment) == (
            "finished", "sums", 1, f"{folder.name}/{ending}"
        )  # fmt: skip
        items = [one.items for one in record.evaluations]
        found.append((record.rows["fingerprints"], record.curve["loss"], items, record.provenance["adapter_sha256"]))
    assert all(one == found[0] for one in found[1:])


def test_a_file_with_a_task_by_name_and_by_path(folder: Path) -> None:
    assert loading.load(experiment(folder / "named.yaml", "arithmetic")).task.name == "arithmetic"
    task = toy.write_task(folder / "toy", train=8, test=4)
    spec = loading.load(experiment(folder / "pointed.yaml", str(task)))
    assert spec.experiment == f"{folder.name}/pointed" and spec.folder == str(folder / "pointed.yaml")
    assert runs.run(spec, RunStore("results")).task == "toy"
    assert main(["run", "pointed.yaml"]) == 0


def test_numbers_and_words_of_a_yaml_are_what_they_look_like(folder: Path) -> None:
    """As in YAML 1.2: `2e-4` is a number and `no` a word."""
    path = folder / "plain.yaml"
    path.write_text(
        "model: {id: ./model}\ntask: arithmetic\noptim: {learning_rate: 2e-4}\nsave: {save_strategy: no}\n"
        "train: {max_steps: 3, mixed_precision: no}\n"
    )
    spec = loading.load(path)
    assert (spec.optim.learning_rate, spec.save.save_strategy, spec.train.mixed_precision) == (2e-4, "no", "no")


def test_settings_of_a_task_that_is_written_out(folder: Path) -> None:
    """The command line reaches into it, and a budget there stands in the place of the file's."""
    write_rows(folder / "rows.csv", ROWS)
    path = experiment(folder / "mine.yaml", over("./rows.csv"), train={"num_train_epochs": 3, "total_eval_times": 2})
    overrides = {
        "task.train.split": "all[:2]",
        "task.valid": {"dataset": "./rows.csv", "split": "all[2:3]"},
        "train.max_steps": 4,
        "train.eval_steps": 2,
    }
    spec = loading.load(path, overrides=overrides)
    assert (spec.train.max_steps, spec.train.num_train_epochs) == (4, None)
    assert (spec.train.eval_steps, spec.train.total_eval_times) == (2, None)
    rows = data.load(spec)
    assert (len(rows.train), len(rows.valid), len(rows.test)) == (2, 1, 1)
    with pytest.raises(UserError, match=r"'task\.train\.splitt'|unknown key 'train\.splitt'"):
        loading.load(path, overrides={"task.train.splitt": "all"})
    with pytest.raises(UserError, match=r"override 'task\.prompt\.x': 'prompt' is not an object"):
        loading.load(path, overrides={"task.prompt.x": 1})


def test_paths_start_from_where_the_command_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "inside").mkdir()
    write_rows(folder / "inside" / "rows.csv", ROWS)
    path = experiment(folder / "inside" / "mine.yaml", over("./rows.csv"))
    with pytest.raises(UserError, match=r"no data at rows\.csv"):
        data.load(loading.load(path))
    monkeypatch.chdir(folder / "inside")
    assert len(data.load(loading.load("mine.yaml", overrides={"model.id": "../model"})).train) == 3


def test_a_file_is_known_by_its_content(folder: Path) -> None:
    def key(name: str) -> str:
        return loading.load(experiment(folder / "mine.yaml", over(name))).train_key

    write_rows(folder / "rows.csv", ROWS)
    write_rows(folder / "same.csv", ROWS)
    assert key("./rows.csv") == key("./same.csv")
    write_rows(folder / "same.csv", ROWS[::-1])
    assert key("./rows.csv") != key("./same.csv")


def test_classes_may_be_numbers_in_text(tmp_path: Path) -> None:
    """CSV knows only text: "1" is the class 1 unless a class has that name."""
    path = write_rows(tmp_path / "rows.csv", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    task = {
        "name": "two",
        "version": 1,
        "kind": "classify",
        "train": {"dataset": str(path), "split": "all"},
        "columns": {"text": "text", "label": "label"},
        "pair": ["text"],
        "labels": ["no", "yes"],
        "reference": "label",
        "grader": {"name": "label"},
        "metrics": {"acc": "higher"},
    }
    spec: RunSpec = loading.load(experiment(tmp_path / "mine.yaml", task))
    assert [row.reference for row in data.load(spec).train] == [0, 1]


def test_a_column_that_is_not_there(folder: Path) -> None:
    """The error names the file, its columns and the nearest of them."""
    write_rows(folder / "rows.csv", ROWS)
    path = experiment(folder / "mine.yaml", over("./rows.csv", columns={"question": "qestion", "answer": "answer"}))
    with pytest.raises(UserError) as refused:
        data.load(loading.load(path))
    for part in ("rows.csv", "no column 'qestion'", "['answer', 'question']", "did you mean 'question'?"):
        assert part in str(refused.value)


def test_a_slice_beyond_the_file(folder: Path) -> None:
    write_rows(folder / "rows.csv", ROWS)
    task = over("./rows.csv", train={"dataset": "./rows.csv", "split": "all[:5]"})
    with pytest.raises(UserError, match=r"split 'all\[:5\]' reaches beyond the data: there are 4 rows"):
        data.load(loading.load(experiment(folder / "mine.yaml", task)))
