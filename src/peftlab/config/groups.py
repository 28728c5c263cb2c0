"""The groups of settings of a run: every setting with its type, default, meaning and key. Resolves nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from peftlab.config.settings import Settings, setting
from peftlab.protocols import quantizer_of

BUDGETS = ("max_steps", "num_train_epochs", "max_train_samples", "max_train_tokens")


class ModelSettings(Settings):
    """Which base model, and in what arithmetic."""

    id: str = setting(
        ..., "hub id, local folder (./...), or package:<module>/<file or folder> for one inside a package"
    )
    revision: str | None = setting(None, "commit of a hub model, or version of the package")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "precision of the base weights")
    attn_implementation: str | None = setting(None, "sdpa, eager, flash_attention_2, ...; null: the library's choice")
    matmul_precision: Literal["highest", "high", "medium"] = setting("highest", "of float32 matrix products")
    autocast_adapter_dtype: bool = setting(True, "keep half-precision adapter weights in float32")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass to save memory")
    compile: bool = setting(False, "torch.compile the model (dynamic shapes)")
    trust_remote_code: bool = setting(False, "run model code that comes with the weights")
    kv_prefix_text: str | None = setting(None, "text that a trained key-value prefix starts from")


class QuantSettings(Settings):
    """Precision of the frozen base weights, where it is lower than `model.dtype`."""

    method: str | None = setting(
        None,
        "weights of 8 or 4 bits: bnb-int8, bnb-nf4, bnb-fp4, torchao-int8, torchao-int4; stored so: gptq, awq; "
        "null: as in model.dtype",
    )
    double_quant: bool = setting(False, "quantise the quantisation constants too (4 bit)")
    compute_dtype: Literal["float32", "bfloat16", "float16"] | None = setting(None, "null: the library's choice")

    @model_validator(mode="after")
    def _possible(self) -> QuantSettings:
        taken = () if self.method is None else _taken(self.method)
        for name in ("double_quant", "compute_dtype"):
            if getattr(self, name) and name not in taken:
                raise ValueError(f"{name} belongs to a method of 4 bits: quant.method=bnb-nf4 or bnb-fp4")
        return self


def _taken(method: str) -> tuple[str, ...]:
    """The further settings of group `quant` that a method takes."""
    quantizer, scheme = quantizer_of(method)
    return quantizer.schemes[scheme]


class OptimSettings(Settings):
    """Optimizer and schedule."""

    optimizer: str = setting(
        "AdamW", "class of torch.optim or bitsandbytes.optim, or one of peft's (lora+, lora-fa, ...)"
    )
    learning_rate: float = setting(1e-4, "peak learning rate", gt=0)
    weight_decay: float = setting(0.0, "decoupled weight decay", ge=0)
    decay_exempt: Literal["none", "bias_and_norm"] = setting(
        "none", "tensors that do not decay; bias_and_norm: by the rule of transformers' Trainer"
    )
    optimizer_kwargs: dict[str, Any] = setting({}, "further arguments of the optimizer")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = setting("cosine", "schedule after the warm-up")
    warmup_steps: int | float = setting(0.1, "steps; a float below 1 is a share of max_steps", ge=0)
    max_grad_norm: float = setting(1.0, "clip the gradient norm; 0 disables", ge=0)

    @field_validator("warmup_steps")
    @classmethod
    def _ratio(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value >= 1:
            raise ValueError("a float is a share of max_steps and must be below 1; give whole steps as an integer")
        return value or 0  # no share and no steps are the same schedule, and so the same run


class BatchSettings(Settings):
    """How rows become batches."""

    per_device_train_batch_size: int = setting(4, "rows per forward pass", gt=0)
    gradient_accumulation_steps: int = setting(1, "forward passes per optimizer step", gt=0)
    per_device_eval_batch_size: int = setting(50, "rows per evaluation batch", key="eval", gt=0)
    order: Literal["bucketed", "shuffled", "file", "bucketed-file"] = setting(
        "bucketed", "seeded shuffle with or without length buckets, or as in the file, with or without"
    )
    bucket_batches: int = setting(20, "batches per length bucket, longest first", gt=0)
    eval_order: Literal["length", "file"] = setting(
        "length", "rows of an evaluation: sorted by length, or as they come", key="eval"
    )


class TrainSettings(Settings):
    """The budget, and what happens along the way."""

    max_steps: int | None = setting(1000, "budget in optimizer steps", gt=0)
    num_train_epochs: float | None = setting(None, "budget in passes over the rows, instead of max_steps", gt=0)
    max_train_samples: int | None = setting(None, "budget in rows, instead of max_steps", gt=0)
    max_train_tokens: int | None = setting(None, "budget in tokens (padding not counted), instead of max_steps", gt=0)
    eval_strategy: Literal["no", "steps", "epoch"] = setting("steps", "when to validate")
    eval_steps: int | None = setting(None, "validate every so many steps; null: not during training", gt=0)
    total_eval_times: int | None = setting(
        None, "validate so many times, the last at the end; instead of eval_steps", gt=0
    )
    evaluate: Literal["none", "valid", "all"] = setting("all", "which evaluations `run` makes", key="none")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", "autocast during training (AMP)")
    load_best_model_at_end: bool = setting(False, "keep the checkpoint with the best validation metric")
    metric_for_best_model: str | None = setting(None, "null: the task's primary metric")
    early_stopping_patience: int | None = setting(None, "stop after so many validations without a gain", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, values: Any) -> Any:
        """Another budget stands in the place of the default number of steps."""
        if isinstance(values, dict) and "max_steps" not in values and any(values.get(name) for name in BUDGETS[1:]):
            return {**values, "max_steps": None}
        return values

    @model_validator(mode="after")
    def _possible(self) -> TrainSettings:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"one budget, please: {', '.join(given) or 'none'} given, of {', '.join(BUDGETS)}")
        if self.eval_steps is not None and self.total_eval_times is not None:
            raise ValueError("eval_steps and total_eval_times say the same thing in two ways: give one")
        if self.eval_strategy == "epoch" and (self.eval_steps or self.total_eval_times):
            raise ValueError("eval_strategy: epoch validates after each pass over the rows: leave eval_steps out")
        if self.eval_steps is not None and self.max_steps is not None and self.eval_steps > self.max_steps:
            raise ValueError(f"eval_steps ({self.eval_steps}) is larger than max_steps ({self.max_steps})")
        if self.steered and not self.validates:
            raise ValueError(
                "load_best_model_at_end and early_stopping_patience need validations on the way: set eval_strategy: "
                "epoch, eval_steps or total_eval_times"
            )
        if self.evaluate == "valid" and not self.validates:
            raise ValueError("evaluate: valid scores the validation rows at each eval_steps, which is not set")
        if self.steered and self.evaluate == "none":
            raise ValueError("load_best_model_at_end and early_stopping_patience need evaluate: valid or all")
        return self

    @property
    def steered(self) -> bool:
        """Whether validation scores decide which weights are kept."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    @property
    def validates(self) -> bool:
        """Whether there are validations during training."""
        if self.eval_strategy == "steps":
            return self.eval_steps is not None or self.total_eval_times is not None
        return self.eval_strategy == "epoch"


