"""Captions of images of handwriting: what is written, and how, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae._arguments import as_number, as_seed, as_several
from pyrovae.data.strokes import MEASURES, as_ink
from pyrovae.data.vocabulary import Vocabulary, words_of
from pyrovae.errors import DataError, OptionError
from pyrovae.pair.arrays import as_tensor

CLASS = "class"
CAPTIONS = "captions"  # what `load(conditions=...)` and `--condition` call them
IMAGE, DIGIT, ARTICLES = "image", "digit", {"a", "an"}  # what captions say beside what they tell
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Phrases = tuple[tuple[str, ...], ...]  # for each level of an attribute what it is called; the plainest name first
WORDS: dict[str, Phrases] = {
    "width": (("thin", "slender", "fine"), ("medium", "regular"), ("bold", "thick", "heavy")),
    "slant": (
        ("leaning left", "tilted left", "tilted"),
        ("upright", "straight"),
        ("leaning right", "tilted right", "tilted"),
    ),
    "size": (("small", "little"), ("middle-sized", "mid-sized"), ("large", "big")),
}
AT_ONCE = 8192  # images that are measured together


@dataclass(frozen=True)
class Captions:
    """Captions such as "a thin seven, leaning right", of the classes of images and of measures of their strokes.

    A caption tells the class, the width of the strokes (`stroke_width`), the slant (`slant`) and the size (`extent`), each with
    the same probability and independently of all else: a caption that leaves something out is one of fewer words, whose images
    are those of all captions that it could have been. What it tells comes in random order, by one of several names: "tilted"
    leaves open to which side. Captions follow from their seed.

    Each measure has three levels, below, between and above two limits. `Captions.of` takes them from images: the middle half of
    them by width and by size, and by slant the half that leans least to either side, are at the middle level.

    Args:
        phrases: For each of "class", "width", "slant" and "size" the names of its levels, each one or more; without "class",
            captions tell none.
        limits: The two limits of each measure. Up to the first is the lowest level, from the second on the highest.
        noun: What an image is called whose class is not told.
        told: The probability with which each attribute is told.
        seed: Of what is told, names and order.

    Raises:
        OptionError: `told` is no probability, or `seed` is not a whole number of at least 0.

    Example:
        >>> from pyrovae.data import Captions, load
        >>> digits = load("digits")
        >>> images = digits.x.reshape(-1, 8, 8)
        >>> captions = Captions.of(images, digits.classes)
        >>> captions.describe(images[:3], digits.y[:3])
        ['straight mid-sized zero', 'thick small upright one', 'heavy upright large 2']
        >>> captions.say({"class": 7, "width": 2, "slant": 2})
        'a bold seven, leaning right'
        >>> captions.read("bold tilted 7")
        {'class': (7,), 'width': (2,), 'slant': (0, 2)}
    """

    phrases: Mapping[str, Phrases]
    limits: Mapping[str, tuple[float, float]]
    noun: str = IMAGE
    told: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        as_seed(self.seed, least=0)
        as_number("told, the probability with which an attribute is told,", self.told, least=0, most=1)

    @classmethod
    def of(
        cls, images: Tensor, classes: Sequence[str | int] | None = None, *, told: float = 0.9, seed: int = 0
    ) -> Captions:
        """Captions with limits between the levels that these images give.

        Args:
            images: `(N, H, W)` or `(N, 1, H, W)`, ink on a ground of 0.
            classes: The names of the classes 0, 1, ...; of digits, 0 to 9, their English words are known.
            told, seed: See the class.

        Raises:
            DataError: There is no image; a class has no name made of words, the name of another, or a word that captions have
                without it, such as "a"; or pixels are negative or not finite.
            ShapeError: These are no gray images.
        """
        images = as_tensor("images", images)
        if not len(images):
            raise DataError("Captions need images to find out what is thin and what is bold, got none.")
        return cls.of_measures(measure(images), classes, told, seed)

    @classmethod
    def of_measures(
        cls, measured: Mapping[str, Tensor], classes: Sequence[str | int] | None, told: float = 0.9, seed: int = 0
    ) -> Captions:
        """The same of images that have been measured."""
        limits = {}
        for name, values in measured.items():
            if name == "slant":
                half = float(np.median(values.abs().numpy()))
                limits[name] = (-half, half)
            else:
                low, high = np.quantile(values.numpy(), (0.25, 0.75))
                limits[name] = (float(low), float(high))
        named = () if classes is None else _class_names(as_several("classes", classes, "names of classes"))
        digits = bool(named) and all(len(names) == 2 for names in named)
        phrases = {CLASS: named, **WORDS} if named else dict(WORDS)
        return cls(phrases, limits, noun=DIGIT if digits else IMAGE, told=told, seed=seed)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All words that a caption can have, and room for twice as many as it needs, since people write more than that."""
        names = [name for levels in self.phrases.values() for phrases in levels for name in phrases]
        words = {word for text in (*names, self.noun, *ARTICLES) for word in words_of(text)}
        longest = [max(len(words_of(name)) for names in levels for name in names) for levels in self.phrases.values()]
        return Vocabulary(tuple(sorted(words)), 2 * (1 + sum(longest) + (CLASS not in self.phrases)))

    def levels(self, images: Tensor) -> dict[str, Tensor]:
        """The level of each measure of images, drawn or real: 0, 1 or 2, `(N,)` int64."""
        return self._levels(measure(images))

    def _levels(self, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        limits = {name: self.limits[name] for name in measured}
        return {
            name: 1 + (measured[name] >= high).long() - (measured[name] <= low).long()
            for name, (low, high) in limits.items()
        }

    def describe(self, images: Tensor, y: Tensor | None = None, *, stream: int = 0) -> list[str]:
        """The captions of images.

        Args:
            images: `(N, H, W)` or `(N, 1, H, W)`.
            y: Their class numbers, `(N,)`, -1 where unknown; None if all are.
            stream: Rows of another number have other random choices.
        """
        return self.describe_measures(measure(images), y, stream)

    def describe_measures(self, measured: Mapping[str, Tensor], y: Tensor | None, stream: int = 0) -> list[str]:
        """The captions of images that have been measured."""
        levels = self._levels(measured)
        return self.write(levels if y is None or CLASS not in self.phrases else {CLASS: y, **levels}, stream=stream)

    def write(self, levels: Mapping[str, Tensor], *, stream: int = 0) -> list[str]:
        """Captions of levels by attribute, `(N,)` each, -1 where unknown. What is told of them, and how, is random.

        Raises:
            DataError: There is no such attribute or level, or attributes have different numbers of rows.
        """
        numbers = {name: torch.as_tensor(level).double().nan_to_num(-1.0) for name, level in levels.items()}
        rows = {name: level.flatten().tolist() for name, level in numbers.items()}
        num = len(next(iter(rows.values()), []))
        for name, level in rows.items():
            last = len(self.phrases.get(name, ())) - 1
            known = {-1, *range(last + 1)}
            if numbers[name].dim() != 1 or len(level) != num or last < 0 or not known.issuperset(level):
                raise DataError(
                    f"Captions tell {', '.join(self.phrases)} of as many rows each, by levels from 0, or -1 where unknown; of "
                    f"{name!r} they were given {tuple(numbers[name].shape)} in place of {(num,)}, from "
                    f"{min(level, default=0):g} to {max(level, default=0):g}, and know {last + 1} levels."
                )
        names = sorted(self.phrases)  # JSON may be sorted, too
        random = np.random.default_rng((self.seed, stream)).random((num, 3 * len(self.phrases) + 2))
        found = []
        for row, draws in enumerate(random.tolist()):
            told: list[tuple[float, str, str]] = []
            for place, name in enumerate(names):
                whether, which, order = draws[3 * place : 3 * place + 3]
                if name in rows and rows[name][row] >= 0 and whether < self.told:
                    texts = self.phrases[name][int(rows[name][row])]
                    told.append((order, name, texts[int(which * len(texts))]))
            told.sort()
            found.append(self._sentence([(name, text) for _, name, text in told], draws[-2] < 0.5, draws[-1] < 0.5))
        return found

    def say(self, levels: Mapping[str, int]) -> str:
        """The plainest caption that tells these levels, and nothing else.

        Raises:
            OptionError: There is no such attribute or level.
        """
        for name, level in levels.items():
            if name not in self.phrases or level not in range(len(self.phrases[name])):
                known = ", ".join(f"{one} (0 to {len(names) - 1})" for one, names in self.phrases.items())
                raise OptionError(f"There is no level {level!r} of {name!r} to tell; known: {known}.")
        order = [name for name in ("size", "width", "slant", CLASS) if name in levels]
        return self._sentence([(name, self.phrases[name][levels[name]][0]) for name in order], True, True)

    def read(self, caption: str) -> dict[str, tuple[int, ...]]:
        """What a caption tells: the levels of each attribute that agree with it; attributes that it leaves out are missing.

        Of two names that are in the caption, "tilted" and "tilted left", the longer one counts.

        Raises:
            DataError: A word is not in the vocabulary.
        """
        self.vocabulary.encode(caption)
        words = set(words_of(caption))
        found = {}
        for attribute, levels in self.phrases.items():
            agree = {
                level: max((len(words_of(name)) for name in names if words.issuperset(words_of(name))), default=0)
                for level, names in enumerate(levels)
            }
            if longest := max(agree.values(), default=0):
                found[attribute] = tuple(level for level, length in agree.items() if length == longest)
        return found

    def _sentence(self, told: Sequence[tuple[str, str]], article: bool, noun: bool) -> str:
        """What is told as words before a noun, which is the class, and, of more words than one, after it."""
        classes = [text for name, text in told if name == CLASS]
        before = [text for name, text in told if name != CLASS and " " not in text]
        after = [text for name, text in told if name != CLASS and " " in text]
        before += classes or ([self.noun] if noun else [])
        if article and (classes or noun) and before:
            before.insert(0, "an" if before[0][0] in "aeiou8" else "a")
        return ", ".join(part for part in (" ".join(before), *after) if part)

    def to_json(self) -> dict[str, Any]:
        """The captions in JSON's types, as a run keeps them."""
        return {
            "phrases": {name: [list(names) for names in levels] for name, levels in self.phrases.items()},
            "limits": {name: list(limits) for name, limits in self.limits.items()},
            **{"noun": self.noun, "told": self.told, "seed": self.seed},
        }

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Captions:
        """The captions that `to_json` returned."""
        phrases = {name: tuple(map(tuple, levels)) for name, levels in recorded["phrases"].items()}
        limits = {name: (float(low), float(high)) for name, (low, high) in recorded["limits"].items()}
        return cls(phrases, limits, recorded["noun"], recorded["told"], recorded["seed"])


def measure(images: Tensor) -> dict[str, Tensor]:
    """All measures of images by name, `(N,)` float64 each, on the CPU."""
    parts = [part.cpu() for part in as_ink(images).split(AT_ONCE)]
    return {name: torch.cat([of(part) for part in parts]) for name, of in MEASURES.items()}


def _class_names(classes: Sequence[str | int]) -> Phrases:
    """What classes are called, in words."""
    taken = {name for levels in WORDS.values() for names in levels for text in names for name in words_of(text)} | {
        IMAGE,
        DIGIT,
    }
    found: list[tuple[str, ...]] = []
    for name in classes:
        words = words_of(str(name))
        text = " ".join(words)
        is_digit = text.isascii() and text.isdecimal() and int(text) < len(DIGITS) and len(text) == 1
        names = (DIGITS[int(text)], text) if is_digit else (text,)
        if not words:
            why = "no words"
        elif set(words) <= taken or not ARTICLES.isdisjoint(words):
            why = "those of captions themselves"
        elif any(not {*names}.isdisjoint(others) for others in found):
            why = "those of another class"
        else:
            found.append(names)
            continue
        raise DataError(
            f"Captions tell the class by its words, and {name!r} has {why}. Rename it, such as 'a' to 'letter-a', or leave "
            "labels out."
        )
    return tuple(found)
