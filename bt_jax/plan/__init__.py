"""The command `python -m bt_jax.plan`: estimates memory and time of a training step on a TPU slice."""
