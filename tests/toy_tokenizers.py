"""Tiny tokenizers made in code, one for each habit that tokenizers of real models have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    *"abcdefg0123456789:.,?+-=#",
    *("the", "cat", "dog", "sat", "on", "mat", "is", "what", "plus", "minus", "one", "two", "three", "four", "five"),
    *("yes", "no", "Question", "Answer"),
]
CORPUS = [
    "Question: what is two plus three? Answer: five",
    "the cat sat on the mat, the dog sat on the cat.",
    "Question: 12 + 30 = Answer: 42 #### 42",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}Answer :{% endif %}"
)


def word_level(**habits: Any) -> PreTrainedTokenizerFast:
    """Words and single punctuation marks; an unknown word is <unk>. Habits as in `finish`."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return finish(tokenizer, **habits)


def byte_pairs(**habits: Any) -> PreTrainedTokenizerFast:
    """Byte pairs in the manner of GPT-2, trained on `CORPUS`: any text comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return finish(tokenizer, **habits)


def finish(
    tokenizer: Tokenizer,
    *,
    eos: bool = True,
    pad: str | None = "<pad>",
    adds_bos: bool = False,
    adds_eos: bool = False,
    pairs: bool = False,
    left: bool = False,
    added: Sequence[str] = (),
    chat: bool = False,
) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer for transformers.

    Args:
        tokenizer: Of the tokenizers library, with <s>, </s> and <pad> in its vocabulary.
        eos: Whether it has an end-of-sequence token.
        pad: Its padding token; None for none; "</s>" for the end-of-sequence token.
        adds_bos: It starts every text with <s>.
        adds_eos: It ends every text with </s>.
        pairs: It writes <s> first </s> second </s> and numbers the segments.
        left: It pads and cuts on the left.
        added: Further special tokens.
        chat: It has a chat template.
    """
    start, end = ("<s> " if adds_bos or pairs else ""), (" </s>" if adds_eos or pairs else "")
    if start or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start}$A{end}",
            pair=f"{start}$A{end} $B:1{' </s>:1' if end else ''}",
            special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))],
        )
    if added:
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    side = "left" if left else "right"
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if pairs else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        pad_token=pad,
        unk_token="<unk>",
        padding_side=side,
        truncation_side=side,
        model_input_names=names,
        chat_template=CHAT_TEMPLATE if chat else None,
    )
