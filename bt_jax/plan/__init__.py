"""The command `python -m bt_jax.plan`: an estimate of what a training step needs on a TPU slice."""
