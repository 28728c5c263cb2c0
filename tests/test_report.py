"""The page: its numbers are those of the comparison, its data cannot become markup, and it asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import report_material
from cli_material import a_record, store, working_folder
from peftlab import report as package
from peftlab.cli import main
from peftlab.errors import UserError
from peftlab.records import record as records
from peftlab.records.record import dumps, loads
from peftlab.report import contents, page
from peftlab.report.contents import Page, Row, Sheet
from peftlab.verdicts.arms import BareModel
from s0_material import a_new_file
from verdict_material import Lab

HERE = Path(package.__file__).parent


class Reader(HTMLParser):
    """A page as a browser's parser sees it: tags with attributes, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "title":
            self.title += data

    @property
    def data(self) -> Page:
        """The typed data of the page."""
        return Page.model_validate(loads(self.scripts[0]))


def made(lab: Lab, **options: Any) -> Page:
    bases = [
        BareModel(evaluation=one, folder=lab.root / str(one.folder))
        for record in lab.records
        for one in record.evaluations
        if one.role == "base"
    ]
    plain = {"folder": "results", "version": "0.1.0"}
    return contents.page(lab.compare(bases=bases), lab.records, **{**plain, **options})


def cells(sheet: Sheet, row: Row) -> dict[str, Any]:
    return dict(zip([column.name for column in sheet.columns], row.values, strict=True))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Five arms of three, one and two seeds with a starting model, and a run that failed."""
    found = Lab(tmp_path)
    base = found.evaluation("base/gsm8k-0", "base", found.outcomes(0.2))
    for number, method in enumerate(["lora", "ia3", "full", "prompt", "adalora"]):
        for seed in range((3, 1, 2)[number % 3]):
            report_material.run(found, method, number, seed, base, points=7)
    curve = {"step": [1, 2, 3], "loss": [1.0, float("inf"), float("nan")]}
    found.run(
        "lora/diverged", 0, None, key="e" * 16, status="failed", error="the loss is nan", evaluations=(), curve=curve
    )
    return found


# ---------------------------------------------------------------------------------------------------------- numbers


def test_numbers_are_those_of_the_comparison(lab: Lab) -> None:
    (sheet,) = made(lab).sheets
    (compared,) = lab.compare().tables
    assert [cells(sheet, row)["experiment"] for row in sheet.rows if row.kind == "arm"] == [
        arm.label for arm in compared.arms
    ]
    for arm, row in zip(compared.arms, sheet.rows, strict=False):
        found = cells(sheet, row)
        assert (found["score"], row.intervals["score"]) == (arm.score.mean, (arm.score.low, arm.score.high))
        assert arm.base is not None
        assert found["base_score"] == arm.base.score.mean
        assert row.intervals["base_score"] == (arm.base.score.low, arm.base.score.high)
        assert found["seeds"] == len(arm.seeds) == len(row.runs)
        costs = (arm.costs.train_seconds, arm.costs.peak_memory_bytes, arm.costs.num_trainable_parameters)
        assert (found["train_seconds"], found["memory_max"], found["trainable_parameters"]) == costs
        assert (found["adapter_bytes"], found["num_items"]) == (arm.costs.adapter_bytes, arm.num_items)


def test_what_a_terminal_prints_is_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = report_material.folder(tmp_path, arms=3, seeds=3, points=5)
    assert main(["report", str(results), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    (sheet,) = Reader((tmp_path / "page.html").read_text()).data.sheets
    assert main(["compare", "--results", str(results)]) == 0
    printed = re.sub(r" +", " ", capsys.readouterr().out)
    for row in sheet.rows:
        found = cells(sheet, row)
        low, high = row.intervals["score"]
        assert f"{found['score']:.4f} {low:.4f} to {high:.4f}" in printed
        if row.kind == "arm":
            assert f" {found['train_seconds']:.1f} " in printed
            assert f" {found['trainable_parameters']:,.0f} " in printed
    assert sheet.claims.rows
    for claim in sheet.claims.rows:
        assert " ".join(claim) in printed
    assert all(f"note: {note}" in printed for note in sheet.notes)


def test_other_columns_are_means_over_seeds(lab: Lab) -> None:
    (sheet,) = made(lab).sheets
    row = next(row for row in sheet.rows if cells(sheet, row)["experiment"] == "lora/r0")
    found = cells(sheet, row)
    runs = [record for record in lab.records if record.experiment == "lora/r0"]
    assert len(runs) == 3
    assert found["train_loss"] == pytest.approx(sum(one.training["final_loss"] for one in runs) / 3)
    assert found["total_seconds"] == pytest.approx(83.0 + 1.0)
    assert (found["train_samples"], found["train_tokens"], found["model"]) == (8000, 1e6, "org/tiny")
    assert (found["task"], found["created_at"]) == ("metamath", "2026-01-01T10:00:00+00:00")


def test_columns_directions_and_what_is_shown_first(lab: Lab) -> None:
    (sheet,) = made(lab).sheets
    directions = {column.name: column.direction for column in sheet.columns}
    lower = (
        "total_seconds train_seconds train_loss memory_max memory_99th memory_avg trainable_parameters adapter_bytes"
    )
    assert {directions[name] for name in [*lower.split(), "forgetting"]} == {"lower"}
    assert directions["score"] == directions["base_score"] == "higher"
    assert directions["train_samples"] is directions["train_tokens"] is directions["created_at"] is None
    shown = [column.name for column in sheet.columns if column.shown]
    assert shown[:5] == ["experiment", "method", "seeds", "train_seconds", "score"]
    assert len(shown) == 9
    titles = {column.name: column.title for column in sheet.columns}
    assert all(titles[name].startswith("memory added") for name in ("memory_max", "memory_99th", "memory_avg"))


def test_what_was_not_measured_says_why(lab: Lab) -> None:
    (sheet,) = made(lab).sheets
    rows = {cells(sheet, row)["experiment"]: row for row in sheet.rows}
    assert cells(sheet, rows["prompt/r3"])["memory_max"] is None
    assert rows["prompt/r3"].unknown["memory_max"] == "the system does not tell"
    assert rows["lora/r0"].unknown["forgetting"] == "not asked for"
    for row in sheet.rows:
        if row.kind == "arm":
            assert set(row.unknown) == {name for name, value in cells(sheet, row).items() if value is None}


def test_runs_without_outcomes_are_unpaired(lab: Lab) -> None:
    alone = lab.evaluation("imported", "last", lab.outcomes(0.5), folder=None, items=None)
    lab.run("lora/imported", 0, None, key="f" * 16, evaluations=(alone,))
    (sheet,) = made(lab).sheets
    unpaired = {cells(sheet, row)["experiment"]: row.unpaired for row in sheet.rows if row.unpaired}
    assert unpaired == {"lora/imported": "no outcomes per item were stored"}
    about = [claim for claim in sheet.claims.rows if "lora/imported" in claim[:2]]
    assert about and all("not paired, so not tested" in claim[-1] for claim in about)


def test_one_seed_is_never_called_a_method(lab: Lab) -> None:
    (sheet,) = made(lab).sheets
    rows = {cells(sheet, row)["experiment"]: row for row in sheet.rows}
    assert rows["ia3/r1"].seeds == (0,)
    about = [claim[-1] for claim in sheet.claims.rows if "ia3/r1" in claim[:2]]
    assert about and not any("method" in claim for claim in about)


def test_runs_left_out_and_files_unread_are_named(lab: Lab) -> None:
    found = made(lab, problems=[(Path("results/x.json"), "not readable at all")])
    assert [(one.status, one.reason) for one in found.left_out] == [
        ("failed", "the loss is nan"),
        ("not readable", "not readable at all"),
    ]
    assert found.statuses == {"failed": 1, "finished": 10}


def test_curves(lab: Lab) -> None:
    found = made(lab)
    run = next(one for one in found.runs if one.experiment == "lora/r0" and one.seed == 1)
    record = next(one for one in lab.records if one.key == run.key)
    assert list(run.loss.steps) == record.curve["step"]
    assert list(run.loss.values) == pytest.approx(record.curve["loss"], rel=1e-5)
    assert run.validation["exact_match"].steps == (250, 500, 750, 1000)
    diverged = next(one for one in found.runs if one.status == "failed")
    assert repr(diverged.loss.values) == "(1.0, inf, nan)"
    for sheet in found.sheets:
        for row in sheet.rows:
            assert {found.runs[number].experiment for number in row.runs} <= {cells(sheet, row)["experiment"]}


def test_settings_are_shared_or_a_runs_own(lab: Lab) -> None:
    """Together they are what the record says, with its versions; nothing without a value, nothing twice."""
    made_with = {"versions": {"torch": "2.13.0"}, "git": {"commit": None}, "adapter_sha256": "e" * 64}
    for index, record in enumerate(lab.records):
        spec = {**record.spec, "task": {"name": "secret"}, "folder": "/home/x", "seed": record.seed}
        spec["adapter"] = {**spec.get("adapter", {}), "target_modules": ["q", "v"], "bias": None}
        system = {"system": {"system": "Linux" if index else "Darwin"}}
        lab.records[index] = record.model_copy(update={"spec": spec, "provenance": {**made_with, **system}})
    found = made(lab)
    assert found.shared == {
        "model.id": "org/tiny",
        "adapter.target_modules": '["q", "v"]',
        "made with.versions.torch": "2.13.0",
    }
    for run in found.runs:
        record = next(one for one in lab.records if one.key == run.key)
        own = {"made with.system.system": record.provenance["system"]["system"]}
        if "optim" in record.spec:
            own |= {"adapter.r": record.spec["adapter"]["r"]}
            own |= {"optim.learning_rate": record.spec["optim"]["learning_rate"]}
        assert run.own == own


def test_a_golden_record_makes_a_page() -> None:
    golden = records.from_json((Path(__file__).parent / "golden" / "record-1.json").read_text(), where="golden")
    lab = Lab(Path("/nowhere"), num_items=0)
    lab.records.append(golden)
    (sheet,) = made_without_files(lab).sheets
    found = cells(sheet, sheet.rows[0])
    assert (found["train_samples"], found["train_tokens"], found["steps"]) == (24, 352, 6)
    assert found["total_seconds"] == pytest.approx(0.339)
    assert found["toy.exact_match_flexible"] == golden.evaluations[-1].metrics["exact_match_flexible"].mean
    assert sheet.rows[0].unknown["forgetting"] == "data.forgetting is null"
    assert "gone" in str(sheet.rows[0].unpaired)


def made_without_files(lab: Lab) -> Page:
    return contents.page(lab.compare(), lab.records, folder="results", version="0")


# ------------------------------------------------------------------------------------------------------- the file

HOSTILE = ("lora/<script>alert(1)</script>", "lora/</script><!-- <script>", "lora/<img src=x onerror=alert(1)>")


def test_names_from_records_stay_text(lab: Lab) -> None:
    plain = Reader(page.render(made(lab)))
    for name, record in zip(HOSTILE, lab.records, strict=False):
        lab.records[lab.records.index(record)] = record.model_copy(update={"experiment": name, "arm": record.key})
    folder, where = "<b>&amp; 'co'", "method == '</script>'"
    text = page.render(made(lab, folder=folder, where=where, problems=[(Path("<i>.json"), "<b>\u2028")]))
    hostile = Reader(text)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert "<script>alert" not in text
    assert hostile.title == f"peftlab: {folder}"
    assert (hostile.data.folder, hostile.data.where) == (folder, where)
    assert {run.experiment for run in hostile.data.runs} >= set(HOSTILE)


def test_a_name_cannot_stand_for_a_place_of_the_template(lab: Lab) -> None:
    text = page.render(made(lab, folder="<!-- @scripts -->"))
    assert len(Reader(text).scripts) == len(page.SECTIONS) + 4
    assert "<!-- @" not in text


def test_the_page_refers_to_nothing(lab: Lab) -> None:
    reader = Reader(page.render(made(lab)))
    for tag, attributes in reader.tags:
        assert "src" not in attributes and "srcset" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:")), attributes  # type: ignore[union-attr]
        assert not any(name.startswith("on") for name in attributes), attributes
    assert not {"iframe", "object", "embed", "base", "img"} & {tag for tag, _ in reader.tags}
    style = (HERE / "page.css").read_text()
    assert "url(" not in style and "@import" not in style and "@font-face" not in style


def test_only_these_scripts_may_run(lab: Lab) -> None:
    """The digests in the policy are those of the scripts as a browser reads them."""
    reader = Reader(page.render(made(lab)))
    policies = [tag[1]["content"] for tag in reader.tags if "http-equiv" in tag[1]]
    (policy,) = policies
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy and "script-src 'unsafe" not in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    found = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in reader.scripts[1:]]
    assert allowed == found
    assert len(set(found)) == len(page.SECTIONS) + 3


def test_scripts_never_write_markup() -> None:
    for path in [HERE / "page.js", *sorted((HERE / "sections").glob("*.js"))]:
        code = re.sub(r"//.*", "", path.read_text(encoding="ascii"))
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "import("):
            assert word not in code, f"{path.name}: {word}"
    assert {path.stem for path in (HERE / "sections").glob("*.js")} == set(page.SECTIONS)


def test_vendored_scripts_are_as_published() -> None:
    lines = (HERE / "vendor" / "README.md").read_text().splitlines()
    stated = {cells[1].strip(): cells[4].strip() for line in lines if ".js" in line and (cells := line.split("|"))[4:]}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (HERE / "vendor").glob("*.js")}
    assert stated == found


def test_equal_results_make_equal_pages(lab: Lab) -> None:
    first, second = page.render(made(lab)), page.render(made(lab))
    assert first == second
    assert dumps(Reader(first).data.model_dump()) == dumps(made(lab).model_dump())


def test_no_runs_scored_is_a_page_too() -> None:
    lab = Lab(Path("/nowhere"), num_items=0)
    lab.run("lora/a", 0, None, status="killed", evaluations=(), error="killed")
    found = Reader(page.render(made_without_files(lab))).data
    assert found.sheets == ()
    assert [one.reason for one in found.left_out] == ["killed"]


# --------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "  fix: " in captured.err and "Traceback" not in captured.err
    return captured.err


def test_report_replaces_its_own_page_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record())
    assert main(["report"]) == 0
    assert main(["report", "results", "-o", "report.html"]) == 0
    Path("notes.html").write_text("<p>mine")
    capsys.readouterr()
    assert "a file that is no page of peftlab" in refused(capsys, "-o", "notes.html")
    assert Path("notes.html").read_text() == "<p>mine"
    assert sorted(path.name for path in place.glob("*.html")) == ["notes.html", "report.html"]


def test_nothing_to_show_and_nowhere_to_write(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no runs in results" in refused(capsys)
    Path("empty").mkdir()
    assert "no runs in empty" in refused(capsys, "empty")
    store(a_record())
    assert "there is no folder missing" in refused(capsys, "-o", "missing/page.html")
    Path("folder").mkdir()
    assert "that is a folder" in refused(capsys, "-o", "folder")
    assert "no run in results passes the filter" in refused(capsys, "--where", "seed == 9")
    assert "no run in results has to do with task 'other'" in refused(capsys, "--task", "other")
    assert "unknown metric 'f1'" in refused(capsys, "--metric", "f1")
    assert not list(place.rglob("*.html")) and not Path("missing").exists()


def test_an_unreadable_record_is_named_and_skipped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record())
    Path("results/broken--additions--seed0--aaaaaaaaaaaa.json").write_text("{")
    assert main(["report"]) == 0
    assert "not readable: results/broken" in capsys.readouterr().err
    found = Reader(Path("report.html").read_text()).data
    assert len(found.runs) == 1
    assert found.left_out[0].name == "results/broken--additions--seed0--aaaaaaaaaaaa.json"


def test_report_takes_a_filter_and_a_metric(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record(), a_record(key="fedcba9876543210", experiment="ia3/second", method="ia3", arm="b" * 16))
    assert main(["report", "--where", "method == 'ia3'", "--metric", "exact_match", "--task", "additions"]) == 0
    found = Reader(Path("report.html").read_text()).data
    assert [run.experiment for run in found.runs] == ["ia3/second"]
    assert found.where == "method == 'ia3'"


def test_imported_results_are_unpaired(place: Path) -> None:
    """Through the importer itself: what its records know is shown, the rest says why not."""
    Path("theirs.json").write_text(json.dumps(a_new_file()))
    assert main(["results", "import", "--format", "s0", "theirs.json"]) == 0
    assert main(["report"]) == 0
    (sheet,) = Reader(Path("report.html").read_text()).data.sheets
    (row,) = sheet.rows
    found = cells(sheet, row)
    assert row.unpaired == "no outcomes per item were stored"
    theirs = a_new_file()
    last = theirs["train_info"]["metrics"][-1]
    assert (found["score"], found["train_samples"]) == (last["test accuracy"], last["train samples"])
    assert found["train_loss"] is None and "not the loss of the last step" in row.unknown["train_loss"]
    assert found["total_seconds"] == pytest.approx(theirs["run_info"]["total_time"])
    assert found["memory_max"] == theirs["train_info"]["accelerator_memory_max"]
    assert row.unknown["base_score"] == "the benchmark does not score the starting model"


def test_the_older_of_two_imported_results_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, newer = a_new_file(), a_new_file()
    older["train_info"]["metrics"][-1]["test accuracy"] = 600 / 1319
    newer["run_info"]["created_at"] = "2026-07-21T10:00:00+00:00"
    for name, one in (("older", older), ("newer", newer)):
        Path(f"{name}.json").write_text(json.dumps(one))
    assert main(["results", "import", "--format", "s0", "older.json", "newer.json"]) == 0
    assert main(["report"]) == 0
    found = Reader(Path("report.html").read_text()).data
    (row,) = found.sheets[0].rows
    assert cells(found.sheets[0], row)["score"] == 636 / 1319
    (gone,) = found.left_out
    assert "stands for it" in gone.reason and gone.name not in gone.reason
    capsys.readouterr()
    assert main(["compare"]) == 0
    printed = capsys.readouterr().out
    assert gone.name in printed and "stands for it" in printed


def test_report_loads_no_torch(place: Path) -> None:
    store(a_record())
    code = (
        "import sys\nfrom peftlab.cli import main\n"
        "assert main(['report', '--where', 'seed == 0']) == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_the_old_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page.write(Path("page.html"), page.MARK)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        page.write(Path("page.html"), f"{page.MARK} new")
    assert [path.name for path in place.glob("*page*")] == ["page.html"]
    assert Path("page.html").read_text() == page.MARK


def test_write_refuses_before_writing(place: Path) -> None:
    with pytest.raises(UserError, match="that is a folder"):
        page.write(place, "text")


def test_data_is_compact(lab: Lab) -> None:
    """A run's share: curves in six digits, values without their names."""
    found = made(lab)
    per_run = sum(len(json.dumps(run.model_dump(mode="json"))) for run in found.runs) / len(found.runs)
    assert per_run < 1500
