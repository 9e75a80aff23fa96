"""The command `python -m bt_jax.embed`: features of every image of a data set."""
