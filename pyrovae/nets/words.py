"""Captions as vectors: what a network sees of a sentence's words."""

import torch
from torch import Tensor, nn

from pyrovae._arguments import as_number
from pyrovae.errors import ShapeError
from pyrovae.nets.mlp import as_length


class Words(nn.Module):
    """`c -> sum_t v[c_t]`: the sum of the vectors of a caption's words, whatever their order (a bag of words).

    A caption is a row of word numbers, 1 to V, filled up with 0, as `pyrovae.data.Vocabulary` encodes it. A 0 adds nothing, so
    that a caption which says less is a caption of fewer words, and one without words is a vector of zeros. Input
    `(*batch, T)` of integers, output `(*batch, width)`. Numbers that are no word add nothing either; `pv.fit` and all functions
    that take rows refuse them.

    Args:
        num_words: V, the number of words, `len(vocabulary)`.
        width: The size of a word's vector.
        dropout: The probability with which each word is left out during training, so that captions which say less are seen as
            well, and none is so long that it names its row.

    Raises:
        ShapeError: A size is not a positive int; or, in the forward method, the input is not made of integers.
        OptionError: `dropout` is not from 0 to below 1.

    References:
        Joulin et al. 2017, arXiv:1607.01759, where the mean is taken in place of the sum; Iyyer et al. 2015,
        doi:10.3115/v1/P15-1162, for leaving out words.

    Example:
        >>> from pyrovae.data import Vocabulary
        >>> words = Vocabulary.of(["a thin seven", "a bold one"])
        >>> net = pv.nets.Words(len(words), 3)
        >>> one, other, none = net(words.encode(["bold seven", "seven bold", ""]))
        >>> torch.equal(one, other), none.tolist()
        (True, [0.0, 0.0, 0.0])
    """

    values, cure = (
        "word",
        "Encode captions by the vocabulary that the model was built for.",
    )  # in messages about `outside`

    def __init__(self, num_words: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = float(as_number("dropout", dropout, least=0, below=1))
        self.num_words, self.width = as_length("num_words", num_words), as_length("width", width)
        self.out_shape = torch.Size([self.width])
        self.vectors = nn.Embedding(self.num_words, self.width)
        self.keep = nn.Dropout(self.dropout)

    def forward(self, c: Tensor) -> Tensor:
        if c.dim() == 0 or c.is_floating_point() or c.dtype == torch.bool:
            raise ShapeError(
                f"Words needs integers of shape (*batch, T), the numbers of words, got {str(c.dtype)[6:]} {tuple(c.shape)}. "
                "Make them of captions by pyrovae.data.Vocabulary.encode."
            )
        number = c.long() - 1
        inside = (number >= 0) & (number < self.num_words)
        # padding has no vector of its own, which a prior on weights or a decay would move away from zero
        found: Tensor = self.vectors(number.clamp(0, self.num_words - 1))
        kept = inside.to(found.dtype)
        if self.dropout:  # without the scale of torch's dropout, which would let the words that are left say more
            kept = kept * self.keep(torch.ones_like(kept)).bool()
        return (found * kept.unsqueeze(-1)).sum(-2)

    def extra_repr(self) -> str:
        return f"{self.num_words}, {self.width}" + (f", dropout={self.dropout:g}" if self.dropout else "")

    def outside(self, c: Tensor) -> Tensor:
        """Which numbers are no word and no padding. Looked at where data are checked, and not in every call."""
        return (c < 0) | (c > self.num_words)
