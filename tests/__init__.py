"""Tests of bt_jax. A package, so that tests and the commands in it import `tests.support` from the repository root."""
