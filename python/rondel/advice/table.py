"""Tables for people: aligned columns, bars, and times with the unit that suits them."""

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int) -> str:
    """Return a bar of `width` characters of which `share` (0 to 1) is filled."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit: "1.25 ms"."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def rate(per_second: float) -> str:
    """Return a rate as a number that a person can compare."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def render(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> list[str]:
    """Return the lines of a table; the columns in `right` (from 0) are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(placed).rstrip()

    return [line(heads), line(["─" * width for width in widths]), *map(line, rows)]
