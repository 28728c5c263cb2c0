"""A row of LLM-Adapters with two solutions: see `_llm_adapters.choices`."""

from peftlab.tasks._llm_adapters import choices as convert

__all__ = ["convert"]
