"""The sections of a lora-ns YAML file: its keys, their types and the values that stand where none is given.

Types are as lenient as there: a number may be written as text (`"3e-4"`). What a key becomes here is `s1.py`'s work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from peftlab.config.settings import Settings
from peftlab.errors import UserError

Strategy = Literal["no", "steps", "epoch"]
Precision = Literal["no", "fp16", "bf16"]


class Section(Settings):
    """Frozen, unknown keys are errors, text that says a number counts as one."""

    model_config = ConfigDict(strict=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _off(cls, value: Any, info: Any) -> Any:
        """Versions of YAML differ over `no`: for a choice that has such a word it means that word."""
        chosen = ("eval_strategy", "save_strategy", "mixed_precision")
        return "no" if value is False and info.field_name in chosen else value


class Quantization(Section):
    """`model.quantization`: said outright, it goes before what the optimizer's name implies."""

    load_in_8bit: bool = False
    load_in_4bit: bool = False


class Model(Section):
    """The base model."""

    name_or_path: str
    trust_remote_code: bool = True
    use_auth_token: bool | str = False
    quantization: Quantization | None = None


class Peft(Section):
    """The adapter."""

    method: str
    lora_r: int = Field(8, gt=0)
    lora_alpha: int = Field(16, gt=0)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = ("q_proj", "v_proj")
    bias: Literal["none", "all", "lora_only"] = "none"
    task_type: str | None = None
    inference_mode: bool = False
    num_virtual_tokens: int = Field(20, gt=0)
    variant: str = "lora"
    init_lora_weights: bool | str = True


class Dataset(Section):
    """Rows and how they become text."""

    name: str
    subset: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    test_split: str | None = None
    text_column: str | tuple[str, ...] | None = None
    label_column: str | None = None
    num_labels: int = Field(2, gt=0)
    max_length: int | None = Field(None, gt=1)
    preprocessing_num_workers: int | None = None
    prompt_template: str | None = None


