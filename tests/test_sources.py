from __future__ import annotations

import gzip
import importlib.metadata
import itertools
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.config.settings import validated
from peftlab.config.source import Source
from peftlab.errors import UserError
from peftlab.rows import rowfiles, sources

ROWS = [{"question": f"q{number}", "answer": number} for number in range(5)]


def source(**fields: Any) -> Source:
    return validated(Source, fields, where="test")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PEFTLAB_MIRROR", raising=False)
    yield


# ------------------------------------------------------------------------------------------------------- slices

positions = st.one_of(st.none(), st.integers(-12, 12))


@given(num_rows=st.integers(0, 10), start=positions, stop=positions)
def test_a_slice_is_pythons_or_an_error(num_rows: int, start: int | None, stop: int | None) -> None:
    shown = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    inside = all(bound is None or -num_rows <= bound <= num_rows for bound in (start, stop))
    expected = list(range(num_rows))[start:stop]
    if inside and expected:
        assert list(sources.window(shown, num_rows)) == expected
    else:
        with pytest.raises(UserError, match="empty data set" if inside else f"there are {num_rows} rows"):
            sources.window(shown, num_rows)


@given(num_rows=st.integers(1, 500), cuts=st.lists(st.integers(0, 100), max_size=4))
def test_adjoining_percentages_share_no_row_and_lose_none(num_rows: int, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), 100]
    found: list[int] = []
    for start, stop in itertools.pairwise(bounds):
        try:
            found += sources.window(f"train[{start}%:{stop}%]", num_rows)
        except UserError as error:
            assert "empty" in error.message  # a narrow slice of few rows
    assert found == list(range(num_rows))


def test_slices_that_are_written_often() -> None:
    assert sources.window("train", 7) == range(7)
    assert sources.window("c4-rp[:3]", 7) == range(3)
    assert sources.window("train[-5:]", 7) == range(2, 7)
    assert sources.window("train[:10%]", 200) == range(20)
    assert sources.window("train[-10%:]", 200) == range(180, 200)
    assert [len(sources.window("train[:10%]", num_rows)) for num_rows in (44, 46)] == [4, 5]


@pytest.mark.parametrize(
    "split", ["train[1000]", "train[:1000", "train+test", "train[a:b]", "train[3:50%]", "train[:5%%]", "", "[:5]"]
)
def test_a_split_that_cannot_be_read(split: str) -> None:
    with pytest.raises(UserError, match="cannot read the split"):
        sources.window(split, 10)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train[:13%]", "train[13%:]", "train[-7%:]", "train[3%:50%]", "train[:-5]"])
def test_slices_mean_what_they_mean_in_the_datasets_library(split: str) -> None:
    datasets = pytest.importorskip("datasets")
    for num_rows in (50, 99, 1000):
        (absolute,) = datasets.ReadInstruction.from_spec(split).to_absolute({"train": num_rows})
        assert sources.window(split, num_rows) == range(absolute.from_, absolute.to)


# -------------------------------------------------------------------------------------------------- local files


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_a_folder_holds_a_file_for_each_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    table = sources.read(source(dataset=str(tmp_path), split="train[:2]"))
    assert table.rows == ROWS  # the whole split: who asks takes the slice
    assert table.origin["from"] == "file" and table.origin["file"] == name and not table.partial


def test_a_single_file_and_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(ROWS))
    assert sources.read(source(dataset=str(path), split="anything")).rows == ROWS


def test_a_home_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows" / "test.jsonl", ROWS)
    assert sources.read(source(dataset="~/rows", split="test")).rows == ROWS


def test_an_absent_split_names_the_files_there_are(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"no file for split 'test' .*train\.jsonl"):
        sources.read(source(dataset=str(tmp_path), split="test"))


def test_two_files_for_one_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "train.jsonl.gz", ROWS)
    with pytest.raises(UserError, match=r"train\.jsonl and train\.jsonl\.gz"):
        sources.read(source(dataset=str(tmp_path), split="train"))


def test_an_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data at"):
        sources.read(source(dataset=str(tmp_path / "nothing"), split="train"))


