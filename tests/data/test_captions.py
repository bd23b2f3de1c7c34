"""Captions: strokes are as wide, slanted and large as they were drawn, and what is written can be read and encoded."""

import json
import math
import unicodedata
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyrovae.data import Captions, Dataset, Vocabulary, captioned, extent, load, load_again, slant, stroke_width
from pyrovae.data.captions import WORDS
from pyrovae.data.vocabulary import words_of
from pyrovae.errors import DataError, OptionError, ShapeError


def line(width: float, lean: float = 0.0, size: int = 48, length: int = 40, scale: float = 1.0) -> Tensor:
    """An upright line of some width, sheared by `lean` degrees, with the share of ink in each pixel, (1, size, size)."""
    fine = 8
    place = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / fine - size / 2
    up = -place[:, None]
    across = place[None] - math.tan(math.radians(lean)) * up
    drawn = ((across.abs() < width / 2) & (up.abs() < length / 2)).double()
    return scale * F.avg_pool2d(drawn[None], fine)


# --- measures


@pytest.mark.parametrize("width", [3.0, 4.0, 5.5])
def test_the_width_of_a_line(width: float) -> None:
    """2 A / P = w l / (w + l / cos 10) of a line that leans by 10 degrees, of which 0.2 pixels are not solid at each side.

    The outline of pixels is up to 8 % longer than the line.
    """
    expected = width * 40 / (width + 40 / math.cos(math.radians(10)))
    assert 0.92 * (expected - 0.4) < stroke_width(line(width, 10.0)).item() < expected
    coarse = F.avg_pool2d(line(width, 10.0), 3)  # an image of 16 x 16 pixels, which is interpolated
    assert 3 * stroke_width(coarse).item() == pytest.approx(expected - 0.8, rel=0.3)


def test_the_width_does_not_depend_on_the_unit_and_grows_with_the_pixels() -> None:
    one = line(4.0)
    assert torch.equal(stroke_width(255 * one), stroke_width(one))
    twice = F.interpolate(one[None], scale_factor=2, mode="nearest")[0]
    assert abs(stroke_width(twice) / stroke_width(one) - 2).item() < 0.1


@pytest.mark.parametrize("lean", [-30.0, 0.0, 17.0])
def test_the_slant_is_that_of_the_shear(lean: float) -> None:
    assert abs(slant(line(4.0, lean)).item() - lean) < 0.2
    assert abs(slant(line(4.0, lean, scale=16.0)).item() - lean) < 0.2
    assert torch.allclose(slant(line(4.0, lean).flip(2)), -slant(line(4.0, lean)))  # in a mirror it leans the other way


def test_the_extent_is_the_root_of_the_share_of_the_bounding_box() -> None:
    image = torch.zeros(1, 10, 20)
    image[0, 2:7, 4:8] = 3.0
    image[0, 0, 0] = 1.0  # not half as dark as the darkest
    assert extent(image).item() == pytest.approx(math.sqrt(0.5 * 0.2))
    assert torch.equal(extent(image[:, None]), extent(image))


def test_images_without_ink_or_of_one_pixel_measure_nothing_that_is_not_finite() -> None:
    dot = torch.zeros(1, 8, 8)
    dot[0, 3, 3] = 1e-30
    row = torch.zeros(1, 8, 8)
    row[0, 3] = 1.0
    for image in (torch.zeros(1, 8, 8), dot, row, torch.ones(1, 1, 1)):
        for measure in (stroke_width, slant, extent):
            assert bool(measure(image).isfinite().all())
    for measure in (stroke_width, slant, extent):
        assert measure(torch.zeros(2, 8, 8)).tolist() == [0.0, 0.0]
        assert measure(torch.zeros(0, 8, 8)).shape == (0,)


@pytest.mark.parametrize("measure", [stroke_width, slant, extent])
def test_what_is_no_gray_image_is_refused(measure: object) -> None:
    assert callable(measure)
    for shape in ((8, 8), (2, 3, 8, 8), (2, 64)):
        with pytest.raises(ShapeError, match="gray images"):
            measure(torch.zeros(shape))
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="ground of 0"):
            measure(torch.full((1, 2, 2), value))


