"""Counts the collectives of a compiled program and their bytes, from the text of the program."""

import math
import re
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_INSTRUCTION = re.compile(rf"= (?P<shape>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\((?P<operands>.*?)\)")
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")


def count(text: str, devices: int) -> dict[str, dict[str, Any]]:
    """Counts the collectives of an optimised HLO module, per device.

    Args:
      text: of the module.
      devices: number of devices: the size of a group that the text does not state.

    Returns:
      {"all-reduce": {"count", "bytes", "link_bytes"}, …}. "bytes" is the size of the whole array: the result of an
      all-gather, the operand of a reduce-scatter. "link_bytes" is the number of bytes that a device sends in the
      bandwidth-optimal algorithm: (p - 1) / p of the array in a group of p devices. An all-reduce sends that twice, as
      it is a reduce-scatter and an all-gather.
    """
    totals: dict[str, dict[str, Any]] = {}
    chains = set()
    for line in text.splitlines():
        match = _INSTRUCTION.search(line)
        if not match:
            continue
        # An asynchronous collective of a TPU appears in every fusion that runs beside it, with the number of its chain.
        chain = _CHAIN.search(line)
        if chain and (match["kind"], chain[1]) in chains:
            continue
        if chain:
            chains.add((match["kind"], chain[1]))
        kind, p = match["kind"], _group_size(line, devices)
        arrays = [_nbytes(*array) for array in _ARRAY.findall(match["shape"])]
        if match["start"] and kind == "collective-permute":
            arrays = arrays[:1]  # (operand, result, context)
        elif match["start"] and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # (operands, results)
        size = sum(arrays)
        if kind == "reduce-scatter":
            size *= p
        sent = size if kind == "collective-permute" else size * (p - 1) / p * (2 if kind == "all-reduce" else 1)
        total = totals.setdefault(kind, {"count": 0, "bytes": 0, "link_bytes": 0.0})
        total["count"] += 1
        total["bytes"] += size
        total["link_bytes"] += sent
    return totals


def _nbytes(dtype: str, shape: str) -> int:
    return _BYTES[dtype] * math.prod(int(size) for size in shape.split(",") if size)


def _group_size(line: str, devices: int) -> int:
    match = _GROUP.search(line)
    if not match:
        return devices
    return len(match[1].split(",")) if match[1] else int(match[3])
