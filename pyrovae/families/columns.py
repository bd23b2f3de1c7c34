"""A family for tables whose columns are of different kinds."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyrovae._arguments import as_several, told
from pyrovae._html import Shown
from pyrovae.distributions.columns import ProductOfColumns
from pyrovae.errors import OptionError, ShapeError
from pyrovae.families.base import Elementwise, Family, as_family
from pyrovae.families.counts import Counts, fits, per_row


class Columns(Family):
    """`p(x) = prod_b p_b(x_b; params_b)`: a family for each column, or block of columns, of a table.

    Parameters `(*batch, n)`, n the total number of parameters of the families. Rows `(*batch, D)`, D the number of columns;
    classes are coded as 0, 1, 2, ... The mean of a categorical or ordinal column is the number of its most probable class.
    A call takes the `library` of columns of counts, `(*batch)`, see `pyrovae.families.counts`.

    Args:
        families: Families of independent elements in the order of the columns: `Normal(())` for one column, `Normal(5)` for
            five.

    Raises:
        ShapeError: `params` or `library` has another shape than a call needs.
        OptionError: A family has dependent elements or an event of more than one dim, or a call is given `library` without
            any column of counts.

    References:
        Nazabal et al. 2020, arXiv:1807.03653.

    Example:
        >>> family = fam.Columns([fam.Normal(2), fam.Categorical((), num_classes=3), fam.Poisson(())])
        >>> family.event_shape, family.param_shape  # 2 x 2 + 3 + 1 parameters
        (torch.Size([4]), torch.Size([8]))
        >>> family(torch.zeros(5, 8)).sample().shape
        torch.Size([5, 4])
    """

    def __init__(self, families: Sequence[Family]) -> None:
        families = as_several("families", families, "families of independent elements, such as Normal(())")
        wrong = [f for f in families if not isinstance(f, Elementwise) or len(f.event_shape) > 1]
        if wrong or not families:
            raise OptionError(
                "Columns needs a list of families of independent elements, such as Normal(()) for one column or Bernoulli(5) "
                f"for five, got {told(wrong[0]) if wrong else 'none'}."
            )
        super().__init__(sum(f.event_shape.numel() for f in families))
        self.families = tuple(families)
        self.parts = nn.ModuleList(families)  # registers their parameters

    @property
    def param_shape(self) -> torch.Size:
        return torch.Size([sum(f.param_shape.numel() for f in self.families)])

    def forward(self, params: Tensor, library: Tensor | None = None) -> TorchDistributionMixin:  # type: ignore[override]
        self.check(params)
        if library is not None and not any(isinstance(f, Counts) for f in self.families):
            raise OptionError(
                f"{self} has no column of unbounded counts, such as Poisson(()), that could use library. Leave it out."
            )
        if library is not None:
            batch = params.shape[:-1]
            library = library if fits(library.shape, batch) else per_row(self, library, batch)[..., 0]
        blocks: list[Any] = []
        sizes = [f.param_shape.numel() for f in self.families]
        for family, raw in zip(self.families, params.split(sizes, -1) if len(sizes) > 1 else [params]):
            # a single column is treated as a block of one, whose dim is a batch dim of its family
            dims = () if family.event_shape else (1,)
            given = {}
            if library is not None and isinstance(family, Counts):
                given = {"library": library.reshape(library.shape + dims)}
            part: Any = family(raw.reshape(*raw.shape[:-1], *dims, *family.param_shape), **given)
            blocks.append(part.base_dist if family.event_shape else part)
        return ProductOfColumns(blocks)

    def features(self, x: Tensor) -> Tensor:
        """What an encoder sees of rows x, `(*batch, D)`: the features of each family side by side, `(*batch, F)`."""
        if len(self.families) == 1:
            return self.families[0].features(x).flatten(x.dim() - 1)
        blocks = x.split([f.event_shape.numel() for f in self.families], -1)
        return torch.cat([f.features(block).flatten(x.dim() - 1) for f, block in zip(self.families, blocks)], -1)

    def __repr__(self) -> str:
        return f"Columns([{', '.join(map(repr, self.families))}])"


class Features(Shown, nn.Module):
    """`(f(x), m)`: what an encoder sees of rows of a family, with 0 where x is missing (NaN), and `m = 1[x is observed]`.

    f standardises the numbers of `RoundedNormal`, takes the logarithm of counts, and gives one-hot codes of classes. Put it in
    front of an encoder's network, see `nets.Behind`. It has no weights of its own.

    Args:
        family: The family of x, of rows `(*batch, D)`, such as `Columns([...])`.
        mask: Whether m is given, too; without it nothing is said about what is missing.

    References:
        Mattei and Frellsen 2019, arXiv:1812.02633, for zeros; Ma et al. 2019, arXiv:1809.11142, on telling what is missing.

    Example:
        >>> family = fam.Columns([fam.RoundedNormal(1, centre=170.0, spread=10.0), fam.Categorical((), num_classes=3)])
        >>> seen = fam.Features(family)
        >>> seen(torch.tensor([[180.0, 2.0], [float("nan"), 0.0]]))
        tensor([[1., 0., 0., 1., 1., 1.],
                [0., 1., 0., 0., 0., 1.]])
        >>> encoder = pv.nets.Behind(seen, pv.nets.MLP(seen.num_features, fam.Normal(2).param_shape))
        >>> encoder(torch.tensor([[180.0, 2.0]])).shape
        torch.Size([1, 2, 2])
    """

    def __init__(self, family: Family, mask: bool = True) -> None:
        super().__init__()
        self.family, self.mask = as_family(family), bool(mask)
        if len(family.event_shape) != 1:
            raise ShapeError(
                f"Features needs a family of rows (D,), got {family}, whose rows are {tuple(family.event_shape)}."
            )
        (num,) = family.event_shape
        self.num_features = family.features(torch.zeros(1, num)).flatten(1).shape[1] + self.mask * num

    @property
    def out_shape(self) -> torch.Size:
        """The shape of the features of one row, `(num_features,)`."""
        return torch.Size((self.num_features,))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.family.features(x).flatten(x.dim() - 1)
        seen = torch.where(torch.isnan(seen), torch.zeros_like(seen), seen)
        return torch.cat([seen, (~torch.isnan(x)).to(seen.dtype)], -1) if self.mask else seen
