"""Numbers as people read them: durations, sizes, counts and scores with their units. Text only; computes nothing."""

from __future__ import annotations

import math

UNKNOWN = "-"


def duration(seconds: float | None) -> str:
    """A time span in the two largest units that matter.

    Example:
        >>> duration(0.0421), duration(59), duration(3725), duration(200_000)
        ('42 ms', '59 s', '1 h 02 min', '2 d 07 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def size(num_bytes: float | None) -> str:
    """A number of bytes.

    Example:
        >>> size(512), size(1_500_000), size(3 * 2**30)
        ('512 B', '1.43 MiB', '3.00 GiB')
    """
    if num_bytes is None:
        return UNKNOWN
    amount, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} B" if units[0] == "B" else f"{_three_digits(amount)} {units[0]}"


def count(number: float | None) -> str:
    """A count, short.

    Example:
        >>> count(950), count(9_175_040), count(3_212_749_824)
        ('950', '9.18 M', '3.21 B')
    """
    if number is None:
        return UNKNOWN
    for limit, scale, unit in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= limit:
            return f"{_three_digits(number / scale)} {unit}"
    return f"{number:.0f}"


def number(value: float | None) -> str:
    """A measured number in four significant digits, small ones without an exponent where that is readable.

    Example:
        >>> number(0.47842), number(12.3456), number(0.0002), number(float("nan"))
        ('0.4784', '12.35', '0.0002', 'nan')
    """
    return UNKNOWN if value is None else f"{value:.4g}"


def score(mean: float | None, standard_error: float | None) -> str:
    """A mean with its standard error, to the digits that mean something.

    Example:
        >>> score(0.4784, 0.0137), score(1.25, None)
        ('0.478 +- 0.014', '1.25')
    """
    if mean is None:
        return UNKNOWN
    if standard_error is None or not math.isfinite(standard_error):
        return number(mean)
    digits = _digits(standard_error)
    return f"{mean:.{digits}f} +- {standard_error:.{digits}f}"


def bounds(low: float | None, high: float | None) -> str:
    """An interval.

    Example:
        >>> bounds(0.4512, 0.5056), bounds(None, None)
        ('0.4512 to 0.5056', '-')
    """
    return UNKNOWN if low is None or high is None else f"{number(low)} to {number(high)}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent.

    Example:
        >>> share(9_175_040, 3_212_749_824)
        '0.286 %'
    """
    return f"{100 * part / whole:.3g} %" if whole else UNKNOWN


def _digits(standard_error: float) -> int:
    return 3 if standard_error <= 0 else min(6, max(1, 1 - math.floor(math.log10(standard_error))))


def _three_digits(amount: float) -> str:
    return f"{amount:.{0 if amount >= 100 else 1 if amount >= 10 else 2}f}"