class Training(Section):
    """Budget, optimizer, evaluation and saving."""

    output_dir: str = Field(min_length=1)
    num_train_epochs: float = Field(3, gt=0)
    per_device_train_batch_size: int = Field(8, gt=0)
    per_device_eval_batch_size: int = Field(8, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    global_batch_size: int | None = Field(None, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    lr_scheduler_type: str = "cosine"
    eval_strategy: Strategy = "steps"
    eval_steps: int = Field(500, gt=0)
    total_eval_times: int | None = Field(None, gt=0)
    save_strategy: Strategy = "steps"
    save_steps: int = Field(500, gt=0)
    save_total_limit: int | None = Field(3, gt=0)
    load_best_model_at_end: bool = False
    metric_for_best_model: str = "loss"
    greater_is_better: bool = False
    fp16: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    optim: str = "adamw_torch"
    max_grad_norm: float = Field(1.0, ge=0)
    logging_steps: int = Field(10, gt=0)
    logging_dir: str | None = None
    report_to: str | tuple[str, ...] = ("tensorboard",)
    seed: int = Field(42, ge=0)
    data_seed: int = Field(42, ge=0)
    remove_unused_columns: bool = True
    ddp_find_unused_parameters: bool = False


class Sft(Section):
    """Supervised fine-tuning on text."""

    max_seq_length: int = Field(2048, gt=1)
    packing: bool = False
    dataset_text_field: str = "text"


class Accelerate(Section):
    """What the launcher would otherwise be told."""

    mixed_precision: Precision = "no"
    gradient_accumulation_steps: int = Field(1, gt=0)
    use_cpu: bool = False


class File(Section):
    """A whole file; `sft` and `accelerate` may be left out."""

    task_name: str
    task_type: Literal["classification", "causal_lm"] | None = None
    model: Model
    peft: Peft
    dataset: Dataset
    training: Training
    sft: Sft | None = None
    accelerate: Accelerate | None = None


OPTIMIZERS = {
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "adamw_torch_4bit": "AdamW",
    "adamw_bnb_8bit": "AdamW8bit",
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion_32bit": "Lion32bit",
    "lion_8bit": "Lion8bit",
    "paged_lion_32bit": "PagedLion32bit",
    "paged_lion_8bit": "PagedLion8bit",
    "rmsprop": "RMSprop",
    "rmsprop_bnb_8bit": "RMSprop8bit",
    "rmsprop_bnb_32bit": "RMSprop32bit",
    "ademamix": "AdEMAMix32bit",
    "ademamix_8bit": "AdEMAMix8bit",
    "paged_ademamix_32bit": "PagedAdEMAMix32bit",
    "paged_ademamix_8bit": "PagedAdEMAMix8bit",
    "sgd": "SGD",
    "adagrad": "Adagrad",
}
"""The trainer's names of optimizers: classes of torch.optim and bitsandbytes.optim."""

IDLE = (
    "dataset.preprocessing_num_workers",
    "training.remove_unused_columns",
    "training.ddp_find_unused_parameters",
    "training.logging_steps",
    "training.logging_dir",
    "sft.dataset_text_field",
    "accelerate.use_cpu",
    "model.use_auth_token",
)
"""Keys that change nothing here: every step is logged, columns are named by the task, tokens are the hub library's."""


def given(file: File) -> set[str]:
    """Dotted names of the keys that the file itself holds."""
    names = set()
    for section in file.model_fields_set:
        value = getattr(file, section)
        names |= {f"{section}.{key}" for key in value.model_fields_set} if isinstance(value, Section) else {section}
    return names


VALIDATING = ("eval_strategy", "eval_steps", "early_stopping_patience")
"""Settings of `train` that, on the command line, ask for validation or say when."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file that is being put into our own words.

    Attributes:
        file: Its sections.
        where: What an error names as the place of a mistake.
        given: Dotted names of the keys that it holds.
        overrides: Settings of the command line.
        classifies: Whether it is a classification; else text is generated.
        converses: Whether the rows are conversations of several turns.
        modes: Of the grader of generated answers, those that fit these; none: nobody knows what they are.
        notes: What the user should know of the translation; gathered on the way.
    """

    file: File
    where: str
    given: set[str]
    overrides: Mapping[str, Any]
    classifies: bool
    converses: bool
    modes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def is_graded(self) -> bool:
        """Whether its answers can be scored: by a grader that fits them, or, of conversations, by their likelihood."""
        return self.classifies or self.converses or bool(self.modes)

    @property
    def keeps_best(self) -> bool:
        """Whether the best weights are kept, as the command line or else the file has it."""
        said = self.overrides.get("train.load_best_model_at_end", self.file.training.load_best_model_at_end)
        return bool(said)

    @property
    def eval_steps(self) -> int | None:
        """Steps between validations; None: nobody names them, and the usual number may be more than the epochs have.

        There a run that is too short for it is not validated. Where the steps are known it is validated at its end.
        """
        training, steps = self.file.training, self.overrides.get("train.max_steps")
        if "training.eval_steps" in self.given:
            return training.eval_steps
        if isinstance(steps, int) and steps > 0:
            return min(training.eval_steps, steps)
        wanted = self.keeps_best or any(f"train.{name}" in self.overrides for name in VALIDATING)
        return training.eval_steps if wanted else None

    @property
    def validates(self) -> bool:
        """Whether validation rows, if there are any, are scored on the way."""
        training = self.file.training
        if training.eval_strategy != "steps":
            return training.eval_strategy == "epoch"
        asked = training.total_eval_times is not None or "train.total_eval_times" in self.overrides
        return asked or self.eval_steps is not None

    def error(self, key: str, says: str, fix: str) -> UserError:
        """A mistake in the value of a key."""
        return UserError(f"{self.where}: '{key}' {says}", fix=fix)
