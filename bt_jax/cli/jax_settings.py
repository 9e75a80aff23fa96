"""What the environment says to JAX, as far as the commands take it.

JAX reads its variables when it is imported, here first: a value that it refuses is then one line of a command, and the
traceback that it always was in a program that imports bt_jax.
"""

import os
import sys

from bt_jax.messages import line, put

try:
    import jax
except Exception as error:
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is None or program.name.partition(".")[0] != "bt_jax":
        raise
    put(f"bt_jax: JAX cannot be imported: {line(error)}. Unset the variable, or install JAX again.", sys.stderr)
    raise SystemExit(2) from None

# A run is a function of its config: these would change its numbers, or break it.
FIXED = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_transfer_guard": "allow",
    "jax_debug_key_reuse": False,
    "jax_default_device": None,
}
UNSET = (None, "allow")  # two names of one thing, of the guards


def settle(*, keep: str = "") -> None:
    """Sets what a run needs, whatever the environment says, and names each variable that it ignores.

    Args:
      keep: a name of FIXED that stays as it is.
    """
    for name, value in FIXED.items():
        found = getattr(jax.config, name, value)
        if name != keep and found != value and not (found in UNSET and value in UNSET):
            jax.config.update(name, value)
            variable = name.upper()
            said = f"{variable}={os.environ[variable]}" if variable in os.environ else f"{name}={found}"
            put(f"bt_jax: {said} is ignored: bt_jax sets {name} to {value}", sys.stderr)
