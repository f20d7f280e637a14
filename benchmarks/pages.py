"""Write figures into the pages of docs/. A page's text is written by hand; its figures stand between two comments."""

import io
import re
import textwrap
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from train.files import to_json, write_together
from train.paths import ROOT

DOCS = ROOT / "docs"


def fill(page: str, figures: dict[str, str]) -> str:
    """Return `page` with each of the `figures` in place of the text between `<!-- NAME -->` and `<!-- /NAME -->`.

    Prose is wrapped at 120 columns; tables keep their lines. Raises ValueError if a place is missing or not unique.
    """
    for name, text in figures.items():
        lines = (
            line if line.startswith("|") else textwrap.fill(line, 120, break_on_hyphens=False)
            for line in text.splitlines()
        )
        found = "".join(f"{line}\n" for line in lines)
        page, count = re.subn(rf"(?s)(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", found.replace("\\", r"\\"), page)
        if count != 1:
            raise ValueError(f"expected one place for the figures {name!r}, found {count}")
    return page


def write(folder: Path, page: str, name: str, values: Any, figures: dict[str, str], **pictures: bytes) -> None:
    """Print `figures`. Write to `folder`: `page` of docs/ with them, `values` as `name`.json, `pictures` as PNGs."""
    print(*figures.values(), sep="\n\n")
    text = fill((DOCS / page).read_text(), figures)
    files = {f"{picture}.png": content for picture, content in pictures.items()}
    write_together(folder, {**files, page: text.encode(), f"{name}.json": to_json(values)})


def summary(values: list[float]) -> dict[str, float]:
    """Return the mean and the standard deviation of `values`; the deviation of a single value is 0."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def plus_minus(value: dict[str, float], digits: int) -> str:
    """Format the mean and the standard deviation in `value`, a result of summary, with `digits` decimals."""
    return f"{value['mean']:,.{digits}f} ± {value['sd']:,.{digits}f}"


def contact_sheet(rows: dict[str, list[Image.Image]]) -> bytes:
    """Return a PNG with one row per title: the title, then its pictures, each scaled to fit into a square."""
    side, gap, text, font = 84, 10, 300, ImageFont.load_default(size=17)
    columns = max(len(pictures) for pictures in rows.values())
    sheet = Image.new("RGB", (text + columns * (side + gap), len(rows) * (side + gap) + gap), (226, 228, 230))
    draw = ImageDraw.Draw(sheet)
    for top, (title, pictures) in zip(range(gap, sheet.height, side + gap), rows.items(), strict=False):
        title = title.replace("×", "x")  # the font has no ×
        draw.text((gap, top + side // 2), title, fill=(40, 40, 40), font=font, anchor="lm")
        for left, picture in zip(range(text, sheet.width, side + gap), pictures, strict=False):
            shown = ImageOps.contain(picture.convert("RGBA"), (side, side), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left + (side - shown.width) // 2, top), shown)
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()
