"""A row of LLM-Adapters to be ended: see `_llm_adapters.ending`."""

from peftlab.tasks._llm_adapters import ending as convert

__all__ = ["convert"]
