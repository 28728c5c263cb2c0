"""MonteCLoRA: nothing beyond peft, but without gradient checkpointing, which would draw its random samples again."""

from peftlab.protocols import Method

PLUGIN = Method(
    no_checkpointing="it draws random samples in the forward pass, and takes others when activations are made again"
)
