"""Chat templates in the manner of well-known models, one for each habit, and a tokenizer of one token a character."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, processors

import toy

MARKERS = ("<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<s>", "</s>")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (  # the same, with what transformers needs to find the assistant's words
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRIPS = (  # Llama 2: words stripped, the system's put into the first user's turn, alternation demanded
    "{% if messages[0]['role'] == 'system' %}{% set told = '<<' + messages[0]['content'] + '>>' %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (told if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DROPS = (  # says nothing of a system's turn
    "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CLOSES = (  # Phi 3: one token more behind the last turn
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
REWRITES = (  # Qwen 3: thoughts stand before the last answer, and are taken out of earlier ones
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTS = "{{ messages | length }} turns:" + CHATML  # what stands first depends on what comes last
ENDLESS = (  # no token ends a turn
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHOUTS = CHATML.replace("message['content']", "message['content'] | upper")
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML


def characters(template: str | None = None, *, adds_bos: bool = False) -> Any:
    """A token for each character, and one for each of `MARKERS`; `adds_bos` writes <s> before every text."""
    tokenizer = toy.tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
        )
    tokenizer.chat_template = template
    return tokenizer
