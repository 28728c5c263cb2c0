"""Load and check a task file, and say what of a task is in which key. `examples.py` turns its rows into Examples.

A task is data: one YAML. Rows that need code have one small file of the same name with `convert(row) -> row`.
Reading data sets is `data.py`'s work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from peftlab.config.settings import Settings, declared, read_yaml, setting, validated
from peftlab.config.source import Names, Source
from peftlab.config.templates import template_fields
from peftlab.config.turns import Turns
from peftlab.digest import digest
from peftlab.errors import UserError, unknown_name
from peftlab.protocols import Grader, find, metric_name, pass_at

TASK_FOLDER = Path(__file__).parent.parent / "tasks"
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
CLAIM_ORDER: tuple[Part, ...] = ("test", "valid", "train")
"""Which part takes its rows first where several draw from one pool."""
_SHARED_CODE = re.compile(r"^from peftlab\.tasks\.(_\w+) import ", re.MULTILINE)
"""How the code of a task takes what several tasks share; a test holds it to this form."""
DEFAULTS_OF_GENERATION = ("max_new_tokens", "stop", "chat_template", "few_shot")
"""Fields of a task that stand in for the default of the setting of that name, whose value is in the key."""
TEXT_METRICS: Mapping[str, Literal["higher", "lower"]] = {
    "loss": "lower",
    "perplexity": "lower",
    "token_accuracy": "higher",
    "bits_per_byte": "lower",
}
"""What can be measured of plain text (kind: text), and which is better; it needs no grader."""


_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "choices": ("choose",),
    "pair": ("classify", "regress"),
    "labels": ("classify",),
    "join": ("text",),
    "messages": ("text",),
    "turns": ("text",),
    "chat_template": ("generate",),
    "few_shot": ("generate", "choose"),
}
"""Fields that say nothing of other kinds of task."""


class GraderChoice(Settings):
    """Which grader judges the task; the first mode is the primary one."""

    name: str = setting(..., "a grader's name, or package.module:attr", key="none")
    modes: tuple[str, ...] = setting((), "modes to report; the first is primary", key="none", strict=False)


class Task(Settings):
    """A task file, checked. `name` is the file's stem."""

    name: str = setting(..., "the file's stem", key="none")
    version: Literal[1] = setting(..., "version of the task file format", key="none")
    kind: Literal["generate", "choose", "classify", "regress", "text"] = setting(..., "how it is trained and scored")
    description: str = setting("", "one sentence", key="none")
    citation: str = setting("", "paper or source", key="none")
    licence: str = setting("", "licence of the data", key="none")
    train: Source | None = setting(None, "training rows")
    valid: Source | None = setting(None, "validation rows", key="eval")
    test: Source | None = setting(None, "test rows", key="eval")
    columns: dict[str, str | Names] = setting({}, "our name: the data's name, or several to try")
    prompt: str = setting("", "template over the columns")
    target: str = setting("", "template of what is to be written after the prompt")
    reference: str = setting("answer", "column that the grader compares with", key="eval")
    choices: str = setting("", "column that holds the choices (kind: choose)", key="eval")
    pair: tuple[str, ...] = setting((), "one or two text columns (kinds: classify, regress)", strict=False)
    labels: tuple[str, ...] = setting((), "names of the classes, by label number (kind: classify)", strict=False)
    join: str | None = setting(None, "what stands between rows that are one text (kind: text); null: each is its own")
    messages: str = setting("", "column that holds a conversation, in the place of 'target' (kind: text)")
    turns: Turns | None = setting(None, "plain text of each turn, for tokenizers without a chat template")
    cluster: str | None = setting(None, "column of the data whose value items of one source share", key="none")
    separator: str = setting("\n\n", "text between few-shot examples", key="eval")
    stop: tuple[str, ...] = setting((), "strings that end a generated answer", key="eval", strict=False)
    max_new_tokens: int | None = setting(None, "this task's own generation limit", key="eval", gt=0)
    chat_template: bool | None = setting(None, "this task's own generation.chat_template", key="eval")
    few_shot: int | None = setting(None, "this task's own generation.few_shot", key="eval", gt=0)
    grader: GraderChoice | None = setting(None, "grader and modes; none for kind: text", key="none")
    metrics: dict[str, Literal["higher", "lower"]] = setting(..., "metric: direction; the first is primary", key="none")
    allow_overlap: float = setting(0.01, "share of test items that may stand in the training rows", key="none", ge=0)
    known_ngram_overlap: float = setting(
        0.0,
        "share of test items known to share 13 words with training rows; above it a warning",
        key="none",
        ge=0,
        le=1,
    )
    known_leaks: tuple[str, ...] = setting((), "sentences that name a known leak", key="none", strict=False)
    convert: str | None = setting(None, "digest of the same-stem .py, filled in by `load`", baseline=None)

    @model_validator(mode="after")
    def _complete(self) -> Task:
        needed = {
            "generate": ("prompt", "target", "grader"),
            "choose": ("prompt", "target", "choices", "grader"),
            "classify": ("pair", "labels", "grader"),
            "regress": ("pair", "grader"),
            "text": ("messages",) if self.messages else ("target",),
        }
        missing = [name for name in needed[self.kind] if not getattr(self, name)]
        if missing:
            raise ValueError(f"kind '{self.kind}' needs {', '.join(missing)}")
        if len(self.pair) > 2:
            raise ValueError("'pair' names one or two columns")
        for name, kinds in _ONLY_FOR.items():
            if getattr(self, name) != type(self).model_fields[name].default and self.kind not in kinds:
                raise ValueError(f"'{name}' belongs to kind '{kinds[0]}'")
        if self.kind == "text" and (self.prompt or self.grader):
            raise ValueError("kind 'text' takes neither 'prompt' nor 'grader': all of 'target' is learnt and scored")
        self._check_messages()
        for name, direction in self.metrics.items() if self.kind == "text" else ():
            if TEXT_METRICS.get(name, direction) != direction:
                raise ValueError(f"'metrics': of {name} the {TEXT_METRICS[name]} is the better")
        for name in ("prompt", "target"):
            known = {*self.columns, "choice"} if self.choices else set(self.columns)
            for column in template_fields(getattr(self, name)):
                if column not in known:
                    raise ValueError(
                        f"'{name}' uses {{{column}}}, which is not among 'columns': {sorted(self.columns)}"
                    )
        for column in ("" if self.kind == "text" else self.reference, self.choices, *self.pair):
            if column and column not in self.columns:
                raise ValueError(
                    f"'{column}' (reference, choices, pair) is not among 'columns': {sorted(self.columns)}"
                )
        named = bool(self.choices) and not self.names_choice
        for name, needs in (("prompt", "a column"), ("target", "{choice}" if named else "a column")):
            used = template_fields(getattr(self, name))
            shown = not self.has_head and not self.messages and (name == "target" or self.kind != "text")
            if shown and (not used or (needs == "{choice}" and "choice" not in used)):
                raise ValueError(f"'{name}' = {getattr(self, name)!r} lacks {needs}: it would be the same in every row")
        if "" in self.stop:
            raise ValueError("'stop' holds an empty string, which would end every answer at once")
        if not self.metrics:
            raise ValueError("'metrics' must name at least one metric")
        return self

    def _check_messages(self) -> None:
        """What goes with conversations, and what only they have."""
        if self.messages and self.messages not in self.columns:
            raise ValueError(f"'{self.messages}' (messages) is not among 'columns': {sorted(self.columns)}")
        if self.messages and (self.target or self.join is not None):
            raise ValueError("'messages' is what is learnt: it goes with neither 'target' nor 'join'")
        if self.turns is not None and not self.messages:
            raise ValueError("'turns' says how the turns of 'messages' are written, which is not given")
        if self.messages and "bits_per_byte" in self.metrics:
            raise ValueError("bits_per_byte is of whole texts; of a conversation only the assistant's turns are scored")

    @property
    def primary_metric(self) -> str:
        """The metric named first."""
        return next(iter(self.metrics))

    @property
    def names_choice(self) -> bool:
        """Whether the prompt holds the choice: each choice then has a prompt of its own, and the target may be one."""
        return bool(self.choices) and "choice" in template_fields(self.prompt) and "choice" not in self.columns

    @property
    def has_head(self) -> bool:
        """Whether a new head of the model answers, and not its words."""
        return self.kind in ("classify", "regress")

    @property
    def in_windows(self) -> bool:
        """Whether the rows are texts, of which only the tokens say how many windows they come to."""
        return self.kind == "text" and not self.messages

    def identity(self) -> dict[str, Any]:
        """What of the task can change trained weights: prompt, columns, sources that training rows depend on."""
        plain = declared(self, "train")
        plain.pop("train", None)
        if self.kind not in ("generate", "text"):  # here the reference is what is learnt, not only what is graded
            plain["learnt"] = [self.reference, self.choices]
        if self.train is not None:
            plain["train"] = self.train.identity()
            for part in ("valid", "test"):
                source = getattr(self, part)
                if source is not None and source.pool == self.train.pool:
                    plain[part] = source.identity()
        return plain

    def evaluation_identity(self, part: Part) -> dict[str, Any]:
        """What of the task can change the predictions on one part, with the parts that take their rows before it."""
        source = getattr(self, part)
        before = {name: getattr(self, name) for name in CLAIM_ORDER[: CLAIM_ORDER.index(part)]} if source else {}
        claimed = {name: other.identity() for name, other in before.items() if other and other.pool == source.pool}
        fields = {name: value for name, value in declared(self, "eval").items() if name not in PARTS}
        return {
            "name": self.name,
            "part": part,
            "source": source.identity() if source else None,
            **({"claimed": claimed} if claimed else {}),
            "kind": self.kind,
            "columns": self.model_dump(mode="json")["columns"],
            "prompt": self.prompt,
            "target": self.target,
            **({"pair": list(self.pair)} if self.pair else {}),
            **({"join": self.join} if self.join is not None else {}),
            **{name: value for name, value in declared(self, "train").items() if name in ("messages", "turns")},
            **({"convert": self.convert} if self.convert else {}),
            **{name: value for name, value in fields.items() if name not in DEFAULTS_OF_GENERATION},
        }


