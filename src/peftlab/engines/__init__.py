"""Plug-ins: one file each; see `peftlab.protocols`."""
