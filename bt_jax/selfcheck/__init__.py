"""The self-check: whether this machine computes correctly."""
