"""Line wrapping for the Markdown pages that the benchmarks write."""

import textwrap


def wrap(text: str) -> str:
    """Wrap the prose of a Markdown page at 120 columns. Tables, headings and pictures keep their lines."""
    return "\n".join(
        line
        if line.startswith(("|", "!", "#"))
        else textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
