"""Markdown for reports, the model card and the pages in docs/: tables and percentages."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table. The first `left` columns are aligned left, the others (numbers) right.

    Raises ValueError if a row has more or fewer cells than `header`.
    """
    rows = list(rows)
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"expected {len(header)} cells in a table's row, found {len(row)}: {row}")
    alignment = "|" + "---|" * left + "---:|" * (len(header) - left)
    return "\n".join([_line(header), alignment, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def percent(fraction: float) -> str:
    """Format a fraction as a percentage with two decimals."""
    return f"{100 * fraction:.2f} %"
