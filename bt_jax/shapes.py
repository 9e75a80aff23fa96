"""Words for shapes and dtypes in annotations, as in `Float[Array, "n d"]`: jaxtyping's, where it is installed.

They are checked in the tests alone (see tests/conftest.py). Without jaxtyping each word means its array type and no
more, so that the modules that use them import nothing for it.
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
