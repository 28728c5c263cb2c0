"""Starting up is fast and loads no model library; the list of flags changes only on purpose."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli_material import PARAMETERS, a_record, experiment, store, working_folder
from peftlab.cli.verbs import app

GOLDEN = Path(__file__).parent / "golden" / "flags.json"
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "reasoning_gym")

PROBE = """
import json, sys
from peftlab.cli import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print("exit", code, "loaded", [name for name in {heavy!r} if name in sys.modules], words, file=sys.stderr)
"""


def verbs(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name."""
    yield prefix.strip(), group
    for name, command in getattr(group, "commands", {}).items():
        yield from verbs(command, f"{prefix}{name} ")


def test_flags_are_the_frozen_ones() -> None:
    """A new flag is a decision: everything else is key=value. Write the golden file by hand when it is one."""
    found = {
        name: sorted(flag for option in command.params for flag in option.opts if flag.startswith("-"))
        for name, command in verbs(typer.main.get_command(app))
    }
    assert found == json.loads(GOLDEN.read_text())


def test_a_library_that_talks_when_it_is_imported_is_quiet() -> None:
    """peft imports it for whatever is asked: `peftlab new` would begin with its warnings."""
    code = "import logging, peftlab; assert not logging.getLogger('bitsandbytes.x').isEnabledFor(logging.WARNING)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_verb_teaches() -> None:
    for name, command in verbs(typer.main.get_command(app)):
        text = command.help or ""
        if name and name != "results":
            assert text.splitlines()[0].endswith("."), name
            assert text.count("peftlab ") >= 2, name
        for option in command.params:
            assert getattr(option, "help", None), (name, option.name)


LIGHT = [
    ["--help"],
    ["run", "--help"],
    ["list", "methods"],
    ["list", "settings"],
    ["list", "graders"],
    ["list", "engines"],
    ["list", "tasks"],
    ["results"],
    ["results", "--stale"],
    ["results", "show", "0123"],
    ["results", "diff", "0123", "0123"],
    ["compare"],
    ["check", "--no-model", "experiments"],
    ["new", "full", "mine"],
    ["env"],
]


def test_no_model_library_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working_folder(tmp_path, monkeypatch)
    experiment("lora/first", parameters=PARAMETERS)
    store(a_record())
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), json.dumps(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("exit")]
    assert lines == [f"exit 0 loaded [] {words}" for words in LIGHT], done.stderr


def least_processor_seconds(words: list[str], times: int = 5) -> float:
    """Of the cheapest of some starts: wall time on a machine with nothing else to do, and steadier on any other."""
    costs = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(costs)


def test_help_takes_less_than_a_third_of_a_second() -> None:
    assert least_processor_seconds(["-m", "peftlab", "--help"]) < 0.3


def test_importing_the_package_takes_no_time() -> None:
    assert least_processor_seconds(["-c", "import peftlab"]) - least_processor_seconds(["-c", "pass"]) < 0.05


def test_public_names_are_few_and_load_on_first_use() -> None:
    code = "import sys, peftlab; print(len(peftlab.__all__), sorted(m for m in sys.modules if m.startswith('peftlab')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "11 ['peftlab']\n"
    import peftlab

    for name in ("load", "parse_overrides", "results", "Record", "RunSpec", "RunStore", "UserError", "__version__"):
        assert getattr(peftlab, name) is not None
    assert set(peftlab.__all__) <= set(dir(peftlab))
    with pytest.raises(AttributeError, match="nothing"):
        _ = peftlab.nothing


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "import sys, os; from peftlab.cli import main; sys.exit(main(['list', 'settings']))"
    command = f"{sys.executable} -c \"{code}\" | {sys.executable} -c 'import os; os.close(0)'"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, env={**os.environ})
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
