"""The command `python -m bt_jax.plan`: what a training step needs on a TPU slice."""
