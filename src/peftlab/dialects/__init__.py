"""Plug-ins: foreign formats, one file each; see `peftlab.foreign.Dialect`."""