class SaveSettings(Settings):
    """What is written to disk on the way; none of it changes a result."""

    save_strategy: Literal["no", "steps", "epoch"] = setting("steps", "when to write a checkpoint", key="none")
    save_steps: int = setting(50, "checkpoint every so many steps", key="none", gt=0)
    save_total_limit: int = setting(2, "checkpoints kept for resuming", key="none", gt=0)
    output_dir: str | None = setting(None, "folder that also gets adapter, tokenizer and metrics", key="none")


class CalibrationSettings(Settings):
    """Rows that an adapter's start reads before training (starts such as the covariance of a layer's inputs)."""

    rows: int | None = setting(None, "how many; null: as many as the start's own paper used", gt=0)
    source: str = setting("train", "train or valid (rows of the task), or a general text's name; never the test")
    selection: Literal["random", "first"] = setting("random", "drawn by data.data_seed, or the first of the file")
    max_tokens: int | None = setting(None, "tokens of a row, the rest is cut; null: data.max_length", gt=1)
    batch_size: int | None = setting(
        None, "rows per forward pass: 1 pads nothing, more are padded and masked; null: the start's own", gt=0
    )
    cache: Literal["all", "small", "none"] = setting(
        "all", "what is kept on disk for other runs; small: nothing of the size of the weights", key="none"
    )


