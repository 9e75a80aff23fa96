"""The command `python -m bt_jax.embed`: writes the features of every image of a data set."""
