"""Context-aware prompt tuning: a context whose token types peft would turn into a loss of nan is refused.

Blau et al. 2024 (https://arxiv.org/abs/2410.17222). The types of a context's tokens count up in fours: template of the
question, question, template of the answer, answer (1 2 3 4, then 5 6 7 8 for the next example). peft numbers the row's
own tokens on from the largest of them, so that must be an answer's; else no label is left and the mean loss is 0 / 0.
"""

from __future__ import annotations

from typing import Any

from peftlab.errors import UserError
from peftlab.protocols import Method

_ANSWER = 4
_MOST_PROJECTIONS = 20


def wrap(base: Any, config: Any, make: Any = None) -> Any:
    """peft's own, once the token types are looked at.

    Raises:
        UserError: The last type is no answer's, or nothing of the context can be trained.
    """

    types = list(config.cpt_tokens_type_mask)
    if max(types) % _ANSWER != 0:
        raise UserError(
            f"cpt_tokens_type_mask: the largest type is {max(types)}, which is no answer's (a multiple of {_ANSWER}): "
            "the loss would be nan",
            fix="give each token its type: 1 template, 2 question, 3 template, 4 answer; 5 to 8 in the next example",
        )
    if all(one % _ANSWER == 0 for one in types):
        raise UserError(
            "cpt_tokens_type_mask: every token is an answer's, and those are never changed: nothing would be trained",
            fix="give the tokens of templates and questions their types: 1, 2 and 3",
        )
    return make(config)


def after_step(model: Any, step: int) -> None:
    """Project the changed context as peft's forward does, until projecting it again changes no bit.

    peft projects in every forward pass, evaluation included, and rounds each time: what is saved would not be what was
    scored, and a resumed run would part from one in one go.
    """
    for encoder in model.prompt_encoder.values():
        for _ in range(_MOST_PROJECTIONS):
            projected = encoder.get_projection()
            if bool((projected == encoder.delta_embedding.weight).all()):
                break
            encoder.delta_embedding.weight.data = projected


PLUGIN = Method(wrap=wrap, after_step=after_step)
