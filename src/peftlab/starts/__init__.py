"""Plug-ins: how the weights of an adapter begin, one file each; see `peftlab.protocols`."""
