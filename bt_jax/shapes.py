"""Types for annotations of shapes and dtypes, such as `Float[Array, "n d"]`: those of jaxtyping, if it is installed.

Only the tests check them (tests/conftest.py). Without jaxtyping, `Float[Array, "n d"]` is `Array`, so that the package
does not depend on jaxtyping.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int32, Key, Real, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Int32, Key, Real, UInt8
    except ImportError:

        class _Unchecked:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = Int32 = Key = Real = UInt8 = _Unchecked

__all__ = ["Array", "Bool", "Float", "Int", "Int32", "Key", "Number", "Real", "UInt8", "Whole"]

Array = jax.Array | np.ndarray
Number = float | Real[Array, ""]  # a scalar, which may be traced
Whole = int | Int[Array, ""]
