"""JAX's settings from the environment, and those that the commands override.

JAX reads its environment variables on import. The commands import this module before any other that imports JAX, so
that they report an invalid value in one line. A program that imports bt_jax gets the traceback.
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
    put(
        f"bt_jax: JAX cannot be imported: {line(error)}. Unset a variable that this names, or install JAX again.",
        sys.stderr,
    )
    raise SystemExit(2) from None

# A run is a function of its config. Other values of these settings would change its numbers or break it.
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
UNSET = (None, "allow")  # two equivalent values of the guards


def settle(*, keep: str = "") -> None:
    """Overrides the environment with FIXED, and names each variable that is ignored.

    Args:
      keep: a name of FIXED to leave unchanged.
    """
    for name, value in FIXED.items():
        current = getattr(jax.config, name, value)
        if name != keep and current != value and not (current in UNSET and value in UNSET):
            jax.config.update(name, value)
            variable = name.upper()
            setting = f"{variable}={os.environ[variable]}" if variable in os.environ else f"{name}={current}"
            put(f"bt_jax: {setting} is ignored: bt_jax sets {name} to {value}", sys.stderr)