# --- words and numbers


def test_words_are_those_of_any_script_in_lower_case() -> None:
    assert words_of("A mid-sized Seven; it's  T-shirt/top_7 - Größe 七!") == [
        *("a", "mid-sized", "seven", "it's", "t-shirt", "top", "7", "grösse", "七")
    ]


def test_marks_belong_to_their_letters_however_they_are_written() -> None:
    text = "Größe, café: हिन्दी ไทยที่ İstanbul می‌خواهم"
    words = [*("grösse", "café", "हिन्दी", "ไทยที่"), words_of("İstanbul")[0], "می‌خواهم"]
    for form in ("NFC", "NFD"):
        assert words_of(unicodedata.normalize(form, text)) == words
    assert all(words_of(word) == [word] for word in words)  # as a vocabulary asks for
    assert words_of("it’s, t‑shirt; \u0301\u200d") == ["it's", "t-shirt"]


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 4]], [[-1, 0]], [[1.0, 2.0]]])
def test_what_is_no_caption_is_not_decoded(tokens: list[object]) -> None:
    with pytest.raises(DataError, match=r"rows of whole numbers, \(N, T\), from 0 to 3"):
        Vocabulary(("a", "b", "c"), 2).decode(torch.tensor(tokens))


def test_encoding_and_decoding() -> None:
    words = Vocabulary.of(["b a", "c", ""], length=3)
    assert words.words == ("a", "b", "c") and len(words) == 3
    tokens = words.encode(["C b, a", None, float("nan"), "", "a a"])  # type: ignore[list-item]
    assert tokens.tolist() == [[3, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert words.decode(tokens) == ["c b a", "", "", "", "a a"]
    assert words.encode([]).shape == (0, 3) and words.encode("b", 2).tolist() == [[2, 0, 0]] * 2
    assert words.encode(None).tolist() == [[0, 0, 0]] and words.encode(None, 2).shape == (2, 3)
    assert Vocabulary(["a", "b"], 2) == Vocabulary(("a", "b"), 2)  # type: ignore[arg-type]
    assert Vocabulary.of("b a") == Vocabulary.of(["b", None, "a b"]) == Vocabulary(("a", "b"), 2)
    assert Vocabulary.from_json(json.loads(json.dumps(words.to_json()))) == words


def test_unknown_words_are_told_with_those_that_are_near() -> None:
    words = Vocabulary.of(["thin bold seven"])
    with pytest.raises(
        DataError, match=r"'sevn' \(did you mean seven\?\) is not known .* known words: bold, seven, thin"
    ):
        words.encode(["thin", "bold sevn"])
    with pytest.raises(DataError, match=r"'x', 'y' are not known"):
        words.encode("x thin y x")
    with pytest.raises(DataError, match="at most 3 words"):
        words.encode("thin thin thin thin")
    with pytest.raises(DataError, match="must be a text, got 7"):
        words.encode(["thin", 7])  # type: ignore[list-item]
    with pytest.raises(DataError, match="must be texts, got 7"):
        words.encode(7)  # type: ignore[arg-type]
    for num in (0, "2"):
        with pytest.raises(OptionError, match="at least once"):
            words.encode("thin", num)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "length"), [((), 1), (("a", "a"), 1), (("A",), 1), (("a b",), 1), (("",), 1), (("a",), 0), ((1,), 1)]
)
def test_impossible_vocabularies_are_refused(words: tuple[str, ...], length: int) -> None:
    with pytest.raises(OptionError):
        Vocabulary(words, length)


# --- captions

SMALL = torch.stack([line(w, a, 16, n)[0] for w in (2.0, 3.0, 5.0) for a in (-20.0, 0.0, 20.0) for n in (6, 9, 13)])


def made(**more: float) -> Captions:
    return Captions.of(SMALL, range(10), **more)  # type: ignore[arg-type]


