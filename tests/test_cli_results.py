"""`peftlab results` and `compare`: lists, one record, differences, stale versions, claims; and how tables are drawn."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from cli_material import PARAMETERS, a_record, evaluation, experiment, store, working_folder
from peftlab.cli import arguments, main, repeating, scores, tables
from peftlab.config import loading
from peftlab.records import record as records


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch)


def test_results_lists_runs_with_scores(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record(), a_record(key="fedcba9876543210", seed=1, task="other", evaluations=()))
    assert main(["results"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["experiment", "task", "seed", "status", "category"]
    first = next(line for line in lines if "0123456789ab" in line)
    for text in ("lora/first", "additions", "finished", "0.500 +- 0.050", "0.100 +- 0.050", "1 min 15 s"):
        assert text in first
    assert main(["results", "--task", "other"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "fedcba987654" in lines[1]


def test_results_json_is_records(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = a_record(curve={"loss": [1.0, float("nan")]})
    store(nan)
    assert main(["results", "--json"]) == 0
    plain = records.loads(capsys.readouterr().out)
    assert records.to_json(records.Record.model_validate(plain[0])) == records.to_json(nan)


def test_results_without_runs_or_with_broken_ones(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results"]) == 0
    assert "no runs in results" in capsys.readouterr().err
    store(a_record())
    Path("results/broken--additions--seed0--aaaaaaaaaaaa.json").write_text("{")
    assert main(["results"]) == 0
    output = capsys.readouterr()
    assert "0123456789ab" in output.out
    assert "not readable: results/broken" in output.err


def test_results_stale_names_the_difference(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record(), a_record(key="fedcba9876543210", seed=1, provenance={}))
    assert main(["results", "--stale"]) == 0
    text = capsys.readouterr().out
    assert "pydantic 0.0.1 (now " in text
    assert "no-such-package 1.0 (now not installed)" in text
    assert "absent" not in text
    assert "fedcba" not in text


def test_results_show(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record(error="nothing", aliases=("lora/same",)))
    assert main(["results", "show", "0123"]) == 0
    text = capsys.readouterr().out
    for part in (
        "0123456789abcdef",
        "optim.learning_rate = 0.001",
        "lora/same",
        "exact_match 0.5 (0.402 to 0.598)",
        "pydantic 0.0.1",
    ):
        assert part in text
    assert main(["results", "show", "lora/first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == "0123456789abcdef"
    assert main(["results", "show", "9999"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_results_show_asks_for_one_of_several(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(a_record(), a_record(key="fedcba9876543210", seed=1))
    assert main(["results", "show", "lora/first"]) == 2
    assert "names 2 runs: 0123456789ab" in capsys.readouterr().err


def test_results_diff_prints_only_what_differs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"seed": 1, "optim": {"learning_rate": 0.001}, "train": {"max_steps": 100}, "adapter": {"r": 8}}
    store(a_record(), a_record(key="fedcba9876543210", seed=1, spec=other), folder="elsewhere")
    assert main(["results", "--results", "elsewhere", "diff", "0123", "fedc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["seed", "adapter.r"]
    assert "(absent)" in lines[2]
    assert main(["results", "diff", "0123", "fedc", "--json", "--results", "elsewhere"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == [0, 1]
    assert main(["results", "diff", "0123", "0123", "--results", "elsewhere"]) == 0
    assert "the same settings" in capsys.readouterr().err


def test_the_kept_weights_stand_for_a_run() -> None:
    record = a_record(
        evaluations=(
            evaluation("base", "base", 0.1),
            evaluation(50, "step", 0.2, part="valid"),
            evaluation(60, "best", 0.4),
            evaluation(100, "last", 0.3),
        )
    )
    found = scores.of_record(record)
    assert found is not None
    assert found.role == "best"
    assert scores.of_record(record, task="another") is None
    only_valid = a_record(evaluations=(evaluation(100, "last", 0.3, part="valid"),))
    found = scores.of_record(only_valid)
    assert found is not None
    assert found.part == "valid"


def test_plain_tables_never_cut_anything_off(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500
    tables.write(("a", "b", "c"), [(long, 1, None)], title="a title")
    output = capsys.readouterr().out
    assert long in output
    assert "-" in output


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_on_terminals_show_everything(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    words = [f"word{number}" for number in range(12)]
    out = Terminal()
    tables.write(("short", "a long one", "another long one"), [("a", " ".join(words), "[b]" + "y" * 30)], stream=out)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert all(word in text for word in words)
    assert text.count("y") == 30
    assert "[b]" in text
    if columns > 40:
        assert max(map(len, text.splitlines())) <= columns


# ---------------------------------------------------------------------------------------------------------- compare


def two_arms() -> None:
    store(
        a_record(),
        a_record(key="fedcba9876543210", arm="b" * 16, experiment="ia3/second", method="ia3", score=0.75),
        a_record(key="cccccccccccccccc", arm="c" * 16, experiment="lora/third", status="cancelled", error="why not"),
    )


def test_compare_prints_scores_pairs_and_what_was_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_arms()
    assert main(["compare"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == "additions, test rows: exact_match (higher is better)"
    assert lines[2].startswith("ia3/second")
    assert lines[3].startswith("lora/first")
    assert "0.7500" in lines[2]
    for part in ("lora--third--", "why not", "not paired, so not tested"):
        assert part in text


def test_compare_of_named_runs_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_arms()
    assert main(["compare", "ia3/second", "--json", "--task", "additions"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [arm["label"] for arm in found["tables"][0]["arms"]] == ["ia3/second"]
    assert "outcomes" not in found["tables"][0]["arms"][0]


def test_compare_names_what_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 0
    assert "nothing to compare" in capsys.readouterr().err
    two_arms()
    assert main(["compare", "--metric", "exact_matc"]) == 2
    assert "did you mean 'exact_match'?" in capsys.readouterr().err
    assert main(["compare", "--task", "gsm8k"]) == 2
    assert "tasks there: additions" in capsys.readouterr().err


@pytest.mark.parametrize("task", [None, "gsm8k"])
def test_a_test_record_tells_the_command_that_repeats_it(
    place: Path, capsys: pytest.CaptureFixture[str], task: str | None
) -> None:
    """The words, read back as the shell and the command line read them, are the run of the record."""
    folder = experiment("lora/first", parameters={**PARAMETERS, "train": {"max_steps": 50}})
    overrides = {
        "train.max_steps": 7,
        "optim.optimizer_kwargs": {"betas": [0.8, 0.9]},
        "model.revision": "12",  # a text that looks like a number
        "data.forgetting": None,
        "generation.stop": ["\n", "it's"],
    }
    made = loading.load(folder, task=task, seed=3, overrides=overrides)
    found = a_record(
        key=made.train_key, category="test", seed=3, task=made.task.name, spec=made.model_dump(mode="json")
    )
    Path("temporary_results").mkdir()
    Path(f"temporary_results/{found.stem}.json").write_text(records.to_json(found))
    assert main(["results", "show", made.train_key]) == 0
    text = capsys.readouterr().out
    words = shlex.split(text[text.index("peftlab run") :].partition(" --rerun")[0])
    paths, settings = arguments.split(words[2:])
    again = arguments.load_spec(paths[0], arguments.parse(settings))
    assert again == made and len(settings) == len(overrides) + 1 + (task is not None)


def test_the_command_of_a_run_whose_folder_is_gone(place: Path) -> None:
    found = a_record(seed=2, task="own", spec={"folder": "experiments/lora/gone"})
    assert repeating.command(found) == "peftlab run experiments/lora/gone task=PATH/own.yaml seed=2"
