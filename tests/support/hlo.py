"""The arrays of a compiled program, read from its text."""

import math
import re


def buffer_elements(text: str) -> list[int]:
    """The number of elements of every array in the compiled program, per device."""
    shapes = re.findall(r"\b(?:f64|f32|bf16|f16|s32|u32|u8|pred)\[([\d,]*)\]", text)
    return [math.prod(int(size) for size in shape.split(",")) if shape else 1 for shape in shapes]
