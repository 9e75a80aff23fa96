"""Losses by their public names. Each lives with its method: see the module of that name in `bt_jax.objectives`."""

from bt_jax.objectives.barlow_twins import barlow_twins

__all__ = ["barlow_twins"]
