"""A row of LLM-Adapters with three to five answers: see `_llm_adapters.choices`."""

from peftlab.tasks._llm_adapters import choices as convert

__all__ = ["convert"]
