"""Transforms of a minibatch, which a fit applies in every step, with new random numbers each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.errors import DataError
from pyrovae.pair.batch import Batch


class Binarize:
    """Dynamic binarisation: x in [0, 1] is replaced by a draw from Bernoulli(x), at every step of a fit anew.

    For evaluation a fitted pair draws once, from a fixed seed, so that results can be repeated.

    Args:
        argument: Name of the argument of the model that is binarised. Its values may have any shape.

    Raises:
        DataError: At the beginning of a fit: there is no such argument, or its values are not in [0, 1].

    References:
        Salakhutdinov and Murray 2008, doi:10.1145/1390156.1390266

    Example:
        >>> batch = {"x": torch.tensor([[0.0, 1.0, 0.5]])}
        >>> x = pv.transforms.Binarize()(batch)["x"]
        >>> x.shape, x[0, :2], bool(((x == 0) | (x == 1)).all())
        (torch.Size([1, 3]), tensor([0., 1.]), True)

        In a fit, pixels in [0, 1] become new draws of 0 and 1 at every step:

        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> pixels = torch.rand(40, 6)
        >>> fitted = pv.fit(
        ...     vae, pixels, epochs=1, batch_size=20, transform=pv.transforms.Binarize(), progress=False
        ... )
        >>> fitted.evaluation_batch(pixels)["x"].unique().tolist()
        [0.0, 1.0]
    """

    def __init__(self, argument: str = "x") -> None:
        self.argument = argument

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch[self.argument]
        return {**batch, self.argument: (torch.rand_like(x) < x).to(x.dtype)}

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise DataError unless the argument is in the batch and all its values are in [0, 1]."""
        if self.argument not in batch:
            raise DataError(f"Binarize({self.argument!r}): the data have no such argument, only {sorted(batch)}.")
        low, high = (end.item() for end in batch[self.argument].aminmax())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"Binarize({self.argument!r}) takes values in [0, 1], got {low:g} to {high:g}. "
                "Divide by the largest possible value (255 for 8-bit images), and fill in missing entries first."
            )


class DrawNormal:
    """Codes as they are uncertain: rows of means and standard deviations are replaced by draws, at every step of a fit anew.

    The data are `(N, 2, *event)`: for each row the mean and the standard deviation of q(z | x) of a fitted encoder. What the
    model sees is `z = mean + sd * e` with `e ~ N(0, I)`, `(N, *event)`. So a second model learns from draws of the first one's
    codes without running its encoder, and a standard deviation of 0 gives the mean itself. For evaluation a fitted pair draws
    once, from a fixed seed.

    Args:
        argument: Name of the argument of the model.

    Raises:
        DataError: At the beginning of a fit: there is no such argument, its rows are not such pairs, or a standard deviation is
            negative.

    References:
        Kingma, Rezende, Mohamed & Welling 2014, arXiv:1406.5298, section 3.2: M2 on draws of the codes of M1.

    Example:
        >>> codes = torch.stack([torch.zeros(40, 3), torch.ones(40, 3)], 1)  # means, and standard deviations
        >>> pv.transforms.DrawNormal()({"x": codes})["x"].shape
        torch.Size([40, 3])
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(3)), pv.mlp(3, fam.Normal(2)))
        >>> fitted = pv.fit(vae, codes, epochs=1, transform=pv.transforms.DrawNormal(), progress=False)
        >>> fitted.evaluation_batch(codes * torch.tensor([1.0, 0.0])[:, None])["x"].unique()
        tensor([0.])
    """

    def __init__(self, argument: str = "x") -> None:
        self.argument = argument

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        mean, sd = self._pairs(batch).unbind(1)
        return {**batch, self.argument: mean + sd * torch.randn_like(mean)}

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise DataError unless the argument is in the batch, and has rows of means and standard deviations."""
        if not bool((self._pairs(batch)[:, 1] >= 0).all()):
            raise DataError(
                f"DrawNormal({self.argument!r}) takes a mean and a standard deviation for each row, and some of these standard "
                "deviations, the second of each pair, are negative or NaN."
            )

    def _pairs(self, batch: dict[str, Tensor]) -> Tensor:
        if self.argument not in batch:
            raise DataError(f"DrawNormal({self.argument!r}): the data have no such argument, only {sorted(batch)}.")
        values = batch[self.argument]
        if values.dim() < 2 or values.shape[1] != 2 or not values.is_floating_point():
            raise DataError(
                f"DrawNormal({self.argument!r}) takes a mean and a standard deviation for each row, floating-point numbers "
                f"(N, 2, *event), got {str(values.dtype)[6:]} {tuple(values.shape)}: stack them, torch.stack([mean, sd], 1)."
            )
        return values


Transform = Callable[[Batch], Batch]
