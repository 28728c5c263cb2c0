"""transformers' `generate`: the reference engine. One call is one batch; sorting and batching are the caller's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig

from peftlab.protocols import Completion, Engine, Prompt, Session


def _open(source: Any) -> Session:
    """Open on a `Built`: reads its model, tokenizer and stop ids."""
    return Session(generate=lambda prompts, options: _generate(source, prompts, options))


def _generate(built: Any, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[Completion]:
    """Generate one batch. Pads on the left; positions follow the attention mask."""
    width = max(len(prompt.token_ids) for prompt in prompts)
    padded = any(len(prompt.token_ids) < width for prompt in prompts)
    assert not (padded and built.equal_lengths), "padding on the left would shift this model's positions"
    pad_id = options["pad_id"]
    input_ids = torch.full((len(prompts), width), pad_id)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        attention_mask[row, width - len(prompt.token_ids) :] = 1
    built.model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        # peft says that prompt methods drop position ids: that is why their batches hold prompts of one length
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        output = built.model.generate(
            input_ids=input_ids.to(built.device),
            attention_mask=attention_mask.to(built.device),
            generation_config=_config(built, prompts, options),
            tokenizer=built.tokenizer,
            synced_gpus=False,  # each process has rows of its own; with FSDP it is not the default
            **_more_inputs(built, input_ids, attention_mask, prompts),
        )
    answers, several = output[:, width:].tolist(), options.get("num_return_sequences", 1)
    result = []
    for row, prompt in enumerate(prompts):  # the answers to one prompt follow each other
        its = answers[row * several : (row + 1) * several]
        first, *more = [_completion(built, prompt, ids, options["stop"]) for ids in its]
        result.append(replace(first, more=tuple(more)))
    return result


def _more_inputs(
    built: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """What the method adds to the model's inputs, as in training."""
    if built.method.forward_inputs is None:
        return dict(prompts[0].forward_inputs)
    ids, mask = input_ids.to(built.device), attention_mask.to(built.device)
    batch = SimpleNamespace(input_ids=ids, attention_mask=mask, labels=None)
    return {**built.method.forward_inputs(batch), **prompts[0].forward_inputs}


def _config(built: Any, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> GenerationConfig:
    limit = max(prompt.max_new_tokens for prompt in prompts)
    settings: dict[str, Any] = {
        "max_new_tokens": limit,
        "min_new_tokens": limit if options.get("full_length") else None,
        "do_sample": options["do_sample"],
        "num_beams": options["num_beams"],
        "pad_token_id": options["pad_id"],
        "eos_token_id": list(built.stop_ids) or None,
        "stop_strings": list(options["stop"]) or None if not options.get("full_length") else None,
        "use_cache": True,
    }
    further = ("length_penalty", "no_repeat_ngram_size", "num_return_sequences")
    settings.update({name: options[name] for name in further if name in options})
    if options["do_sample"]:
        settings.update({name: options[name] for name in ("temperature", "top_p", "top_k")})
    return GenerationConfig(**{name: value for name, value in settings.items() if value is not None})


def _completion(built: Any, prompt: Prompt, ids: list[int], stop: Sequence[str]) -> Completion:
    """Cut at the row's own limit, at the first stop id, then at the first stop string."""
    kept = ids[: prompt.max_new_tokens]
    finish = "length"
    for index, token in enumerate(kept):
        if token in built.stop_ids:
            kept, finish = kept[:index], "stop"
            break
    text = built.tokenizer.decode(kept, skip_special_tokens=True)
    cuts = [text.find(string) for string in stop if string in text]
    if cuts:
        text, finish = text[: min(cuts)], "stop"
        kept = _through(built, kept, stop)
    return Completion(text=text, token_ids=tuple(kept), finish=finish, num_tokens=len(kept))


def _through(built: Any, ids: list[int], stop: Sequence[str]) -> list[int]:
    """The tokens up to the one that completes a stop string; what follows is padding up to the batch's longest row."""
    for count in range(1, len(ids) + 1):
        text = built.tokenizer.decode(ids[:count], skip_special_tokens=True)
        if any(string in text for string in stop):
            return ids[:count]
    return ids


PLUGIN = Engine(open=_open)
