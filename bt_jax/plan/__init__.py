"""The command `bt-jax plan`: estimates memory and time of a training step on a TPU slice."""
