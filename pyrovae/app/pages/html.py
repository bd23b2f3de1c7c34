"""What all pages are made of: one HTML file that holds its style and its pictures, and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

from pyrovae.app.results import Shown
from pyrovae.plots.style import png_of

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .25rem .6rem; vertical-align: top; }
tr { border-bottom: 1px solid #eee; } article { margin: 1.2rem 0; overflow: hidden; } article h3 { margin: 0; font-size: 1rem; }
article p { margin: .2rem 0; } img { max-width: 100%; display: block; margin: .4rem 0; }
.mark { display: inline-block; min-width: 4.2rem; text-align: center; border-radius: .3rem; color: #fff; font-size: .8rem; }
.ok { background: #009e73; } .look { background: #b37400; } .bad { background: #c0392b; } .none { background: #888; }
.good, footer, figcaption { color: #666; font-size: .9rem; } .advice { border-left: 3px solid #b37400; padding-left: .6rem; }
figure { margin: 1rem 0; } pre { overflow-x: auto; background: #f6f6f6; padding: .6rem; font-size: .85rem; }
@media (max-width: 36rem) {
  .large { max-width: none; width: 36rem; }
  .summary td { display: inline-block; } .summary td:last-child { display: block; }
}
nav a { margin-right: .8rem; } .number { text-align: right; font-variant-numeric: tabular-nums; } caption { text-align: left; }
"""


def document(title: str, body: str) -> str:
    """A whole page, readable on a telephone, too."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def picture(axes: Any, text: str) -> str:
    """The figure of some axes as a picture within the page. `text` says what it shows where it cannot be seen."""
    return picture_of(png_of(axes, 110), text)


LARGE = 720  # pixels, from which on a picture keeps its size on a telephone, and is moved under the finger


def picture_of(png: bytes, text: str) -> str:
    """A PNG as a picture within the page."""
    shown = f'alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    width = int.from_bytes(png[16:20], "big")  # where every PNG has it
    return f'<div class="wide"><img class="large" {shown}</div>' if width > LARGE else f"<img {shown}"


def figure(image: str, caption: str) -> str:
    """A picture with a sentence on how to read it."""
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def table(shown: Shown) -> str:
    """A table of text, whose first column is words and whose others are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *[' class="number"'] * (len(cells) - 1)]
        return "<tr>" + "".join(f"<{tag}{k}>{html.escape(cell)}</{tag}>" for k, cell in zip(kinds, cells)) + "</tr>"

    body = "".join(line(cells, "td") for cells in shown.lines)
    return (
        f'<div class="wide"><table><caption>{html.escape(shown.title)}</caption><thead>{line(shown.columns, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
