"""A mirror filled by `peftlab fetch` is what `PEFTLAB_MIRROR` reads; whatever goes wrong, it stays usable."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli import main
from peftlab.config.source import Source
from peftlab.config.task import load
from peftlab.errors import UserError
from peftlab.rows import fetching, sources
from peftlab.rows.fetching import Fetched, fetch
from peftlab.rows.sources import Table

PINNED, OTHER = "a" * 40, "b" * 40
SPLITS: dict[str, list[dict[str, Any]]] = {
    "train": [{"question": f"{number} + 1", "answer": str(number + 1), "tags": ["sum", None]} for number in range(7)],
    "test": [{"question": "2 + 2 = \u00e9?", "answer": "4", "tags": []}],
}
TASK = """
version: 1
kind: generate
train: {dataset: org/sums, subset: easy, REVISION split: "train[:5]"}
valid: {dataset: org/sums, subset: easy, REVISION split: "train[5:]"}
test: {dataset: org/sums, subset: easy, REVISION split: test}
columns: {question: question, answer: answer}
prompt: "{question}"
target: " {answer}"
grader: {name: numeric}
metrics: {exact_match: higher}
"""


class Hub:
    """Stands in for the hub: gives SPLITS, remembers what was asked, and fails on request."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None, int | None]] = []
        self.splits: dict[str, list[dict[str, Any]]] = dict(SPLITS)
        self.commit: str | None = None

    def read(self, source: Source, first: int | None = None) -> Table:
        self.asked.append((sources.hub_name(source), source.split_name, source.revision, first))
        if source.split_name not in self.splits:
            raise UserError(f"cannot read {source.dataset} (split '{source.split_name}') from the hub: Unknown split")
        return Table(rows=self.splits[source.split_name][:first], origin={"loaded_revision": self.commit})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub()
    monkeypatch.setattr(sources, "read_hub", made.read)
    for variable in (*sources.OFFLINE_VARIABLES, sources.MIRROR_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return made


def task(name: str = "sums", *, revision: str | None = PINNED, **changes: str) -> str:
    text = TASK.replace("REVISION", f"revision: {revision}," if revision else "")
    for old, new in changes.items():
        text = text.replace(old, new)
    Path(f"{name}.yaml").write_text(text)
    return f"./{name}.yaml"


def fetched(*names: str, to: str = "mirror", force: bool = False) -> list[Fetched]:
    return list(fetch(names, Path(to), force=force))


def index(to: str = "mirror") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(to) / "mirror.json").read_text())
    return found


# ---------------------------------------------------------------------------------------------------- what it writes


def test_a_fetched_mirror_answers_for_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    name = task()
    done = fetched(name)
    assert [(one.name, one.split, one.state, one.rows, one.revision) for one in done] == [
        ("org/sums:easy", "train", "fetched", 7, PINNED),
        ("org/sums:easy", "test", "fetched", 1, PINNED),
    ]
    assert hub.asked == [("org/sums:easy", "train", PINNED, None), ("org/sums:easy", "test", PINNED, None)]
    assert index() == {
        "org/sums:easy": {
            "folder": "org--sums--easy@aaaaaaaaaaaa",
            "splits": {"test": "test.jsonl.gz", "train": "train.jsonl.gz"},
            "partial": [],
            "revision": PINNED,
        }
    }
    monkeypatch.setenv(sources.MIRROR_VARIABLE, "mirror")
    monkeypatch.setattr(sources, "read_hub", None)
    sums = load(name)
    for source, split in ((sums.train, "train"), (sums.test, "test")):
        assert source is not None
        table = sources.read(source)
        assert list(table.rows) == SPLITS[split]
        assert table.origin["from"] == "mirror"
        assert table.origin["loaded_revision"] == PINNED
        assert not table.partial


