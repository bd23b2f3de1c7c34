"""Letters that matplotlib's font lacks."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from pyrovae import _letters as letters
from pyrovae.plots.style import png_of
from pyrovae.training.tracking.tracker import png_of as tracked

KNOWN, UNKNOWN = "\U000f0123", "\U000f0124"  # for private use, and in no font but the one that is made here


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A font with one letter, a full square, beside those of the system."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (1000, 800), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "square"])
    made.setupCharacterMap({ord(KNOWN): "square"})
    made.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    made.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    made.setupHorizontalHeader(ascent=800, descent=-200)
    made.setupNameTable({"familyName": "Square Sans", "styleName": "Regular"})
    made.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    made.setupPost()
    made.save(tmp_path / "square.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "square.ttf")
    monkeypatch.setattr(letters, "_told", set())
    for cached in (letters.font_with, letters._fonts):
        cached.cache_clear()
    yield
    for cached in (letters.font_with, letters._fonts):
        cached.cache_clear()


def titled(text: str) -> Axes:
    axes = Figure(figsize=(2, 1)).subplots()
    axes.set_title(text)
    axes.set_xticks([0, 1], ["a", text])
    return axes


def test_letters_are_taken_from_a_font_that_has_them(fonts: None) -> None:
    axes = titled(f"a {KNOWN}")
    families = [text.get_fontfamily() for text in (axes.title, *axes.get_xticklabels())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = png_of(axes, 50)
    assert letters.font_with(KNOWN) == "Square Sans" and letters.font_with(UNKNOWN) is None
    with pytest.warns(UserWarning, match="boxes"):
        assert found != png_of(titled(f"a {UNKNOWN}"), 50)
    assert [text.get_fontfamily() for text in (axes.title, *axes.get_xticklabels())] == families


def test_trackers_take_letters_from_other_fonts_as_well(fonts: None) -> None:
    plain = titled(f"a {KNOWN}").figure
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tracked(titled(f"a {KNOWN}"))
        assert tracked(plain) == found and found[:4] == b"\x89PNG"  # axes and figures
    with pytest.warns(UserWarning, match="boxes"):
        assert tracked(titled(f"a {UNKNOWN}")) != found


def test_letters_that_no_font_has_are_told_once(fonts: None) -> None:
    with pytest.warns(UserWarning) as caught:
        png_of(titled(f"{KNOWN} {UNKNOWN} \ufe0f\u200d"), 50)
    assert [str(one.message) for one in caught] == [
        f"No font of this system has {UNKNOWN}: pictures show boxes in their place. Install a font that has them, such as one "
        "of the Noto fonts."
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_of(titled(f"{UNKNOWN} {KNOWN}"), 50)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("中の한", "such as Noto Sans CJK."),
        ("ب", "such as Noto Sans Arabic."),
        ("😀🚀", "such as Noto Emoji."),
        ("क中", "such as Noto Sans Devanagari and Noto Sans CJK."),
        ("க😀ไ", "such as Noto Sans Tamil, Noto Sans Thai and Noto Emoji."),
        ("𓀀", "such as one of the Noto fonts."),  # a hieroglyph
    ],
)
def test_the_fonts_that_are_named_have_the_letters(monkeypatch: pytest.MonkeyPatch, text: str, named: str) -> None:
    monkeypatch.setattr(letters, "_told", set())
    monkeypatch.setattr(letters, "_lacking", lambda write: set(text))
    monkeypatch.setattr(letters, "font_with", lambda letter: None)
    with pytest.warns(UserWarning, match="boxes") as caught:
        letters.draw(Figure(), lambda: None)
    assert str(caught[0].message).endswith(named)


def test_other_warnings_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = titled("a")
    hot = lambda *_, **__: warnings.warn("the disk is hot", RuntimeWarning, stacklevel=1)  # noqa: E731
    monkeypatch.setattr(axes.figure, "savefig", hot)
    with pytest.warns(RuntimeWarning, match="the disk is hot"):
        png_of(axes, 50)


def test_a_picture_of_plain_letters_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    axes = titled("plain, ä, é, Ж")
    monkeypatch.setattr(axes.figure, "savefig", lambda *_, **__: drawn.append(1))
    png_of(axes, 50)
    assert np.sum(drawn) == 1