def test_levels_are_below_between_and_above_the_limits() -> None:
    captions = made()
    levels = captions.levels(SMALL)
    for name, measure in (("width", stroke_width), ("slant", slant), ("size", extent)):
        low, high = captions.limits[name]
        values = measure(SMALL)
        expected = torch.where(values <= low, 0, torch.where(values >= high, 2, 1))
        assert torch.equal(levels[name], expected) and set(expected.tolist()) == {0, 1, 2}
    drawn = levels["slant"].reshape(3, 3, 3)  # by width, slant and size
    assert drawn[:, 0].eq(0).all() and drawn[:, 1].eq(1).all() and drawn[:, 2].eq(2).all()
    same = torch.stack([SMALL[0]] * 3)
    assert {name: level.tolist() for name, level in Captions.of(same).levels(same).items() if name != "slant"} == {
        "width": [1, 1, 1],
        "size": [1, 1, 1],
    }


def test_what_is_written_can_be_read_and_has_nothing_else() -> None:
    captions, y = made(told=0.6), torch.arange(27) % 10
    levels = {"class": y, **captions.levels(SMALL)}
    for row, caption in enumerate(captions.describe(SMALL, y)):
        read = captions.read(caption)
        assert all(int(levels[name][row]) in agree for name, agree in read.items())
        known = {
            word for name in read for text in captions.phrases[name][int(levels[name][row])] for word in words_of(text)
        }
        assert set(words_of(caption)) <= known | {"a", "an", "digit"}


def test_each_attribute_is_told_with_the_same_probability_and_each_name_is_used() -> None:
    """Shares of 1,000 captions, to within 5 standard errors: a false alarm in some 400,000 runs."""
    captions = made(told=0.7)
    levels = {name: torch.full((1000,), 2) for name in captions.phrases}
    written = captions.write(levels)
    for name, phrases in captions.phrases.items():
        told = sum(name in captions.read(caption) for caption in written) / 1000
        assert abs(told - 0.7) < 5 * (0.21 / 1000) ** 0.5
        for text in phrases[2]:
            assert any(set(words_of(text)) <= set(words_of(caption)) for caption in written)
    assert len({tuple(words_of(caption)) for caption in written}) > 100  # in several orders


def test_captions_follow_from_the_seed_and_the_place_of_the_row() -> None:
    one = made()
    assert one.describe(SMALL) == made().describe(SMALL)
    assert one.describe(SMALL)[:5] == one.describe(SMALL[:5])
    assert one.describe(SMALL) != replace(one, seed=1).describe(SMALL) != one.describe(SMALL, stream=1)


def test_nothing_told_and_all_told() -> None:
    assert set(made(told=0.0).describe(SMALL, torch.zeros(27, dtype=torch.int64))) <= {"", "digit", "a digit"}
    unknown = made(told=1.0).describe(SMALL, torch.full((27,), -1))
    assert all("class" not in made().read(caption) for caption in unknown)
    captions = Captions.of(SMALL, told=1.0)
    assert "class" not in captions.phrases and captions.noun == "image"
    assert all(set(captions.read(caption)) == {"width", "slant", "size"} for caption in captions.describe(SMALL))
    for told in (-0.1, 1.1, math.nan, "1"):
        with pytest.raises(OptionError, match="from 0 to 1"):
            made(told=told)  # type: ignore[arg-type]
    for seed in (-1, 0.5):
        with pytest.raises(OptionError, match="seed must be"):
            made(seed=seed)


@pytest.mark.parametrize(
    "levels",
    [
        *({"class": torch.tensor([10])}, {"width": torch.tensor([-2])}, {"size": [0, 1], "width": [0]}, {"hue": [0]}),
        *({"width": [0.5]}, {"width": [math.inf]}, {"width": torch.zeros(1, 1)}),
    ],
)
def test_levels_that_are_none_are_refused(levels: dict[str, Tensor]) -> None:
    with pytest.raises(DataError, match="Captions tell class, width, slant, size"):
        made().write(levels)


