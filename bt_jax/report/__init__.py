"""The command `python -m bt_jax.report`, and the report that every run writes at its end."""
