"""Every extension point on one page, the small types they pass, and how a plug-in is found.

Only what a dialect is stands elsewhere, in `foreign.py`, with the types that it alone has.
A plug-in is a file; its name is its registration: `graders/numeric.py` is the grader `numeric` and exports `PLUGIN`.
Nothing here imports torch, and nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.errors import UserError, unknown_name
from peftlab.foreign import Dialect

PLUGINS_VARIABLE = "PEFTLAB_PLUGINS"
_PASS_AT = re.compile(r"pass@([1-9][0-9]*)(?:_(\w+))?", re.ASCII)


# ---------------------------------------------------------------------------------------------- data that travels


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a task, ready to be shown to a model.

    Attributes:
        item: Hash of the row's source columns; the same row has the same id in every run.
        prompt: Text shown to the model.
        target: Text that the model should continue with (empty for classification).
        reference: What the grader compares with: gold text, a label index or a number.
        choices: Texts to choose between (`kind: choose`), else empty.
        contexts: What each choice stands behind, where the prompt names it (`prompt` is the right one's), else empty.
        pair: The one or two texts of a classification row, else empty.
        messages: The turns of a conversation, each with `role` and `content`, else empty.
        cluster: Id shared by rows with a common source (a passage), or None.
        columns: The task's columns of this row, as text; what overlap is measured on.
    """

    item: str
    prompt: str = ""
    target: str = ""
    reference: Any = None
    choices: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    cluster: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A tokenised prompt for an engine: token ids, its own limit, and the method's extra forward inputs."""

    token_ids: tuple[int, ...]
    max_new_tokens: int
    forward_inputs: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What an engine returned for one prompt.

    `finish` is `stop` (EOS or stop string), `length` (limit reached) or `prompt_too_long` (nothing was generated).
    `token_ids` is None for engines that return text only. `more` has the further ones where `num_return_sequences` of
    the options asks for several.
    """

    text: str
    token_ids: tuple[int, ...] | None
    finish: str
    num_tokens: int | None
    more: tuple[Completion, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model said about one example: text, or a chosen index, or a number.

    `finish` is a completion's, or `not_finite`: the model gave a choice no finite likelihood. `more` has the further
    answers to the same prompt where several were asked for.
    """

    text: str | None = None
    index: int | None = None
    scores: tuple[float, ...] = ()
    value: float | None = None
    finish: str | None = None
    num_tokens: int | None = None
    more: tuple[Prediction, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A grader's judgement: `score` in [0, 1] (or a loss), the parsed answer, and whether one was found.

    `why` names the kind of failure, where the grader tells kinds apart; their shares stand in the notes.
    """

    score: float
    answer: str | None
    valid: bool
    why: str | None = None


# ----------------------------------------------------------------------------------------------- extension points


@dataclass(frozen=True, kw_only=True)
class Grader:
    """Judges predictions. `version` is recorded: raise it whenever a grade can change.

    Attributes:
        grade: (prediction, example, mode) -> Grade.
        modes: The modes it knows; the first is its default.
        metric: Name of the mean of its scores (`exact_match`, `acc`, ...).
        summary: (grades, examples) -> baselines and other figures over the whole set, for the notes; may be empty.
        corpus: (grades, examples) -> the metrics that are no mean of item scores, by name: for each one number an
            item, whose mean is the metric: jackknife pseudo-values (`graders/_jackknife.py`). It may leave out what
            these items do not define. A metric that the task names has its direction and is stored; the others stand
            in the notes.
        corpus_metrics: All names that `corpus` may give.
        lower: Those of its metrics of which less is better; a task may say otherwise.
        check: (modes) -> None. Raises a `UserError` when a mode cannot work here (an extra is not installed); asked
            before anything is loaded.
        grade_all: (predictions, examples, mode, group `execution`) -> position and grade of each, as they are known:
            for a grader that runs what was answered, many at a time. None: they are graded one by one.
        ready: (group `execution`) -> None. Raises a `UserError` when what was answered cannot be run here; asked before
            anything is loaded.
        written: (prediction, example, mode) -> the whole text that is graded, for other systems to grade; None: it is
            the answer itself.
    """

    version: int
    metric: str
    modes: tuple[str, ...]
    grade: Callable[[Prediction, Example, str], Grade]
    summary: Callable[[Sequence[Grade], Sequence[Example]], Mapping[str, float]] = lambda grades, examples: {}
    corpus: Callable[[Sequence[Grade], Sequence[Example]], Mapping[str, Sequence[float]]] = lambda grades, examples: {}
    corpus_metrics: tuple[str, ...] = ()
    lower: tuple[str, ...] = ()
    check: Callable[[Sequence[str]], None] = lambda modes: None
    grade_all: Callable[[Sequence[Prediction], Sequence[Example], str, Any], Iterator[tuple[int, Grade]]] | None = None
    ready: Callable[[Any], None] = lambda execution: None
    written: Callable[[Prediction, Example, str], str | None] | None = None


def metric_name(grader: Grader, mode: str) -> str:
    """Name of the mean score under a mode: the grader's own for its first mode, else with the mode in it."""
    if mode == grader.modes[0]:
        return grader.metric
    return mode if mode.startswith(grader.metric) else f"{grader.metric}_{mode}"


def pass_at(metric: str, grader: Grader) -> tuple[int, str] | None:
    """K and the mode of a metric `pass@K`, or of `pass@K_<mode>` where the mode is not the grader's first.

    Any grader may be asked for it: the share of items of which one answer of K has the full score. None: it is
    another metric.
    """
    match = _PASS_AT.fullmatch(metric)
    mode = None if match is None else match[2] or grader.modes[0]
    return (int(match[1]), mode) if match and mode in grader.modes else None


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method needs beyond peft. Every field None = peft's own way, written once in `modelling/adapting.py`.

    A method that peft does not have at all brings its `config` and its `wrap`, built of the pieces in `own.py`; saving,
    loading, resuming and putting it off then need nothing more.

    Attributes:
        config: The class of its config (an `own.OwnConfig`); None: peft has the method.
        wrap: (base, adapter config, make) -> module; `make(config)` is peft's own wrapping of that base, in the
            precision that the run declares.
        forward_inputs: (batch) -> extra model inputs (task ids, invocation masks); of a batch of prompts it has
            `input_ids` and `attention_mask` only.
        extra_loss: (model, step) -> the method's own objective, a scalar tensor; None: found by measurement.
        after_step: (model, step); None: the tuner's `update_and_allocate` where it has one.
        state: (model) -> plain tensors and numbers that a resume needs; with `load_state(model, state)`.
        save: (model, folder); what peft cannot load comes with `load(base, folder) -> module`.
        schedule: (adapter as declared, steps of the budget) -> values for what its schedule leaves open.
        check_rows: (adapter as declared, token ids of each training row) -> None; raises a `UserError`.
        verify: (wrapped base, config) -> None. Raises a `UserError` when the library made something else than asked.
        no_checkpointing: Why gradient checkpointing is refused; None: it works.
        note: (adapter as declared, quant.method) -> what the user should know before training, or None.
        rows_alone: Whether a row's output depends on the rows beside it, so that evaluation takes one at a time.
    """

    config: type[Any] | None = None
    wrap: Callable[..., Any] | None = None
    forward_inputs: Callable[..., Mapping[str, Any]] | None = None
    extra_loss: Callable[..., Any] | None = None
    after_step: Callable[..., None] | None = None
    state: Callable[..., Mapping[str, Any]] | None = None
    load_state: Callable[..., None] | None = None
    save: Callable[..., None] | None = None
    load: Callable[..., Any] | None = None
    schedule: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None
    check_rows: Callable[..., None] | None = None
    verify: Callable[[Any, Any], None] = lambda model, config: None
    no_checkpointing: str | None = None
    note: Callable[[Mapping[str, Any], str | None], str | None] | None = None
    rows_alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Session:
    """An engine opened on one model: `generate` keeps the order of its prompts; `close` frees what it holds.

    `at_once` is how many prompts it wants together; None: an evaluation batch.
    """

    generate: Callable[[Sequence[Prompt], Mapping[str, Any]], list[Completion]]
    close: Callable[[], None] = lambda: None
    at_once: int | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Generates text.

    Attributes:
        open: (source) -> Session. The source is a `models.Built`; of an engine that works elsewhere it is the group
            `endpoint`, whose `model` is who is asked, and `seed=` is the run's.
        returns_token_ids: Whether its completions have them.
        elsewhere: The weights are in another program's hands: its answers count only where they agree with those that
            our own weights give (`scores/agreement.py`).
        check: (group endpoint, group generation) -> None. Raises a `UserError` for what it cannot do; asked before
            anything is loaded.
    """

    open: Callable[..., Session]
    returns_token_ids: bool = True
    elsewhere: bool = False
    check: Callable[[Any, Any], None] = lambda endpoint, generation: None


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a tracker is told of a run when it is opened.

    Attributes:
        id: The same for all parts of one run, so that a resumed run goes on; another when it is run again.
        name: The run's stem.
        project: `track.project`.
        folder: Where the tracker may write. It moves with the run once the session is closed.
        step: The step that training goes on from; None when only evaluations are added to what was trained.
        tags: Method, task, model and seed.
        config: Every setting that has a value, by its dotted name: numbers, texts, true or false.
        results: Names of the figures that the run is judged by.
    """

    id: str
    name: str
    project: str
    folder: Path
    step: int | None
    tags: Mapping[str, str]
    config: Mapping[str, Any]
    results: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrackerSession:
    """One run's open report. Whatever it raises is said once, and it is not asked again.

    Attributes:
        numbers: (step, name -> number); every tracker gets the same.
        texts: (step, name, texts): the checkpoint's path, samples.
        close: (status, error or None): how the run, or this part of it, ended. No file may be open afterwards.
    """

    numbers: Callable[[int, Mapping[str, float]], None]
    texts: Callable[[int, str, Sequence[str]], None]
    close: Callable[[str, str | None], None]


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """A place that a run reports to while it goes on. Never required, never able to stop a run.

    Attributes:
        open: (Tracked) -> TrackerSession.
        check: Raises a `UserError` when it cannot work here (an extra is not installed); asked before training.
    """

    open: Callable[[Tracked], TrackerSession]
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Loads a base whose frozen weights have fewer bits than `model.dtype`. No file of it imports a library at once.

    `quant.method` is `<plug-in>-<scheme>`, or the plug-in alone, whose scheme is then empty. Devices are `cpu`, `cuda`.

    Attributes:
        schemes: Scheme -> the further settings of group `quant` that it takes.
        packages: Distributions whose versions the weights depend on.
        makes: It quantises full-precision weights; else it only reads weights that are stored quantised.
        check: (scheme, device) -> None. Raises a `UserError` that names the alternative when it cannot work here; asked
            before anything is loaded.
        quantises: (module) -> whether it becomes a layer of few bits; asked for the model's body, not for its head.
        fits: (scheme, name -> layer without weights) -> None. Raises a `UserError` when shapes do not fit.
        declares: (`quantization_config` of a checkpoint) -> the settings of group `quant` that declare it; None: it is
            another plug-in's.
        chosen: What the library takes for a setting of group `quant` that is null.
        load_options: (scheme, group `quant`, names of modules that stay as they are, device) -> arguments of
            `from_pretrained`.
        prepare: (model) -> number of its quantised layers. Asked once after loading; mends what has to be mended.
    """

    schemes: Mapping[str, tuple[str, ...]]
    packages: tuple[str, ...]
    check: Callable[[str, str], None]
    load_options: Callable[..., Mapping[str, Any]]
    prepare: Callable[[Any], int]
    makes: bool = True
    quantises: Callable[[Any], bool] = lambda module: False
    fits: Callable[[str, Mapping[str, Any]], None] = lambda scheme, layers: None
    declares: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = lambda stored: None
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a start may look at before training, and where it keeps what it computed of that.

    Attributes:
        batches: Inputs of the model's forward with `labels`; padding is masked, in the attention and in the labels.
        kept: (name, make, depends_on=..., large=...) -> the tensors by name that `make()` returns. They are made once
            for the same rows, model and machine, by one process, and then read from the cache. `depends_on` is plain
            data; `large` marks tensors of the size of the weights.
        tokenizer: The base's.
        kind: `causal` or `classify`.
        text: The text that a trained prefix begins with (`model.kv_prefix_text`), or None.
        seed: The run's.
    """

    batches: Sequence[Mapping[str, Any]]
    kept: Callable[..., dict[str, Any]]
    tokenizer: Any
    kind: str
    text: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """How the weights of an adapter begin, where that needs more than wrapping. No file of it imports torch at once.

    Asked for by the text of the adapter's `init_*` key; a number after it belongs to it (`<name>_niter_16`).

    Attributes:
        peft_type: The type whose start it is.
        reads_rows: Whether it looks at rows; `rows` (None: all there are) and `batch_size` are its defaults for
            `calibration.rows` and `calibration.batch_size`, and never change.
        needs_labels: Whether a row without labels is of no use to it.
        changes_base: Whether it changes weights of the base.
        check: (adapter as declared, kind, group `calibration`) -> None. Raises a `UserError` for what cannot work;
            asked before anything is loaded.
        fits: (base model, config) -> None. Raises a `UserError` for layers that it cannot begin on; asked before
            `wrap`, and on shapes alone.
        unknown_counts: (adapter as declared) -> why parameters cannot be counted beforehand, or None.
        wrap: (base model, config, calibration, make) -> (module, the tensors by name that the base's weights are made
            from again, empty for an untouched base). `make(config)` is peft's own wrapping.
        load: (base model, config, those tensors, make) -> module. `make(config)` is peft's own loading.
        share: (folder of a saved adapter, folder to write) writes it as a plain adapter for the untouched base.
    """

    peft_type: str = "LORA"
    reads_rows: bool = False
    rows: int | None = None
    batch_size: int = 1
    needs_labels: bool = False
    changes_base: bool = False
    check: Callable[[Mapping[str, Any], str, Any], None] = lambda adapter, kind, calibration: None
    fits: Callable[[Any, Any], None] = lambda model, config: None
    unknown_counts: Callable[[Mapping[str, Any]], str | None] = lambda adapter: None
    wrap: Callable[..., tuple[Any, Mapping[str, Any]]] = lambda model, config, calibration, make: (make(config), {})
    load: Callable[..., Any] = lambda model, config, tensors, make: make(config)
    share: Callable[[Path, Path], None] | None = None


KINDS: Mapping[str, type] = {
    "graders": Grader,
    "engines": Engine,
    "methods": Method,
    "dialects": Dialect,
    "trackers": Tracker,
    "quant": Quantizer,
    "starts": Start,
}


# -------------------------------------------------------------------------------------------------------- look-up


def names(kind: str) -> list[str]:
    """Names of the plug-ins of one kind that peftlab brings, in alphabetical order."""
    package = importlib.import_module(f"peftlab.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def find(kind: str, name: str, *, where: str = "") -> Any:
    """The plug-in `name` of `kind` (`graders`, `engines`, `methods`).

    `package.module:attr` names code outside peftlab. It is imported only when the user named its package with
    `--plugins` (or in the variable PEFTLAB_PLUGINS); a received config alone never runs code. `where` says in an error
    what asked for the plug-in.

    Raises:
        UserError: No such plug-in, a package the user did not name, or an attribute of the wrong type.
    """
    if ":" in name:
        return _outside(kind, name, f"{where}: " if where else "")
    known = names(kind)
    if name not in known:
        raise unknown_name(kind.rstrip("s"), name, known, where=where)
    return importlib.import_module(f"peftlab.{kind}.{name}").PLUGIN


def quantizer_of(method: str) -> tuple[Quantizer, str]:
    """The plug-in of a `quant.method`, and its scheme.

    Raises:
        UserError: There is none of that name.
    """
    name, _, scheme = method.partition("-")
    if ":" not in name:
        known = ["-".join(filter(None, (one, kind))) for one in names("quant") for kind in find("quant", one).schemes]
        if method not in known:
            raise unknown_name("method", method, known, where="quant.method")
    found: Quantizer = find("quant", name, where="quant.method")
    if scheme not in found.schemes:
        raise unknown_name("scheme", scheme, found.schemes, where=f"quant.method = {method}")
    return found, scheme


def _outside(kind: str, name: str, place: str) -> Any:
    module_name, _, attribute = name.partition(":")
    package = module_name.split(".")[0]
    allowed = {part.strip() for part in os.environ.get(PLUGINS_VARIABLE, "").split(",") if part.strip()}
    if package not in allowed:
        raise UserError(
            f"{place}the config names code outside peftlab: '{name}'",
            fix=f"if you trust the package, allow it yourself: --plugins {package}",
        )
    try:
        plugin = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{place}cannot load the plug-in '{name}': {error}", fix="check the module and attribute"
        ) from error
    if not isinstance(plugin, KINDS[kind]):
        raise UserError(
            f"{place}'{name}' is a {type(plugin).__name__}, not a {KINDS[kind].__name__}",
            fix=f"export a peftlab.protocols.{KINDS[kind].__name__}",
        )
    return plugin
