"""Proves that the tests can fail: plants small faults in bt_jax, one at a time, and runs the tests that must fail."""
