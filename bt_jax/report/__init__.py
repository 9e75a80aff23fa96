"""The command `bt-jax report`, and the report that every run writes at its end."""
