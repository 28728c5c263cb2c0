"""A plain loop with peft and transformers: what peftlab's speed is measured against. No logging, library loss."""

import time
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM


def run(
    folder: str,
    adapter: dict[str, Any] | None,
    dtype: torch.dtype,
    steps: list[list[list[Any]]],
    pad_id: int,
    learning_rate: float,
    seed: int,
) -> tuple[list[float], list[float]]:
    """Train over given steps (micro-batches of (ids, labels_from) rows); returns losses and seconds of each step."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if adapter is not None:
        torch.manual_seed(seed)
        kind = adapter["peft_type"]
        config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[kind]](
            **{key: value for key, value in adapter.items() if key != "peft_type"}
        )
        model = peft.get_peft_model(model, config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    model.train()
    losses, seconds = [], []
    for micro_batches in steps:
        started = time.perf_counter()
        total = 0.0
        for rows in micro_batches:
            length = max(len(ids) for ids, _ in rows)
            input_ids = torch.full((len(rows), length), pad_id)
            attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
            labels = torch.full((len(rows), length), -100)
            for index, (ids, start) in enumerate(rows):
                input_ids[index, : len(ids)] = torch.tensor(ids)
                attention_mask[index, : len(ids)] = 1
                labels[index, start : len(ids)] = torch.tensor(ids[start:])
            loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False).loss
            (loss / len(micro_batches)).backward()
            total += float(loss.detach()) / len(micro_batches)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        seconds.append(time.perf_counter() - started)
    return losses, seconds
