"""Tensors in, tensors out: weight files, the transformer core, and how a linear layer runs on this machine."""
