"""MonteCLoRA: nothing beyond peft, but without gradient checkpointing, which would draw its random samples again."""

from peftlab.methods.lora import check_rows, verify
from peftlab.protocols import Method

PLUGIN = Method(
    check_rows=check_rows,
    verify=verify,
    no_checkpointing="it draws random samples in the forward pass, and takes others when activations are made again",
)
