"""Recipes: config files that come with the package, found by their name, such as --config=quickstart.

A config file of one's own can import one and change it: `from bt_jax.configs import quickstart`.
"""
