"""Base models, adapters on them, and their weights on disk: all that talks to transformers' and peft's loaders."""