BAD_LINES = {
    "no JSON": b'{"a": 1}\n\n{"a": \n',
    "a list": b'{"a": 1}\n{"a": 1}\n[1, 2]\n',
    "NaN": b'{"a": 1}\n{"a": 1}\n{"a": NaN}\n',
    "no UTF-8": b'{"a": 1}\n{"a": 1}\n{"a": "\xff"}\n',
    "half a surrogate": b'{"a": 1}\n{"a": 1}\n{"a": "\\ud800"}\n',
    "too deep": b'{"a": 1}\n{"a": 1}\n' + b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.jsonl, line 3: "):
        rowfiles.read_rows(path)


def test_lines_end_only_at_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes('\ufeff{"a": "one\u2028two\x85"}\r\n   \n{"a": "\\ud83d\\ude00"}'.encode())
    assert rowfiles.read_rows(path) == [{"a": "one\u2028two\x85"}, {"a": "\U0001f600"}]


def test_a_json_file_that_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="no list of rows"):
        rowfiles.read_rows(path)
    path.write_text('[{"a": 1}, 2]')
    with pytest.raises(UserError, match="row 2"):
        rowfiles.read_rows(path)


def test_a_file_cut_in_the_middle(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl.gz", [{"a": "x" * 5000, "b": number} for number in range(500)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot read"):
        rowfiles.read_rows(path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "train.jsonl", ROWS)

    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(UserError, match="Permission denied"):
        rowfiles.read_rows(path)


# ------------------------------------------------------------------------------------------------------- mirror


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "things" / "train.jsonl.gz", ROWS)
    write(tmp_path / "things" / "train_10.jsonl", ROWS[:1])
    splits = {"train": "train.jsonl.gz", "train_10": "train_10.jsonl"}
    entry = {"folder": "things", "splits": splits, "partial": ["train_10"]}
    index = {"some/thing:main": entry, "some/held": {**entry, "revision": "abc"}, "some/broken": {"splits": {}}}
    (tmp_path / "mirror.json").write_text(json.dumps(index))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(tmp_path))
    return tmp_path


def test_the_mirror_answers_a_hub_id(mirror: Path) -> None:
    table = sources.read(source(dataset="some/thing", subset="main", revision="1" * 40, split="train[:3]"))
    assert table.rows == ROWS and not table.partial
    assert table.origin["from"] == "mirror"
    assert table.origin["declared_revision"] == "1" * 40 and table.origin["loaded_revision"] is None
    assert len(table.origin["content"]) == 64


def test_a_part_is_used_only_when_it_is_named(mirror: Path) -> None:
    table = sources.read(source(dataset="some/thing", subset="main", split="train_10"))
    assert table.partial and len(table.rows) == 1
    with pytest.raises(UserError, match=r"no split 'test' of some/thing:main; it has: train, train_10 \(a part\)"):
        sources.read(source(dataset="some/thing", subset="main", split="test"))


def test_a_mirror_of_another_revision_is_refused(mirror: Path) -> None:
    assert sources.read(source(dataset="some/held", revision="abc", split="train")).origin["loaded_revision"] == "abc"
    assert sources.read(source(dataset="some/held", split="train")).origin["pinned"] is False
    with pytest.raises(UserError, match="revision abc, the task declares def"):
        sources.read(source(dataset="some/held", revision="def", split="train"))


