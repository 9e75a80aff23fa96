"""The functions that a config file builds on.

A config file is a program: `get_config(arg)` starts from the keys of a task, such as `pretrain()`, sets what its recipe
sets, and returns them. `parse_arg` reads `arg`, the part of --config after the colon; `shrink` makes the `:smoke` form.
"""

from bt_jax.config.arguments import choose, parse_arg
from bt_jax.config.keys import evaluate, finetune, pretrain, shrink, shrink_finetune

__all__ = ["choose", "evaluate", "finetune", "parse_arg", "pretrain", "shrink", "shrink_finetune"]
