"""Plug-ins: foreign formats, one file each; see `peftlab.protocols.Dialect`."""