def test_the_files_are_compressed_json_lines_and_the_same_every_time(hub: Hub) -> None:
    fetched(task(), to="one")
    fetched(task(), to="two")
    files = [Path(to) / "org--sums--easy@aaaaaaaaaaaa" / "train.jsonl.gz" for to in ("one", "two")]
    lines = gzip.decompress(files[0].read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == SPLITS["train"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_there_is_not_downloaded_again_unless_forced(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    name = task()
    fetched(name)
    before = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # and needs no network then
    assert [one.state for one in fetched(name)] == ["there already"] * 2
    assert len(hub.asked) == before
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.splits["test"] = [{"question": "new", "answer": "1"}]
    assert [one.state for one in fetched(name, force=True)] == ["fetched"] * 2
    assert len(hub.asked) == before + 2
    file = Path("mirror", "org--sums--easy@aaaaaaaaaaaa", "test.jsonl.gz")
    assert json.loads(gzip.decompress(file.read_bytes())) == hub.splits["test"][0]


def test_another_revision_is_refused_and_with_force_replaces_all_splits_of_the_old(hub: Hub) -> None:
    fetched(task())
    newer = task("newer", revision=OTHER)
    with pytest.raises(UserError, match=f"at revision {PINNED}, wanted is {OTHER}"):
        fetched(newer)
    assert index()["org/sums:easy"]["revision"] == PINNED
    generator = fetch([newer], Path("mirror"), force=True)
    next(generator)  # the first split only: the index must not mix two revisions
    entry = index()["org/sums:easy"]
    assert (entry["revision"], entry["splits"]) == (OTHER, {"train": "train.jsonl.gz"})
    next(generator)
    entry = index()["org/sums:easy"]
    assert (entry["revision"], sorted(entry["splits"])) == (OTHER, ["test", "train"])
    assert entry["folder"] == "org--sums--easy@bbbbbbbbbbbb"


def test_an_unpinned_data_set_is_fetched_at_one_commit(hub: Hub) -> None:
    hub.commit = PINNED
    fetched(task(revision=None))
    assert [revision for _, _, revision, _ in hub.asked] == [None, PINNED]
    assert index()["org/sums:easy"]["revision"] == PINNED


def test_a_split_added_to_an_entry_of_unknown_revision_claims_none(hub: Hub) -> None:
    place = Path("mirror", "sums")
    place.mkdir(parents=True)
    (place / "test.jsonl.gz").write_bytes(gzip.compress(b'{"question": "old", "answer": "1"}\n'))
    entry = {"folder": "sums", "splits": {"test": "test.jsonl.gz"}, "partial": []}
    other = {"folder": "else", "splits": {"x": "x.jsonl.gz"}, "partial": ["x"]}
    Path("mirror/mirror.json").write_text(json.dumps({"org/sums:easy": entry, "org/other": other}))
    assert [(one.split, one.state) for one in fetched(task())] == [("train", "fetched"), ("test", "there already")]
    assert index()["org/other"] == other
    assert index()["org/sums:easy"] == {
        **entry,
        "splits": {"test": "test.jsonl.gz", "train": "train.jsonl.gz"},
    }
    assert (place / "train.jsonl.gz").is_file()


def test_texts_are_fetched_too_and_a_text_of_some_rows_is_a_part(hub: Hub) -> None:
    hub.splits["train"] = [{"text": f"row {number}"} for number in range(300)]
    (done,) = fetched("finewiki")
    assert done.partial
    assert done.rows == 100
    assert index()["HuggingFaceFW/finewiki:en"]["partial"] == ["train"]
    assert hub.asked[-1][-1] == 100
    (again,) = fetched("finewiki")
    assert again.state == "there already"


@pytest.mark.parametrize("kind", ["generator", "local"])
def test_generators_and_local_files_need_no_fetching(hub: Hub, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    if kind == "generator":
        name = "arithmetic"
    else:
        name = task(**{"org/sums, subset: easy,": "./rows,", f"revision: {PINNED},": ""})
    assert main(["fetch", name, "--to", "mirror"]) == 0
    printed = capsys.readouterr()
    assert "nothing to fetch" in printed.out
    assert "PEFTLAB_MIRROR" not in printed.err
    assert hub.asked == []
    assert not Path("mirror/mirror.json").exists()


def test_the_command_prints_what_is_there_now(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", task(), "--to", "mirror"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[:3] for line in printed.out.splitlines()[1:]] == [
        ["org/sums:easy", "train", "fetched"],
        ["org/sums:easy", "test", "fetched"],
    ]
    assert "fetching org/sums:easy, split train" in printed.err
    assert "PEFTLAB_MIRROR=mirror" in printed.err


# ------------------------------------------------------------------------------------------------ stopped on the way


@pytest.mark.parametrize("stop", ["write", "list"])
def test_a_fetch_that_is_stopped_lists_no_half_split(hub: Hub, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    fetched(
        task(
            "first", **{"test: {": "test: {", 'split: "train[:5]"': "split: test", 'split: "train[5:]"': "split: test"}
        )
    )
    before = index()
    assert sorted(before["org/sums:easy"]["splits"]) == ["test"]
    with monkeypatch.context() as patch:
        if stop == "write":
            hub.splits["train"] = [*SPLITS["train"][:3], Interrupting()]
        else:
            patch.setattr(fetching, "write_atomic", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetched(task())
    assert index() == before
    assert not list(Path("mirror").rglob("*.tmp"))
    hub.splits["train"] = SPLITS["train"]
    assert [one.state for one in fetched(task())] == ["fetched", "there already"]
    assert sorted(index()["org/sums:easy"]["splits"]) == ["test", "train"]


def test_a_forced_fetch_that_is_stopped_leaves_the_old_rows(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched(task())
    hub.splits["train"] = [{"question": "new", "answer": "1"}, Interrupting()]
    with pytest.raises(KeyboardInterrupt):
        fetched(task(), force=True)
    monkeypatch.setenv(sources.MIRROR_VARIABLE, "mirror")
    source = load("./sums.yaml").train
    assert source is not None
    assert list(sources.read(source).rows) == SPLITS["train"]


class Interrupting(dict[str, Any]):
    """A row at which somebody presses Ctrl-C."""

    def __init__(self) -> None:
        super().__init__(question="q")

    def items(self) -> Any:
        raise KeyboardInterrupt


def _interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


# -------------------------------------------------------------------------------------------------------- bad input


def a_file(hub: Hub) -> str:
    Path("mirror").write_text("no folder")
    return task()


def damaged(content: str) -> Callable[[Hub], str]:
    def make(hub: Hub) -> str:
        Path("mirror").mkdir()
        Path("mirror/mirror.json").write_text(content)
        return task()

    return make


def offline(hub: Hub) -> str:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return task()


def rows_of(value: Any) -> Callable[[Hub], str]:
    def make(hub: Hub) -> str:
        hub.splits["train"] = [{"question": "fine"}, {"question": value}]
        return task()

    return make


BAD: dict[str, tuple[Callable[[Hub], str], str]] = {
    "unknown task": (lambda hub: "gsm8kk", "did you mean 'gsm8k'?"),
    "unknown text": (lambda hub: "wikitext", "did you mean 'wikitext2'?"),
    "no such file": (lambda hub: "./absent.yaml", "task file not found"),
    "target is a file": (a_file, "is a file"),
    "network switched off": (offline, "unset HF_HUB_OFFLINE"),
    "index is no JSON": (damaged("{"), "mirror.json is not valid JSON"),
    "index is a list": (damaged("[]"), "mirror.json holds a list"),
    "entry without splits": (damaged('{"org/sums:easy": {"folder": "x"}}'), "the entry 'org/sums:easy' lacks"),
    "entry leads outside": (damaged('{"org/sums:easy": {"folder": "../x", "splits": {}}}'), "a 'folder' below"),
    "data set leads outside": (lambda hub: task(**{"org/sums": "org/../../sums"}), "cannot name a file"),
    "subset leads outside": (lambda hub: task(easy="../../easy"), "cannot name a file"),
    "split leads outside": (lambda hub: task(**{"split: test": "split: ../../test"}), "cannot name a file"),
    "split not on the hub": (lambda hub: task(**{"split: test": "split: dev"}), "Unknown split"),
    "rows with dates": (rows_of(datetime.date(2026, 1, 1)), "split 'train', row 2 is no plain data"),
    "rows with NaN": (rows_of(float("nan")), "split 'train', row 2 is no plain data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_and_leave_no_split_listed(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make, says = BAD[case]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored afterwards, whatever the case sets
    name = make(hub)
    before = Path("mirror/mirror.json").read_text() if Path("mirror/mirror.json").is_file() else None
    assert main(["fetch", name, "--to", "mirror"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(Path().rglob("*.tmp"))
    assert not list(Path().resolve().parent.glob("*.jsonl.gz"))
    if case not in ("split leads outside", "split not on the hub"):  # there the splits before it are good
        after = Path("mirror/mirror.json").read_text() if Path("mirror/mirror.json").is_file() else None
        assert after == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(hub: Hub) -> None:
    Path("mirror").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written to"):
        fetched(task())


def test_a_folder_that_refuses_is_an_error_of_the_user(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        fetched(task())


def test_a_full_disk_is_an_error_of_the_user(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        fetched(task())
    assert not Path("mirror/mirror.json").exists()
    assert not list(Path("mirror").rglob("*.gz"))
