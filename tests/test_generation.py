"""Generation and scoring do not depend on batch size, neighbours, order or padding; limits are each row's own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from peftlab.config import loading
from peftlab.config.groups import BatchSettings, GenerationSettings
from peftlab.modelling import adapting, models, randomness
from peftlab.protocols import Completion, Example, Prompt, find
from peftlab.rows import data, tokenise
from peftlab.scores import choosing, evaluation, generation, language

PROMPT_METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
    "p": {"peft_type": "P_TUNING", "num_virtual_tokens": 3, "encoder_hidden_size": 8},
}


def built_for(
    tmp_path: Path, architecture: str = "llama", adapter: dict[str, Any] | None = None, pad: str | None = "<pad>"
) -> models.Built:
    folder = toy.write_experiment(tmp_path, architecture=architecture, adapter=adapter, pad=pad)
    resolved = loading.load(folder)
    built = adapting.adapt(models.load(resolved.model, "causal"), resolved)
    if adapter is not None:
        with torch.no_grad():  # an adapter that starts as nothing would prove nothing
            for parameter in built.trainable().values():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return built


TEXTS = ["7 + 8 =", "what is 123 + 456 + 789 =", "1 =", "a much longer question, to be answered: 5 + 5 =", "12 + 30 ="]


def prompts_for(built: models.Built, limits: Sequence[int] = (6, 6, 6, 6, 6)) -> list[Prompt]:
    return [
        Prompt(token_ids=tokenise.prompt_ids(text, built.tokenizer), max_new_tokens=limit)
        for text, limit in zip(TEXTS, limits, strict=True)
    ]


def answers(
    built: models.Built, prompts: list[Prompt], size: int, *, stop: Sequence[str] = (), **settings: Any
) -> list[Completion]:
    options = generation.options_of(built, GenerationSettings(**settings), stop)
    found: dict[int, Completion] = {}
    session = find("engines", "hf").open(built)
    for batch in generation.generate(
        session, prompts, options, batch_size=size, equal_lengths=built.equal_lengths, seed=0
    ):
        found.update(batch)
    return [found[index] for index in range(len(prompts))]


@pytest.mark.parametrize("architecture", toy.CAUSAL)
@pytest.mark.parametrize("pad", ["<pad>", None])
def test_a_padded_batch_generates_as_a_batch_of_one(tmp_path: Path, architecture: str, pad: str | None) -> None:
    built = built_for(tmp_path, architecture, pad=pad)
    prompts = prompts_for(built)
    alone = answers(built, prompts, 1)
    assert [completion.token_ids for completion in alone] == [greedy(built, prompt) for prompt in prompts]
    assert len({completion.token_ids for completion in alone}) > 1
    assert answers(built, prompts, 5) == alone
    assert answers(built, prompts, 2) == alone
    assert answers(built, prompts[::-1], 3) == alone[::-1]


def greedy(built: models.Built, prompt: Prompt) -> tuple[int, ...]:
    """The likeliest next token, again and again, without a cache."""
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < prompt.max_new_tokens:
            logits = built.model(input_ids=torch.tensor([[*prompt.token_ids, *ids]])).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] in built.stop_ids:
                return tuple(ids[:-1])
    return tuple(ids)


@pytest.mark.parametrize("method", PROMPT_METHODS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_prompt_methods_generate_in_batches_of_one_length(tmp_path: Path, method: str, architecture: str) -> None:
    built = built_for(tmp_path, architecture, PROMPT_METHODS[method])
    prompts = [*prompts_for(built), *prompts_for(built)]
    assert built.equal_lengths
    for indices in generation.batches(prompts, 8, equal_lengths=True):
        assert len({len(prompts[index].token_ids) for index in indices}) == 1
    assert answers(built, prompts, 8) == answers(built, prompts, 1)


def test_left_padding_would_change_a_prompt_method(tmp_path: Path) -> None:
    """Why their batches hold one length: the padded batch gives other logits."""
    built = built_for(tmp_path, "llama", PROMPT_METHODS["prompt"])
    built.model.eval()
    ids = torch.tensor([tokenise.prompt_ids("7 + 8 =", built.tokenizer)])
    padded = torch.cat([torch.zeros((1, 6), dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros((1, 6), dtype=torch.long), torch.ones_like(ids)], dim=1)
    with torch.no_grad():
        alone = built.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        shifted = built.model(input_ids=padded, attention_mask=mask).logits[0, -1]
    assert float((alone - shifted).abs().max()) > 1e-3


def test_limits_are_per_row(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    found = answers(built, prompts_for(built, limits=(1, 9, 4, 2, 7)), 5)
    free = answers(built, prompts_for(built, limits=(9, 9, 9, 9, 9)), 5)
    for cut, whole, limit in zip(found, free, (1, 9, 4, 2, 7), strict=True):
        assert whole.token_ids is not None and cut.token_ids == whole.token_ids[:limit]
        assert cut.finish in ("length", "stop")


@pytest.mark.parametrize(
    ("length", "new", "whole", "expected"),
    [(10, 5, None, 5), (10, 5, 12, 2), (10, 5, 100, 5), (10, 5, 10, 0), (20, 5, 10, 0)],
)
def test_the_limit_is_the_smaller_of_both(length: int, new: int, whole: int | None, expected: int) -> None:
    assert generation.limit(length, GenerationSettings(max_new_tokens=new, max_length=whole)) == expected


def test_a_prompt_without_room_is_not_generated(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    found = answers(built, prompts_for(built, limits=(3, 0, 3, 3, 3)), 5)
    assert [completion.finish == "prompt_too_long" for completion in found] == [False, True, False, False, False]
    assert found[1].text == "" and found[1].num_tokens == 0


def test_stop_strings_and_eos_cut_the_answer(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    prompts = prompts_for(built, limits=(9,) * 5)
    free = answers(built, prompts, 5)
    text = next(completion.text for completion in free if len(completion.text) > 4)
    stopped = answers(built, prompts, 5, stop=[text[2], text[1:3]])  # both end there, the second begins first
    assert [completion.text for completion in stopped if completion.text == text[:1]]
    for cut, whole in zip(stopped, free, strict=True):
        ends = [whole.text.find(string) for string in (text[2], text[1:3]) if string in whole.text]
        assert cut.text == whole.text[: min(ends, default=None)]
        assert cut.finish == ("stop" if ends else "length")
    assert free[0].token_ids is not None
    ends_at = replace(built, stop_ids=(free[0].token_ids[2],))
    for cut, whole in zip(answers(ends_at, prompts, 5), free, strict=True):
        assert whole.token_ids is not None
        kept = (*whole.token_ids, *ends_at.stop_ids).index(ends_at.stop_ids[0])
        assert (cut.token_ids, cut.num_tokens) == (whole.token_ids[:kept], kept)
        assert cut.finish == ("stop" if kept < len(whole.token_ids) else "length")


def test_the_models_own_generation_defaults_never_leak(tmp_path: Path) -> None:
    """A model card that asks for sampling or a repetition penalty does not change a greedy score."""
    folder = toy.write_experiment(tmp_path)
    resolved = loading.load(folder)
    clean = answers(models.bare(models.load(resolved.model, "causal")), prompts_for(built_for(tmp_path / "b")), 5)
    config = Path(resolved.model.id) / "generation_config.json"
    config.write_text('{"do_sample": true, "temperature": 9.0, "repetition_penalty": 50.0, "max_new_tokens": 1}')
    leaky = models.bare(models.load(resolved.model, "causal"))
    assert answers(leaky, prompts_for(leaky), 5) == clean


def test_sampling_draws_from_its_own_stream(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    prompts = prompts_for(built)
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())
    one = answers(built, prompts, 5, do_sample=True)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))
    torch.manual_seed(2)
    assert answers(built, prompts, 5, do_sample=True) == one
    with randomness.seeded(3, "dropout"):
        assert answers(built, prompts, 5, do_sample=True) == one
    assert one != answers(built, prompts, 5)


def test_scores_do_not_depend_on_batch_size_or_order(tmp_path: Path) -> None:
    folder = toy.write_experiment(tmp_path)
    found = []
    for size, way in ((1, 1), (5, 1), (12, 1), (5, -1)):
        resolved = loading.load(folder, overrides={"batch.per_device_eval_batch_size": size})
        built = models.bare(models.load(resolved.model, "causal"))
        rows = data.load(resolved).train[:12][::way]
        assert len({len(row.prompt) for row in rows}) > 1
        found.append(toy.drained(evaluation.score(built, rows, resolved)).samples[::way])
        assert [sample["item"] for sample in found[-1]] == [row.item for row in rows[::way]]
    assert found[0] == found[1] == found[2] == found[3]


def test_text_loss_equals_an_independent_computation(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    text = "".join(f"line {number} of the text. " for number in range(40))
    scored = toy.drained(language.text_loss(built, [text[:300], text[300:]], batch_size=2))
    ids = built.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + 256] for start in range(0, len(ids) - 255, 256)]
    totals = []
    with torch.no_grad():
        for window in windows:
            tensor = torch.tensor([window])
            totals.append(float(built.model(input_ids=tensor, labels=tensor).loss))
    assert scored.metrics["loss"].n == len(windows) == 3
    assert scored.metrics["loss"].mean == pytest.approx(sum(totals) / len(totals), rel=1e-5)


def test_choices_are_scored_by_their_own_tokens_only(tmp_path: Path) -> None:
    """Summed log-likelihood of each choice, against log-softmax by hand; no EOS, no prompt token, no padding."""
    built = built_for(tmp_path, "gpt2")  # it has dropout, which must be off
    examples = [
        Example(item="a", prompt="pick:", choices=(" yes", " no", " maybe so"), reference=1),
        Example(item="b", prompt="a longer pick:", choices=(" b", " cc"), reference=0),
        Example(item="c", prompt="again:", choices=(" ccc", " d"), reference=0),
    ]
    resolved = loading.load(toy.write_experiment(tmp_path / "x"))
    predictions, _ = toy.drained(choosing.choose(built, examples, resolved, ()))
    shots = [Example(item="s", prompt="first:", target=" one")]
    assert toy.drained(choosing.choose(built, examples, resolved, shots))[0] != predictions
    for example, prediction in zip(examples, predictions, strict=True):
        assert prediction.index == prediction.scores.index(max(prediction.scores))
        for choice, score in zip(example.choices, prediction.scores, strict=True):
            prompt = list(tokenise.prompt_ids(example.prompt, built.tokenizer))
            whole = prompt + list(built.tokenizer(choice, add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                logits = built.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            expected = sum(float(logits[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))
            assert score == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------- batches and limits of dialect s0


def lengths(*numbers: int) -> list[Prompt]:
    return [Prompt(token_ids=tuple(range(number)), max_new_tokens=1) for number in numbers]


@pytest.mark.parametrize(
    ("order", "equal", "expected"),
    [
        ("length", False, [[3, 1], [0, 4], [2]]),
        ("length", True, [[3], [1], [0, 4], [2]]),
        ("file", False, [[0, 1], [2, 3], [4]]),
        ("file", True, [[1], [0], [3], [2], [4]]),
    ],
)
def test_batches_come_by_length_or_as_in_the_file(order: Any, equal: bool, expected: list[list[int]]) -> None:
    assert generation.batches(lengths(5, 7, 2, 9, 5), 2, equal_lengths=equal, order=order) == expected


@pytest.mark.parametrize(
    ("order", "equal", "expected"),
    [
        # max_length 12, max_new_tokens 6, batches of two: 12 minus the longest prompt of the batch, at most 6
        ("file", False, [5, 5, 3, 3, 4, 0, 4]),  # batches (5, 7), (2, 9), (5, 8); the row of 12 has no room
        ("file", True, [5, 5, 3, 3, 4, 0, 4]),  # what a method needs does not move the limits
        ("length", False, [5, 5, 6, 3, 6, 0, 3]),  # batches (9, 8), (7, 5), (5, 2)
        ("length", True, [6, 5, 6, 3, 6, 0, 4]),  # batches of one length: each row's own
    ],
)
def test_a_batch_shares_the_limit_of_its_longest_prompt(order: Any, equal: bool, expected: list[int]) -> None:
    settings = GenerationSettings(max_new_tokens=6, max_length=12, limits="batch")
    plain = lengths(5, 7, 2, 9, 5, 12, 8)
    prompts = [replace(one, max_new_tokens=generation.limit(len(one.token_ids), settings)) for one in plain]
    batch = BatchSettings(per_device_eval_batch_size=2, eval_order=order)
    found = generation.limited(prompts, settings, batch, equal_lengths=equal)
    assert [one.max_new_tokens for one in found] == expected
    assert [one.token_ids for one in found] == [one.token_ids for one in prompts]
    by_row = generation.limited(prompts, settings.model_copy(update={"limits": "row"}), batch, equal_lengths=equal)
    assert by_row == prompts


# ------------------------------------------------------------------------------------------------------- decoding


def test_no_run_of_tokens_comes_twice_where_it_may_not(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    prompts = prompts_for(built, (12,) * 5)

    def repeated(found: Sequence[Completion]) -> int:
        """Pairs that end in an answer and stand earlier, in the prompt or the answer."""
        count = 0
        for prompt, one in zip(prompts, found, strict=True):
            ids = [*prompt.token_ids, *(one.token_ids or ())]
            pairs = list(itertools.pairwise(ids))
            first = len(prompt.token_ids) - 1
            count += sum(pair in pairs[:place] for place, pair in enumerate(pairs) if place >= first)
        return count

    assert repeated(answers(built, prompts, 5)) > 0
    assert repeated(answers(built, prompts, 5, no_repeat_ngram_size=2)) == 0


def test_beams_are_ranked_under_the_length_penalty(tmp_path: Path) -> None:
    built = built_for(tmp_path)
    built = replace(built, stop_ids=tuple(range(0, len(built.tokenizer), 3)))  # so that beams end early
    prompt = prompts_for(built)[0]
    seen = set()
    for penalty in (-8.0, 1.0, 8.0):
        (found,) = answers(built, [prompt], 1, num_beams=4, length_penalty=penalty)
        ids = torch.tensor([prompt.token_ids])
        stops = list(built.stop_ids) or None
        own = built.model.generate(
            input_ids=ids, max_new_tokens=6, num_beams=4, do_sample=False, length_penalty=penalty,
            eos_token_id=stops, pad_token_id=built.pad_id,
        )  # fmt: skip
        expected = [token for token in own[0, ids.shape[1] :].tolist() if token not in built.stop_ids]
        assert list(found.token_ids or ()) == expected
        seen.add(found.token_ids)
    assert len(seen) > 1
    with pytest.raises(ValueError, match="length_penalty changes nothing"):
        GenerationSettings(length_penalty=0.5)
