"""The command `bt-jax embed`: writes the features of every image of a data set."""