def test_saying_and_reading() -> None:
    captions = made()
    assert captions.say({"class": 8, "slant": 2}) == "an eight, leaning right"
    assert captions.say({"width": 0}) == "a thin digit"
    assert captions.read("tilted left") == {"slant": (0,)} and captions.read("tilted") == {"slant": (0, 2)}
    assert captions.read("") == {} and captions.read("a digit") == {}
    for name, phrases in captions.phrases.items():
        for level in range(len(phrases)):
            assert captions.read(captions.say({name: level})) == {name: (level,)}
    with pytest.raises(OptionError, match=r"known: class \(0 to 9\)"):
        captions.say({"colour": 1})
    with pytest.raises(DataError, match="did you mean bold"):
        captions.read("bolt seven")


def test_every_caption_is_in_the_vocabulary_and_json_keeps_all() -> None:
    captions = made()
    again = Captions.from_json(json.loads(json.dumps(captions.to_json(), sort_keys=True)))
    assert again == captions and again.vocabulary == captions.vocabulary
    assert again.describe(SMALL, torch.arange(27) % 10) == captions.describe(SMALL, torch.arange(27) % 10)
    words = captions.vocabulary
    longest = [max(names, key=lambda text: len(words_of(text))) for levels in WORDS.values() for names in levels[:1]]
    assert words.encode(" ".join(["a", "seven", *longest])).count_nonzero() == 6
    assert words.encode(captions.describe(SMALL, torch.zeros(27, dtype=torch.int64))).shape == (27, words.length)


@pytest.mark.parametrize(
    "classes",
    [
        ("b", "?"),
        ("B", "b"),
        ("bold", "b"),
        ("T-shirt", "t-shirt"),
        ("seven", "7"),
        ("7", "seven"),
        ("a", "b"),
        ("digit",),
    ],
)
def test_classes_whose_names_captions_cannot_tell_apart_are_refused(classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="tell the class by its words"):
        Captions.of(SMALL, classes)


def test_classes_of_other_names_keep_them() -> None:
    captions = Captions.of(SMALL, ("T-shirt/top", 10, "7"))
    assert captions.phrases["class"] == (("t-shirt top",), ("10",), ("seven", "7"))
    assert captions.noun == "image"
    assert captions.read(captions.say({"class": 0, "width": 2})) == {"class": (0,), "width": (2,)}


# --- data sets


def test_the_same_captions_come_back_with_the_data() -> None:
    digits = load("digits", conditions=" captions ")  # as between the commas of a list
    assert digits.captions is not None and digits.c is not None and digits.c_test is None
    assert digits.c.dtype == torch.int64 and digits.c.shape == (1797, digits.captions.vocabulary.length)
    again = load_again(json.loads(json.dumps(digits.source)))
    assert again.captions == digits.captions and again.c is not None and torch.equal(again.c, digits.c)


def test_test_images_have_captions_by_the_limits_of_the_others() -> None:
    data = Dataset(
        name="lines", x=SMALL.flatten(1).float(), kind="unit", source={}, x_test=SMALL[::2].flatten(1).float(),
        y=torch.arange(27) % 3, y_test=torch.zeros(14, dtype=torch.int64), image_shape=(1, 16, 16),
    )  # fmt: skip
    found = captioned(data)
    assert (
        found.captions is not None
        and found.c_test is not None
        and found.c_test.shape == (14, found.captions.vocabulary.length)
    )
    assert len(found.captions.phrases["class"]) == 3 and torch.equal(found.x, data.x)
    for caption, level in zip(
        found.captions.vocabulary.decode(found.c_test), found.captions.levels(SMALL[::2])["width"].tolist()
    ):
        assert level in found.captions.read(caption).get("width", (0, 1, 2))


def test_rows_that_are_no_gray_images_are_refused() -> None:
    for shape in (None, (3, 16, 16)):
        with pytest.raises(DataError, match="Captions describe gray images"):
            captioned(Dataset(name="x", x=torch.zeros(2, 768), kind="unit", source={}, image_shape=shape))
    with pytest.raises(OptionError, match="--condition captions"):
        load("digits", conditions=("captions", "age"))
