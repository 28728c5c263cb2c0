"""The frozen model of a run: its settings, its keys, its arm and method.

Everything here is declared, not measured: no torch, no download. The keys are explained in docs/design/keys.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from peftlab.config import references
from peftlab.config.groups import (
    GROUPS,
    BatchSettings,
    CalibrationSettings,
    DataSettings,
    EndpointSettings,
    ExecutionSettings,
    GenerationSettings,
    LaunchSettings,
    ModelSettings,
    OptimSettings,
    QuantSettings,
    SaveSettings,
    TrackSettings,
    TrainSettings,
)
from peftlab.config.settings import Settings, declared, setting
from peftlab.config.task import Part, Task, graded_by, grades_many
from peftlab.digest import digest
from peftlab.protocols import names

PROTOCOL = 1
"""Raised only when the meaning of a run changes; it is part of every key."""

TEXT_WINDOWS, TEXT_WINDOW_TOKENS = 64, 256
"""The forgetting text: its first so many windows of so many tokens."""

ADAPTER_FILE = "adapter_config.json"
BOOKKEEPING = ("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
"""Keys of an adapter config that say nothing about the adapter."""


class RunSpec(Settings):
    """One run: what is trained on what, with which seed. Two runs with equal `train_key` are the same run."""

    experiment: str = setting(..., "method/name of the folder", key="none")
    folder: str = setting("", "where the experiment lies: its folder, or its YAML file", key="none")
    task: Task = setting(...)
    seed: int = setting(0, "drives data order, adapter start, dropout and sampling", ge=0)
    adapter: dict[str, Any] | None = setting(None, "peft's own config; null: full fine-tuning")
    notes: tuple[str, ...] = setting((), "what a translation from another format says", key="none", strict=False)
    unready: tuple[str, ...] = setting((), "what of it this version cannot do yet", key="none", strict=False)
    model: ModelSettings = setting(...)
    quant: QuantSettings = setting(QuantSettings(), baseline=None)
    optim: OptimSettings = setting(...)
    batch: BatchSettings = setting(...)
    train: TrainSettings = setting(...)
    save: SaveSettings = setting(SaveSettings(), baseline=None)
    generation: GenerationSettings = setting(...)
    execution: ExecutionSettings = setting(ExecutionSettings(), baseline=None)
    endpoint: EndpointSettings = setting(EndpointSettings(), baseline=None)
    data: DataSettings = setting(...)
    calibration: CalibrationSettings = setting(CalibrationSettings(), baseline=None)
    launch: LaunchSettings = setting(LaunchSettings(), baseline=None)
    track: TrackSettings = setting(TrackSettings(), baseline=None)

    @model_validator(mode="after")
    def _fits_task(self) -> RunSpec:
        if self.train.validates and self.task.valid is None:
            raise ValueError(f"train.eval_steps is set, but task '{self.task.name}' has no validation rows")
        if self.generation.chat_template and self.task.kind != "generate":
            raise ValueError(f"generation.chat_template is set, but task '{self.task.name}' generates nothing")
        if self.data.chat_template is not None and not self.task.messages and self.task.kind != "generate":
            raise ValueError(f"data.chat_template is set, but the rows of task '{self.task.name}' are no conversations")
        if self.generation.few_shot and (self.task.has_head or self.task.kind == "text"):
            raise ValueError(f"generation.few_shot is set, but task '{self.task.name}' shows no prompt")
        return self

    # ------------------------------------------------------------------------------------------------- identity

    @property
    def method(self) -> str:
        """Lower-case peft type with its variant, or `full`."""
        return method_name(self.adapter)

    @property
    def global_batch_size(self) -> int:
        """Rows per optimizer step, over all processes."""
        per_process = self.batch.per_device_train_batch_size * self.batch.gradient_accumulation_steps
        return per_process * self.launch.num_processes

    def identity(self) -> dict[str, Any]:
        """Everything declared that can change the weights or the points of the curve; what the train key hashes."""
        groups = {name: declared(getattr(self, name), "train") for name in GROUPS}
        groups["model"] = {**groups["model"], **references.content(self.model.id, self.model.revision)}
        identity: dict[str, Any] = {"protocol": PROTOCOL, "seed": self.seed, "task": self.task.identity()}
        identity.update({name: group for name, group in groups.items() if group})
        if self.adapter is not None:
            adapter = {key: value for key, value in self.adapter.items() if key not in BOOKKEEPING}
            identity["adapter"] = references.with_content(adapter)
        if self.train.steered:
            identity["steering"] = {
                "evaluation": self._evaluation("valid"),
                "grader": graded_by(self.task),
                "metrics": list(self.task.metrics.items()),
            }
        return identity

    @property
    def train_key(self) -> str:
        """Names the record."""
        return digest(self.identity())

    @property
    def arm(self) -> str:
        """The identity without the seed: what groups the seeds of one configuration."""
        return digest({name: value for name, value in self.identity().items() if name != "seed"})

    @property
    def stem(self) -> str:
        """Name of the record and its folder."""
        experiment = self.experiment.replace("/", "--")
        return f"{experiment}--{self.task.name}--seed{self.seed}--{self.train_key[:12]}"

    def _evaluation(self, part: Part) -> dict[str, Any]:
        identity: dict[str, Any] = {
            "protocol": PROTOCOL,
            "task": self.task.evaluation_identity(part),
            "generation": declared(self.generation, "eval") if self.task.kind == "generate" else {},
            "batch": declared(self.batch, "eval"),
            "data_seed": self.data.data_seed,
        }
        if self.task.kind != "generate":
            identity["max_length"] = self.data.max_length
        elif endpoint := declared(self.endpoint, "eval"):
            identity["endpoint"] = endpoint
        if self.data.chat_template is not None and self.task.messages:
            identity["written_in_chat_template"] = self.data.chat_template
        if len(self.task.pair) > 1 and (between := declared(self.data, "train").get("pair_separator")) is not None:
            identity["pair_separator"] = between
        limits = declared(self.execution, "eval")
        if limits and grades_many(self.task):
            identity["execution"] = limits
        if self.generation.few_shot:
            others = {part: source.identity() for part in ("valid", "test") if (source := getattr(self.task, part))}
            identity["shots"] = {"count": self.generation.few_shot, "task": self.task.identity(), **others}
        if self.generation.do_sample:
            identity["seed"] = self.seed
        return identity

    def evaluation_key(self, part: Part, source: Mapping[str, Any]) -> str:
        """Names one evaluation: rows, prompt, limits and batch of `part`, of the weights that `source` identifies."""
        return digest({**self._evaluation(part), "source": dict(source)})

    def text_key(self, source: Mapping[str, Any]) -> str:
        """Names the loss on the forgetting text of the weights that `source` identifies."""
        text = {"name": self.data.forgetting, "windows": TEXT_WINDOWS, "tokens": TEXT_WINDOW_TOKENS}
        return digest({"protocol": PROTOCOL, "text": text, "source": dict(source)})

    def step_identity(self, step: int) -> dict[str, Any]:
        """The weights of this run after `step` steps."""
        return {"run": self.train_key, "step": step}

    def base_identity(self) -> dict[str, Any]:
        """The bare model: reference, content and arithmetic."""
        arithmetic = ("id", "revision", "dtype", "attn_implementation", "matmul_precision", "trust_remote_code")
        plain = {name: value for name, value in declared(self.model, "train").items() if name in arithmetic}
        quant = declared(self.quant, "train")
        content = references.content(self.model.id, self.model.revision)
        return {**plain, **content, **({"quant": quant} if quant else {})}


def method_name(adapter: Mapping[str, Any] | None) -> str:
    """`full`, or the peft type in lower case followed by its variants.

    A variant shows in the config itself: `use_<variant>: true` or options, a `<variant>_config`, or a string as the way
    of initialising. So a variant that is new in peft gets its name without code here.
    """
    if adapter is None:
        return "full"
    return "_".join([str(adapter["peft_type"]).lower(), *variants_of(adapter)])


def variants_of(adapter: Mapping[str, Any]) -> list[str]:
    """The variants that an adapter's config shows, each once, in the order of the alphabet.

    Empty options are the defaults of a variant. Not those of a start: that is asked for by its text, and peft writes
    `{}` where it was not.
    """
    variants = set()
    for key, value in adapter.items():
        if key.startswith("use_") and (value is True or isinstance(value, Mapping)):
            variants.add(key.removeprefix("use_"))
        elif key.startswith("init_") and isinstance(value, str):
            variants.add(value)
        elif key.endswith("_config") and (value or value == {}):
            name = key.removesuffix("_config")
            if value or name not in names("starts"):
                variants.add(name)
    return sorted(variants)
