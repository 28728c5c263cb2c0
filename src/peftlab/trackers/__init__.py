"""Plug-ins: where runs report to, one file each; see `peftlab.protocols.Tracker`."""
