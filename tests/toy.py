"""Tiny random models, a character tokenizer, a toy task and experiment folders, all built in code.

Everything is deterministic and takes milliseconds; nothing here is a good model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
)

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
SPECIAL = ("<pad>", "<eos>", "<unk>", "<bos>", "<cls>", "<sep>", "<mask>")
VOCABULARY = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
SIZE = len(VOCABULARY)

CAUSAL = ("llama", "gpt2", "gpt_neo", "qwen3", "mistral")
ENCODERS = ("bert", "roberta")
LINEARS = {
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "gpt_neo": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}


def tokenizer(*, pad: str | None = "<pad>", side: str = "right", encoder: bool = False) -> PreTrainedTokenizerFast:
    """A character tokenizer; `encoder` adds <cls> and <sep> as BERT does."""
    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    if encoder:
        inner.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>",
            pair="<cls> $A <sep> $B:1 <sep>:1",
            special_tokens=[("<cls>", VOCABULARY["<cls>"]), ("<sep>", VOCABULARY["<sep>"])],
        )
    more: dict[str, Any] = {"pad_token": pad} if pad else {}
    if encoder:
        more["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side=side,
        **more,
    )


def config(architecture: str) -> Any:
    """A config of a few thousand weights."""
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    llama = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        **ids,
    }
    encoder = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 300,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return {
        "llama": lambda: LlamaConfig(**llama),
        "qwen3": lambda: Qwen3Config(**llama, head_dim=8),
        "mistral": lambda: MistralConfig(**llama, sliding_window=24),
        "gpt2": lambda: GPT2Config(vocab_size=SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=512, **ids),
        "gpt_neo": lambda: GPTNeoConfig(
            vocab_size=SIZE,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=16,
            max_position_embeddings=512,
            **ids,
        ),
        "bert": lambda: BertConfig(**encoder, type_vocab_size=2),
        "roberta": lambda: RobertaConfig(**encoder, type_vocab_size=2),
    }[architecture]()


def save_model(folder: Path, architecture: str = "llama", *, seed: int = 0, pad: str | None = "<pad>") -> Path:
    """Write a tiny random model with its tokenizer; weights are large enough that answers differ."""
    torch.manual_seed(seed)
    plain = config(architecture)
    plain.initializer_range = 0.2
    loader = AutoModelForSequenceClassification if architecture in ENCODERS else AutoModelForCausalLM
    loader.from_config(plain).save_pretrained(folder)
    tokenizer(pad=pad, encoder=architecture in ENCODERS).save_pretrained(folder)
    return folder


@cache
def rows(count: int, offset: int = 0) -> list[dict[str, str]]:
    """Sums with answers of different lengths; no two rows are alike."""
    return [
        {"question": f"{a} + {b}", "answer": str(a + b)}
        for a, b in ((index * 7 % 113 + index, index * 3) for index in range(offset, offset + count))
    ]


def write_task(folder: Path, *, kind: str = "generate", train: int = 40, test: int = 12, **changes: Any) -> Path:
    """Write a toy task and its rows; returns the YAML's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in (("train", rows(train)), ("valid", rows(8, 500)), ("test", rows(test, 900))):
        lines = [json.dumps(row | {"label": len(row["answer"]) % 2}) for row in found]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    source = {split: {"dataset": str(folder.resolve()), "split": split} for split in ("train", "valid", "test")}
    task: dict[str, Any] = {"version": 1, "kind": kind, **source}
    if kind in ("classify", "regress"):
        task |= {
            "columns": {"question": "question", "label": "label"},
            "pair": ["question"],
            "labels": ["even", "odd"],
            "reference": "label",
            "grader": {"name": "label"},
            "metrics": {"acc": "higher"},
        }
    else:
        task |= {
            "columns": {"question": "question", "answer": "answer"},
            "prompt": "{question} =",
            "target": " {answer}",
            "max_new_tokens": 5,
            "grader": {"name": "numeric", "modes": ["strict", "flexible"]},
            "metrics": {"exact_match": "higher", "exact_match_flexible": "higher"},
        }
    path = folder / "toy.yaml"
    path.write_text(json.dumps(task | changes))
    return path


LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


def write_experiment(
    root: Path,
    *,
    name: str = "lora/toy",
    architecture: str = "llama",
    adapter: dict[str, Any] | None = LORA,
    pad: str | None = "<pad>",
    task: Path | None = None,
    **groups: Any,
) -> Path:
    """Write an experiment folder on a fresh tiny model; `groups` are merged over small defaults."""
    model = root / f"model-{architecture}"
    if not model.exists():
        save_model(model, architecture, pad=pad)
    kind = "classify" if architecture in ENCODERS else "generate"
    task = task or write_task(root / f"task-{kind}", kind=kind)
    parameters: dict[str, Any] = {
        "task": str(task),
        "model": {"id": str(model.resolve())},
        "optim": {"learning_rate": 1e-2},
        "batch": {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 5},
        "train": {"max_steps": 6},
        "save": {"save_steps": 2},
        "data": {"forgetting": None, "retention": None, "max_length": 64},
    }
    for group, values in groups.items():
        parameters[group] = {**parameters.get(group, {}), **values} if isinstance(values, dict) else values
    folder = root / "experiments" / name
    folder.mkdir(parents=True)
    if adapter is not None:
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "training_params.json").write_text(json.dumps(parameters))
    return folder


def drained(events: Iterator[Any]) -> Any:
    """What a generator of events returns at its end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value
