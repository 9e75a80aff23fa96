"""The self-check: whether this machine computes rightly."""
