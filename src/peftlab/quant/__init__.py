"""Quantizers: how the frozen weights of a base get fewer bits than `model.dtype`. One file each."""