class LaunchSettings(Settings):
    """How many processes train the run together."""

    num_processes: int = setting(1, "processes; the launcher must deliver as many", gt=0)
    deepspeed: str | None = setting(None, "DeepSpeed config file: ZeRO stage 1, 2 or 3 over the processes", key="none")
    sharding: Literal["fsdp2"] | None = setting(
        None, "divide weights, gradients and optimizer state over the processes; null: each has all", key="none"
    )

    @model_validator(mode="after")
    def _possible(self) -> LaunchSettings:
        if self.deepspeed is not None and self.sharding is not None:
            raise ValueError("deepspeed and sharding divide the same tensors: give one")
        return self


class TrackSettings(Settings):
    """Where the run reports to while it goes on."""

    report_to: tuple[str, ...] = setting((), "trackers: tensorboard, wandb", key="none", strict=False)
    project: str = setting("peftlab", "name that runs are grouped under", key="none")
    log_samples: int = setting(0, "generated samples shown at each evaluation", key="none", ge=0)

    @field_validator("report_to", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """One name is a list of one, as on a command line."""
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class GenerationSettings(Settings):
    """How answers are generated."""

    engine: str = setting("hf", "engine plug-in", key="eval")
    max_new_tokens: int = setting(256, "limit per answer; the task may name its own", key="eval", gt=0)
    max_length: int | None = setting(None, "limit on prompt + answer tokens, per row", key="eval", gt=0)
    do_sample: bool = setting(False, "sample instead of greedy decoding", key="eval")
    temperature: float = setting(1.0, "of sampling", key="eval", gt=0)
    top_p: float = setting(1.0, "of sampling", key="eval", gt=0, le=1)
    top_k: int = setting(0, "of sampling; 0: off", key="eval", ge=0)
    num_beams: int = setting(1, "beams", key="eval", gt=0)
    num_return_sequences: int = setting(
        1, "answers to every prompt: sampled apart, or the best of one search with beams", key="eval", gt=0
    )
    length_penalty: float = setting(1.0, "of beams: above 1 favours longer answers, below 1 shorter ones", key="eval")
    no_repeat_ngram_size: int = setting(
        0, "so many tokens in a row never come twice in prompt and answer; 0: off", key="eval", ge=0
    )
    limits: Literal["row", "batch"] = setting(
        "row", "max_length counts each row's own prompt, or the longest prompt of its batch", key="eval"
    )
    stop: tuple[str, ...] = setting(
        (), "strings that end an answer; the task may name its own", key="eval", strict=False
    )
    few_shot: int = setting(0, "worked examples from the training rows in every prompt", key="eval", ge=0)
    chat_template: bool = setting(False, "wrap prompts in the tokenizer's chat template", key="eval")

    @model_validator(mode="after")
    def _possible(self) -> GenerationSettings:
        if not self.do_sample and (self.temperature, self.top_p, self.top_k) != (1.0, 1.0, 0):
            raise ValueError("temperature, top_p and top_k change nothing without do_sample=true")
        if self.num_beams == 1 and self.length_penalty != 1.0:
            raise ValueError("length_penalty changes nothing without num_beams above 1")
        several = self.num_return_sequences
        if several > 1 and not self.do_sample and self.num_beams == 1:
            raise ValueError(f"num_return_sequences: {several} greedy answers would all be equal: add do_sample=true")
        if 1 < self.num_beams < several:
            raise ValueError(f"num_return_sequences: a search with {self.num_beams} beams has no {several} answers")
        if "" in self.stop:
            raise ValueError("'stop' holds an empty string, which would end every answer at once")
        return self


class EndpointSettings(Settings):
    """A server that holds the weights, for an engine that does not generate here. Its address and key are in no key."""

    url: str | None = setting(None, "address of the server's protocol, such as http://localhost:8000/v1", key="none")
    model: str | None = setting(None, "name that the weights to be scored are served under", key="eval")
    base_model: str | None = setting(None, "name that the starting model of a run is served under", key="eval")
    prompts: Literal["tokens", "text"] = setting(
        "tokens", "send prompts as token ids, or as text that the server tokenises", key="eval"
    )
    extra_body: dict[str, Any] = setting({}, "further fields of every request, such as min_p", key="eval")
    api_key_variable: str | None = setting(None, "environment variable that holds the server's key", key="none")
    concurrency: int = setting(16, "requests under way at once", key="none", gt=0)
    prompts_per_request: int = setting(1, "prompts of equal limits in one request", key="none", gt=0)
    timeout_seconds: float = setting(600.0, "for the whole answer to one request", key="none", gt=0)
    retries: int = setting(6, "how often a request is sent again, after growing waits", key="none", ge=0)

    @model_validator(mode="after")
    def _possible(self) -> EndpointSettings:
        if self.url is not None:
            address = urlsplit(self.url)
            if address.username is not None or address.password is not None:  # not repeated: it may be a password
                raise ValueError("url holds a name or a key; keys come from a variable: api_key_variable=NAME")
            if address.query or address.fragment:  # nor are these
                raise ValueError("url holds a query or a fragment (? or #): only the address, please")
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ValueError(f"url = {self.url!r} is no address such as http://localhost:8000/v1")
        variable = self.api_key_variable
        if variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable, re.ASCII):
            raise ValueError(
                "api_key_variable is not the name of an environment variable (capital letters, digits and _); if it is "
                "the key itself: export it as a variable, and name that"
            )
        return self

    def serving(self, *, start: bool) -> EndpointSettings:
        """The settings for one set of weights: of the two names only its own is left."""
        return self.model_copy(update={"model": self.base_model if start else self.model, "base_model": None})


