"""Words as numbers: the captions of rows in the form that a model takes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae._arguments import as_count, as_names
from pyrovae._near import near_names
from pyrovae.errors import DataError, OptionError

_LETTER = r"[^\W_]"  # a letter or a digit of any script
_JOINERS = "\u200c\u200d"  # signs without a width, in words of Persian and Hindi
_ALIKE = str.maketrans({"\u2019": "'", "\u2010": "-", "\u2011": "-"})  # apostrophes and hyphens as they are typeset
MOST_LISTED = 80  # words of a vocabulary that a message lists


def words_of(caption: str) -> list[str]:
    """The words of a text in lower case, without what stands between them; a hyphen or an apostrophe may be inside of one.

    A word is the same whether the marks of its letters, such as accents, are characters of their own or not.

    Example:
        >>> from pyrovae.data.vocabulary import words_of
        >>> words_of("A thin Seven, leaning right.")
        ['a', 'thin', 'seven', 'leaning', 'right']
    """
    text = unicodedata.normalize("NFC", caption.casefold()).translate(_ALIKE)
    marks = (
        "" if text.isascii() else "".join(c for c in set(text) if unicodedata.category(c)[0] == "M" or c in _JOINERS)
    )
    letters = f"(?:{_LETTER}[{marks}]*)+" if marks else f"{_LETTER}+"
    return re.findall(f"{letters}(?:[-']{letters})*", text)


@dataclass(frozen=True)
class Vocabulary:
    """The words that captions consist of, numbered from 1; 0 fills a caption up to the length of the longest.

    Args:
        words: The V words, in lower case, each once.
        length: T, the most words that a caption can have.

    Raises:
        OptionError: There is no word, one occurs twice or is not a word, or `length` is not positive.

    Example:
        >>> from pyrovae.data import Vocabulary
        >>> words = Vocabulary.of(["a thin seven", "a bold one, leaning right"])
        >>> words.words
        ('a', 'bold', 'leaning', 'one', 'right', 'seven', 'thin')
        >>> words.encode(["bold seven", "A thin one."])
        tensor([[2, 6, 0, 0, 0],
                [1, 7, 4, 0, 0]])
        >>> words.decode(words.encode("thin, leaning right"))
        ['thin leaning right']
        >>> words.encode("a thim seven")
        Traceback (most recent call last):
        pyrovae.errors.DataError: 'thim' (did you mean thin?) is not known in 'a thim seven'. The 7 known words: a, ...
    """

    words: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", as_names("words", self.words) or ())
        wrong = next((word for word in self.words if not isinstance(word, str) or words_of(word) != [word]), None)
        if not self.words or wrong is not None or len(set(self.words)) < len(self.words):
            what = "none" if not self.words else "one twice" if wrong is None else repr(wrong)
            raise OptionError(f"A vocabulary needs different words in lower case, got {what}.")
        object.__setattr__(
            self, "length", as_count("length, the number of words for which a caption has room,", self.length)
        )

    @classmethod
    def of(cls, captions: Iterable[str | None], length: int | None = None) -> Vocabulary:
        """The words of these captions, in alphabetical order.

        Args:
            captions: Texts, of which None, NaN and "" have no words.
            length: The most words that a caption can have; None for those of the longest here.
        """
        found = [words_of(text) for text in _texts([captions] if isinstance(captions, str) else captions)]
        longest = max(map(len, found), default=0)
        return cls(tuple(sorted({word for words in found for word in words})), longest if length is None else length)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, captions: str | Sequence[str | None] | None, num: int | None = None) -> Tensor:
        """The numbers of the words of captions, `(N, T)` int64, in their order.

        Args:
            captions: N texts, of which None, NaN and "" have no words; or a single one, also None.
            num: For a single text, N, the rows that it is repeated for; 1 by default.

        Raises:
            DataError: A word is not in the vocabulary, a caption has more than T words, or is no text.
        """
        captions = "" if captions is None else captions
        if num is not None and (not isinstance(captions, str) or not isinstance(num, int) or num < 1):
            raise OptionError(f"num is how often a single caption is repeated, at least once, got {num!r}.")
        texts = [captions] * (num or 1) if isinstance(captions, str) else _texts(captions)
        numbers = {word: number for number, word in enumerate(self.words, 1)}
        known: dict[str, list[int]] = {}
        rows = []
        for text in texts:
            if text not in known:
                known[text] = self._numbers(text, numbers)
            rows.append(known[text])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def _numbers(self, text: str, numbers: Mapping[str, int]) -> list[int]:
        """The numbers of a caption's words, filled up with 0."""
        words = words_of(text)
        if unknown := list(dict.fromkeys(word for word in words if word not in numbers)):
            told = ", ".join(f"{word!r}{near_names(word, self.words)}" for word in unknown)
            listed = ", ".join(self.words[:MOST_LISTED]) + (", ..." if len(self) > MOST_LISTED else "")
            verb = "is" if len(unknown) == 1 else "are"
            raise DataError(f"{told} {verb} not known in {text!r}. The {len(self)} known words: {listed}.")
        if len(words) > self.length:
            raise DataError(
                f"A caption has at most {self.length} words here, got {len(words)}: {text!r}. Leave some out."
            )
        return [numbers[word] for word in words] + [0] * (self.length - len(words))

    def decode(self, tokens: Tensor) -> list[str]:
        """The words of rows of numbers, `(N, T)`, with blanks between them; DataError where there are no such numbers."""
        tokens = torch.as_tensor(tokens)
        whole = not tokens.is_floating_point() and not tokens.is_complex()
        if tokens.dim() != 2 or not whole or bool(((tokens < 0) | (tokens > len(self))).any()):
            raise DataError(
                f"Captions are decoded from rows of whole numbers, (N, T), from 0 to {len(self)}, got {str(tokens.dtype)[6:]} "
                f"{tuple(tokens.shape)}" + (f" from {tokens.min()} to {tokens.max()}." if tokens.numel() else ".")
            )
        return [" ".join(self.words[number - 1] for number in row if number > 0) for row in tokens.tolist()]

    def to_json(self) -> dict[str, Any]:
        """The vocabulary in JSON's types, such as for `pv.fit(..., info=...)`, which a run keeps."""
        return {"words": list(self.words), "length": self.length}

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that `to_json` returned."""
        return cls(tuple(recorded["words"]), recorded["length"])


def _texts(captions: Iterable[Any]) -> list[str]:
    """Captions as texts, "" for those that are missing. DataError for one that is no text."""
    if not isinstance(captions, Iterable):
        raise DataError(f"Captions must be texts, got {captions!r}.")
    found = []
    for row, text in enumerate(captions):
        if text is None or type(text).__name__ == "NAType" or (isinstance(text, float) and math.isnan(text)):
            text = ""
        if not isinstance(text, str):
            raise DataError(f"A caption must be a text, got {text!r} ({type(text).__name__}) in row {row}.")
        found.append(text)
    return found
