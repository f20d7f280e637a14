"""Markdown for reports, the model card and the pages in docs/: tables, percentages, and the texts in train/pages."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def page(name: str, /, **values: Any) -> str:
    """Return the text pages/`name`.md with its fields in braces replaced by `values`, as str.format does."""
    return (Path(__file__).parent / "pages" / f"{name}.md").read_text("utf-8").format(**values)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table. The first `left` columns are aligned left, the others (numbers) right."""
    alignment = "|" + "---|" * left + "---:|" * (len(header) - left)
    return "\n".join([_line(header), alignment, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def percent(fraction: float) -> str:
    """Format a fraction as a percentage with two decimals."""
    return f"{100 * fraction:.2f} %"
