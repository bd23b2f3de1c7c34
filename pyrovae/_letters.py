"""Letters that the font of a figure lacks, such as Chinese ones: other fonts of the system, or one warning, in place of boxes.

Matplotlib's own font, DejaVu Sans, has the letters of Europe and some more.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager, get_font
from matplotlib.text import Text

MISSING = re.compile(r"Glyph (\d+) .*missing from")  # as matplotlib warns, a letter at a time
_told: set[str] = set()  # letters of which the user knows


def draw(figure: Figure, write: Callable[[], None]) -> None:
    """Call `write`, which draws the figure; once more, with other fonts, if its font lacks letters that they have."""
    lacking = _lacking(write)
    fonts = list(dict.fromkeys(font for font in map(font_with, sorted(lacking)) if font is not None))
    if fonts:
        with _with_fonts(figure, fonts, lacking):
            lacking = _lacking(write)
    new = {letter for letter in lacking if _is_seen(letter)} - _told
    if new:
        _told.update(new)
        letters = " ".join(sorted(new)[:10]) + (" ..." if len(new) > 10 else "")
        suitable = list(dict.fromkeys(filter(None, map(_noto, sorted(new)))))
        named = " and ".join([", ".join(suitable[:-1]), suitable[-1]] if len(suitable) > 1 else suitable)
        warnings.warn(
            f"No font of this system has {letters}: pictures show boxes in their place. Install a font that has them"
            f"{f', such as {named}' if named else ', such as one of the Noto fonts'}.",
            stacklevel=2,
        )


CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")
# scripts as Unicode names begin with them, whose fonts are called like them
SCRIPTS = [
    "ARABIC",
    "ARMENIAN",
    "BENGALI",
    "DEVANAGARI",
    "ETHIOPIC",
    "GEORGIAN",
    "GUJARATI",
    "GURMUKHI",
    "HEBREW",
    "KANNADA",
    "KHMER",
    "LAO",
    "MALAYALAM",
    "MONGOLIAN",
    "MYANMAR",
    "SINHALA",
    "SYRIAC",
    "TAMIL",
    "TELUGU",
    "THAANA",
    "THAI",
    "TIBETAN",
]


def _noto(letter: str) -> str | None:
    """A free font that has a letter; None where its name does not tell."""
    script = re.split("[ -]", unicodedata.name(letter, ""))[0]
    if script in CJK:
        return "Noto Sans CJK"
    if script in SCRIPTS:
        return f"Noto {'Serif' if script == 'TIBETAN' else 'Sans'} {script.title()}"
    if unicodedata.category(letter) == "So" and letter >= "\U0001f000":
        return "Noto Emoji"  # in black and white: matplotlib draws no letters in colours
    return None


@functools.lru_cache(2000)
def font_with(letter: str) -> str | None:
    """The family of a font that has a letter, sans-serif and upright if there is such a one; None without any."""
    for font in _fonts():
        try:
            if get_font(font.fname).get_char_index(ord(letter)):
                return font.name
        except (OSError, RuntimeError):  # removed, or damaged
            continue
    return None


@functools.lru_cache(1)
def _fonts() -> list[FontEntry]:
    """The fonts of the system, but those that have a box for each letter, the plain ones first."""
    found = [font for font in fontManager.ttflist if "lastresort" not in font.name.lower().replace(" ", "")]
    return sorted(found, key=lambda font: ("sans" not in font.name.lower(), font.style != "normal", font.name))


def _lacking(write: Callable[[], None]) -> set[str]:
    """The letters that were drawn as boxes. Other warnings are passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write()
    found = set()
    for warning in caught:
        if told := MISSING.match(str(warning.message)):
            found.add(chr(int(told[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return found


@contextmanager
def _with_fonts(figure: Figure, fonts: list[str], letters: set[str]) -> Iterator[None]:
    """Texts that have some of the letters may take them from other fonts, too. The figure is left as it was."""
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and letters & set(text.get_text())]
    before = [text.get_fontfamily() for text in texts]
    try:
        for text, families in zip(texts, before):
            text.set_fontfamily([*families, *fonts])
        yield
    finally:
        for text, families in zip(texts, before):
            text.set_fontfamily(families)


def _is_seen(letter: str) -> bool:
    """Whether a letter has a form of its own, unlike joiners and the choice between forms of an emoji."""
    return unicodedata.category(letter) not in ("Cf", "Cc") and not "\ufe00" <= letter <= "\ufe0f"
