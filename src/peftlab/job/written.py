"""Stored answers as whole programs in files that bigcode-evaluation-harness reads, and that harness run on them.

Its format (`--save_generations`, `--load_generations_path`): one JSON list with a list of programs for each row of the
data set, in order; a program begins with the row's prompt and ends before the first stop word. Runs nothing that a
model wrote itself; the harness does, without isolation, so it is only started for a user who allows that.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import UserError
from peftlab.events import Evaluated
from peftlab.protocols import Example, Grader, find
from peftlab.records.atomic import safe_name, write_atomic
from peftlab.records.record import Evaluation
from peftlab.records.store import RunStore
from peftlab.scores import stored

_MAIN = "main.py"
_LAST_WORDS = 1500


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The programs of one evaluation in a file.

    Attributes:
        path: The file.
        of: What was scored, as the user named it.
        evaluation: Whose answers they are.
        answers: Programs to a row.
    """

    path: Path
    of: str
    evaluation: Evaluation
    answers: int


def refuse(overrides: Mapping[str, Any], harness: str | None, *, unsafe: bool) -> None:
    """What cannot be asked for together with programs in a file, said before anything is scored.

    Raises:
        UserError: Some rows only, no harness where it should be, or one that may not run.
    """
    if overrides.get("data.test_rows") is not None:
        raise UserError(
            "data.test_rows draws rows, but in a file of programs a row is known by its place", fix="leave it out"
        )
    if harness is None:
        return
    if not (Path(harness) / _MAIN).is_file():
        raise UserError(
            f"--bigcode_eval_path {harness}: there is no {_MAIN}",
            fix="name the folder that bigcode-evaluation-harness was cloned into",
        )
    if not unsafe:
        raise UserError(
            "--bigcode_eval_path: that harness runs what models write with your own rights, isolated by nothing",
            fix="add --allow-unsafe-code if you want that; the scores of peftlab itself need neither",
        )


def save(found: Sequence[Evaluated], store: RunStore, path: Path) -> list[Saved]:
    """Write the programs of every evaluation of a task whose answers are programs.

    The file's name gets the task's, as the harness does it; where several evaluations are of one task, also what was
    scored and the step.

    Raises:
        UserError: None of them has programs, or a file cannot be written.
    """
    chosen = [event for event in found if event.evaluation.what == "task" and _grader(event.evaluation) is not None]
    if not chosen:
        raise UserError("no answer to what was scored is a program", fix="score a task whose grader runs programs")
    counts = Counter(event.evaluation.task for event in chosen)
    result: list[Saved] = []
    for event in chosen:
        one = event.evaluation
        parts = [path.stem, one.task]
        if counts[one.task] > 1:
            parts += [safe_name("--".join(re.findall(r"[\w.=+-]+", str(event.of))).lstrip(".-")), str(one.checkpoint)]
        programs = _programs(one, _folder(event, store))
        target = path.with_name("_".join(parts) + ".json")
        if any(target == saved.path for saved in result):
            raise UserError(f"two evaluations would be written to {target}", fix="save those of one run at a time")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, json.dumps(programs))
        except OSError as error:
            raise UserError(f"cannot write {target}: {error}", fix="name another place") from None
        result.append(Saved(path=target, of=str(event.of), evaluation=one, answers=len(programs[0])))
    return result


def _grader(evaluation: Evaluation) -> Grader | None:
    if evaluation.grader is None:
        return None
    found: Grader = find("graders", evaluation.grader["name"], where=f"the evaluation of {evaluation.task}")
    return found if found.written is not None else None


def _folder(event: Evaluated, store: RunStore) -> Path:
    """Where the samples of an evaluation lie, of a run or of a bare model."""
    one = event.evaluation
    if one.checkpoint != "base":
        for record in store.find(str(event.of)):
            if any(known.key == one.key for known in record.evaluations):
                folder = store.evaluation_folder(record, one)
                if folder is not None:
                    return folder
    for known, folder in store.base_evaluations():
        if known.key == one.key:
            return folder
    raise UserError(f"the answers of {event.of} to {one.task} are not stored", fix="score it again")


def _programs(evaluation: Evaluation, folder: Path) -> list[list[str]]:
    grader = _grader(evaluation)
    assert grader is not None and grader.written is not None and evaluation.grader is not None
    mode = (evaluation.grader["modes"] or grader.modes)[0]
    rows = []
    for sample in stored.samples(folder) or ():
        example = Example(item=sample["item"], reference=sample["reference"], columns=sample["columns"])
        said = stored.prediction(sample)
        rows.append([grader.written(one, example, mode) or "" for one in (said, *said.more)])
    if not rows:
        raise UserError(f"{folder} holds no answers", fix="score it again")
    return rows


def elsewhere(saved: Sequence[Saved], harness: str) -> Iterator[tuple[Saved, dict[str, float]]]:
    """What the harness in a folder says of saved programs: its metrics, by name.

    It runs in the Python of its own environment (`.venv` in the folder) where it has one, else in this one.

    Raises:
        UserError: It ends in an error, or writes no metrics.
    """
    home = Path(harness).resolve()
    own = home / ".venv" / "bin" / "python"
    python = str(own) if own.is_file() else sys.executable
    for one in saved:
        with tempfile.TemporaryDirectory() as scratch:
            told = Path(scratch) / "metrics.json"
            words = [python, _MAIN, "--model", one.of, "--tasks", one.evaluation.task, "--allow_code_execution"]
            words += ["--load_generations_path", str(one.path.resolve()), "--n_samples", str(one.answers)]
            words += ["--metric_output_path", str(told)]
            ended = subprocess.run(words, cwd=home, capture_output=True, text=True, errors="replace", check=False)
            yield one, _metrics(told, one, ended)


def _metrics(told: Path, one: Saved, ended: subprocess.CompletedProcess[str]) -> dict[str, float]:
    last = (ended.stderr or ended.stdout).strip()[-_LAST_WORDS:]
    if ended.returncode != 0:
        raise UserError(
            f"the harness ended with code {ended.returncode} on {one.path}:\n{last}",
            fix="mend its installation; the programs stay where they are",
        )
    try:
        found = json.loads(told.read_text(encoding="utf-8"))[one.evaluation.task]
        return {str(name): float(value) for name, value in found.items() if isinstance(value, int | float)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"the harness wrote no metrics of {one.evaluation.task} from {one.path}:\n{last}",
            fix="does it know a task of that name? python main.py --help lists them",
        ) from None
