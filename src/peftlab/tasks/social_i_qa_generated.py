"""A row of LLM-Adapters about a situation: see `_llm_adapters.situation`."""

from peftlab.tasks._llm_adapters import situation as convert

__all__ = ["convert"]
