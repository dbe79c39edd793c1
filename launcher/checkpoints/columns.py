"""Tables as text."""

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]], names: Sequence[int] = (0,)) -> list[str]:
    """Rows of cells under each other: the columns `names` to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column in names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
