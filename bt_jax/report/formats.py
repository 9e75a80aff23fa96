"""Formats numbers for the page; an unknown value is a dash."""

import math

from bt_jax.messages import counted


def number(value) -> float | None:
    """The value as a float if it is a finite number; None otherwise."""
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def plural(count: int, noun: str) -> str:
    return counted(count, noun, ",")


def signed(value: float) -> str:
    """A number with two decimals and a true minus sign, none before 0.00; a dash if it is not finite."""
    return f"{value:z.2f}".replace("-", "−") if math.isfinite(value) else "–"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def short(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
