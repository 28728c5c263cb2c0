"""A row of LLM-Adapters with a blank: see `_llm_adapters.blank`."""

from peftlab.tasks._llm_adapters import blank as convert

__all__ = ["convert"]