def available() -> list[str]:
    """Names of the tasks that peftlab brings."""
    return sorted(path.stem for path in TASK_FOLDER.glob("*.yaml"))


def load(name: str) -> Task:
    """Read the task `name`: one that peftlab brings, or the path of a YAML file of your own.

    Raises:
        UserError: No such task, or a mistake in its file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else TASK_FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent != TASK_FOLDER or "/" in name:
            raise UserError(
                f"task file not found: {path}", fix="give a task's name (peftlab list tasks) or a YAML's path"
            )
        raise unknown_name("task", name, available())
    data = read_yaml(path)
    if "name" in data or "convert" in data:
        raise UserError(f"{path}: 'name' and 'convert' are filled in by peftlab", fix="remove them from the file")
    code = path.with_suffix(".py")
    if code.is_file():
        if path.parent != TASK_FOLDER:
            raise UserError(
                f"{code} would run as part of the task; only tasks that peftlab brings may have code",
                fix="write the rows to a file in the shape that the YAML describes, and remove the .py",
            )
        texts = _code(code)
        data["convert"] = digest(texts if len(texts) > 1 else texts[0])
    return task_of({"name": path.stem, **data}, where=str(path))


def _code(path: Path) -> list[str]:
    """The text of a task's code, and of every module in the folder of tasks that it imports, directly or not."""
    texts, seen = [path.read_text(encoding="utf-8")], set()
    for text in texts:  # grows as modules are found
        for name in _SHARED_CODE.findall(text):
            if name not in seen:
                seen.add(name)
                texts.append((TASK_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return texts


def task_of(data: Mapping[str, Any], *, where: str) -> Task:
    """The task that a mapping describes, as a task file does; one written into an experiment has a `name` too."""
    fix = f"see a task that works, such as {TASK_FOLDER / available()[0]}.yaml"
    return validated(Task, data, where=where, fix=fix)


def measured_metrics(task: Task) -> list[str]:
    """The metrics that are measured: those of the grader's modes, and of the others those that the task names.

    Others are those over all items, and `pass@K`.

    Raises:
        UserError: An unknown grader, a mode that it has not, or a metric in 'metrics' that it does not measure.
    """
    where = f"task '{task.name}'"
    if task.grader is None:
        _only_measured(task, list(TEXT_METRICS))
        return list(task.metrics)
    grader: Grader = find("graders", task.grader.name, where=where)
    modes = task.grader.modes or grader.modes
    for mode in modes:
        if mode not in grader.modes:
            raise unknown_name(f"mode of {task.grader.name}", mode, grader.modes, where=where)
    measured = [metric_name(grader, mode) for mode in modes]
    passing = [name for name in task.metrics if (found := pass_at(name, grader)) and found[1] in modes]
    others = [name for name in (*grader.corpus_metrics, *passing) if name not in measured]
    _only_measured(task, [*measured, *others])
    return [*measured, *(name for name in others if name in task.metrics)]


def direction_of(task: Task, metric: str) -> Literal["higher", "lower"]:
    """Which is better of a metric: what the task says, else what its grader does."""
    if metric in task.metrics or task.grader is None:
        return task.metrics.get(metric, TEXT_METRICS.get(metric, "higher"))
    found: Grader = find("graders", task.grader.name, where=f"task '{task.name}'")
    return "lower" if metric in found.lower else "higher"


def _only_measured(task: Task, measured: list[str]) -> None:
    for name in task.metrics:
        if name not in measured:
            raise unknown_name("metric", name, measured, where=f"task '{task.name}'")


def graded_by(task: Task) -> dict[str, Any] | None:
    """The grader as a record names it, with its version; None for a task that needs none."""
    if task.grader is None:
        return None
    found: Grader = find("graders", task.grader.name, where=f"task '{task.name}'")
    return {**task.grader.model_dump(mode="json"), "version": found.version}


def grades_many(task: Task) -> bool:
    """Whether the task's grader runs what was answered, under the limits of group `execution`."""
    if task.grader is None:
        return False
    found: Grader = find("graders", task.grader.name, where=f"task '{task.name}'")
    return found.grade_all is not None