def test_a_mirror_that_lacks_its_own_file(mirror: Path) -> None:
    (mirror / "things" / "train.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"cannot read .*train\.jsonl\.gz"):
        sources.read(source(dataset="some/thing", subset="main", split="train"))


def test_a_broken_entry_and_a_folder_that_is_no_mirror(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="lacks 'folder' or 'splits'"):
        sources.read(source(dataset="some/broken", split="train"))
    monkeypatch.setenv("PEFTLAB_MIRROR", str(mirror / "things"))
    with pytest.raises(UserError, match=r"holds no mirror\.json"):
        sources.read(source(dataset="some/thing", subset="main", split="train"))


# ---------------------------------------------------------------------------------------------------------- hub


class FakeDatasets(types.ModuleType):
    """Stands in for the `datasets` library: answers with ROWS or with an error, and keeps what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("datasets")
        self.error = error
        self.asked: list[Any] = []
        self.exceptions = types.SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))

    def load_dataset(self, *names: Any, **options: Any) -> Any:
        self.asked.append((names, options))
        if self.error is not None:
            raise self.error
        checksums: dict[str, Any] = {f"hf://datasets/some/where@{'c' * 40}/train.parquet": {}}
        return _Dataset(ROWS, checksums)


class _Dataset(list[Any]):
    def __init__(self, rows: list[Any], checksums: dict[str, Any]) -> None:
        super().__init__(rows)
        self.info = types.SimpleNamespace(download_checksums=checksums)


def test_the_hub_is_asked_for_the_pinned_revision(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    table = sources.read(source(dataset="some/where", subset="main", revision="c" * 40, split="train[:2]"))
    assert table.rows == ROWS
    assert fake.asked == [(("some/where", "main"), {"revision": "c" * 40, "split": "train"})]
    assert table.origin["from"] == "hub" and table.origin["loaded_revision"] == "c" * 40


def test_the_mirror_comes_before_the_hub(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    sources.read(source(dataset="some/thing", subset="main", split="train"))
    assert fake.asked == []


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the 'datasets' library") as caught:
        sources.read(source(dataset="some/where", split="train"))
    assert "peftlab[hub]" in str(caught.value.fix)


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("no config"), PermissionError("cache")])
def test_an_unreachable_hub_says_what_to_do(error: Exception, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets(error))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    with pytest.raises(UserError, match=str(error)) as caught:
        sources.read(source(dataset="some/thing", split="train"))
    fix = str(caught.value.fix)
    assert "set PEFTLAB_MIRROR" in fix and "unset HF_HUB_OFFLINE" in fix and "some/thing:main" in fix
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(UserError) as caught:
        sources.read(source(dataset="some/thing", split="train"))
    assert "unset" not in str(caught.value.fix)


@pytest.mark.slow
def test_the_real_library_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        pytest.skip("the library would look for the network: set HF_HUB_OFFLINE=1")
    with pytest.raises(UserError, match=r"cannot read no-such/data \(split 'train'\) from the hub"):
        sources.read(source(dataset="no-such/data", split="train"))


# --------------------------------------------------------------------------------------------------- generators


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_dataset(name: str, *, seed: int, size: int, step: int = 1) -> list[dict[str, Any]]:
        if step < 1:
            raise AssertionError("step must be positive")
        numbers = range(seed, seed + size)
        return [{"question": f"{n} ?", "answer": str(n * step), "metadata": {"n": n, "answer": "no"}} for n in numbers]

    library, factory = types.ModuleType("reasoning_gym"), types.ModuleType("reasoning_gym.factory")
    vars(library)["create_dataset"] = create_dataset
    vars(factory)["DATASETS"] = {"counting": ()}
    monkeypatch.setitem(sys.modules, "reasoning_gym", library)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2")


def counting(**fields: Any) -> Source:
    return source(**{"generator": "counting", "seed": 3, "size": 2, **fields})


def test_metadata_become_columns_and_change_no_others(generators: None) -> None:
    table = sources.read(counting(version="1.2", options={"step": 2}))
    assert table.rows == [{"n": 3, "question": "3 ?", "answer": "6"}, {"n": 4, "question": "4 ?", "answer": "8"}]
    assert table.origin["version"] == "1.2" and table.origin["pinned"]
    assert not sources.read(counting()).origin["pinned"]


def test_another_version_could_generate_other_rows(generators: None) -> None:
    with pytest.raises(UserError, match=r"1\.2 is installed, not 1\.3") as caught:
        sources.read(counting(version="1.3"))
    assert caught.value.fix == "pip install reasoning-gym==1.3"


def test_generator_mistakes_are_the_users(generators: None) -> None:
    with pytest.raises(UserError, match="unknown generator 'countin'"):
        sources.read(counting(generator="countin"))
    with pytest.raises(UserError, match="step must be positive"):
        sources.read(counting(options={"step": 0}))
    with pytest.raises(UserError, match="refuses its options"):
        sources.read(counting(options={"stop": 1}))
    with pytest.raises(UserError, match="stands in 'options'"):
        sources.read(counting(options={"seed": 1}))


def test_without_the_generator_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError) as caught:
        sources.read(counting())
    assert "peftlab[generators]" in str(caught.value.fix)
