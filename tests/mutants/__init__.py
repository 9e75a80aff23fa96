"""Proves that the tests can fail: plants small faults in bt_jax and runs the tests that must fail on them."""