class ExecutionSettings(Settings):
    """What a program that a model wrote may use while it is tested, where a task is graded by running programs."""

    cpu_seconds: float = setting(20.0, "processor time of a program; above it it fails", key="eval", gt=0)
    memory_bytes: int = setting(1024**3, "address space of a program", key="eval", ge=64 * 1024**2)
    wall_seconds: float = setting(120.0, "time on the clock, for programs that wait", key="none", gt=0)
    workers: int | None = setting(None, "programs at a time; null: as many as there are cores", key="none", gt=0)
    allow_unsafe_code: bool = setting(
        False, "run programs even where nothing isolates them; on the command line alone", key="none"
    )

    @model_validator(mode="after")
    def _possible(self) -> ExecutionSettings:
        if self.wall_seconds < self.cpu_seconds:
            raise ValueError(
                f"wall_seconds ({self.wall_seconds}) is below cpu_seconds ({self.cpu_seconds}), so that it would decide"
            )
        return self


class DataSettings(Settings):
    """Rows, truncation and the loss mask."""

    max_length: int = setting(768, "tokens per training row; longer rows are cut and counted", gt=1)
    loss_mask: Literal["answer", "everything"] = setting("answer", "tokens that the loss is taken on")
    chat_template: bool | None = setting(
        None,
        "how conversations are written: true in the tokenizer's chat template, false in the task's plain turns; "
        "null: in the tokenizer's where it has one. Of prompts to be answered: true in the chat template, as it is "
        "where generation.chat_template is true and this is not given; else plain",
    )
    pair_separator: str = setting(
        "\n", "text between the two texts of a pair, where the tokenizer puts no token of its own between them"
    )
    eos_weight: float = setting(1.0, "weight of the end-of-sequence token in the loss", ge=0)
    prompt: str | None = setting(None, "template in the place of the task's", key="none")
    max_characters: int | None = setting(
        None, "drop longer training rows; null: the task's limit, 0: keep all", key="none", ge=0
    )
    data_seed: int = setting(0, "which rows are drawn, and which few-shot examples")
    train_split: str | None = setting(
        None, "split of the training rows, in the place of the task's: a slice, or a part that a mirror has", key="none"
    )
    train_rows: int | float | None = setting(None, "draw this many (or this share) of the training rows", key="none")
    valid_rows: int | float | None = setting(None, "the same for validation", key="none")
    test_rows: int | float | None = setting(None, "the same for the test", key="none")
    allow_overlap: float | None = setting(None, "share of test items allowed in training; null: the task's", key="none")
    forgetting: str | None = setting("wikitext2", "held-out general text; null: not measured", key="eval")
    retention: str | None = setting(
        "general", "benchmark of few rows, scored before and after training; null: not measured", key="none"
    )


GROUPS: Mapping[str, type[Settings]] = {
    "model": ModelSettings,
    "quant": QuantSettings,
    "optim": OptimSettings,
    "batch": BatchSettings,
    "train": TrainSettings,
    "save": SaveSettings,
    "generation": GenerationSettings,
    "execution": ExecutionSettings,
    "endpoint": EndpointSettings,
    "data": DataSettings,
    "calibration": CalibrationSettings,
    "launch": LaunchSettings,
    "track": TrackSettings,
}
