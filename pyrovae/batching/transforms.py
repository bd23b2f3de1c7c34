"""Transforms of a minibatch, which a fit applies in every step, with new random numbers each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.errors import DataError, OptionError
from pyrovae.pair.batch import Batch
from pyrovae.pair.batch import known_rows as _known_rows  # what has no underscore here is public


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
        >>> fitted.evaluation_batch(codes * torch.tensor([1.0, 0.0])[:, None])["x"].unique().tolist()
        [0.0]
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


class HideKinds:
    """Rows of several kinds of data, some of which keep one kind alone, at every step of a fit anew.

    A model that is trained on complete rows learns its posterior given all kinds of data, and not given each of them. With
    probability p a row keeps one of the kinds that it has, chosen at random, and NaN hides the others. So the fit
    maximises a weighted sum of bounds on log p(x1, x2), log p(x1) and log p(x2). In evaluation nothing is hidden. Classes and
    counts come as floats, since integers have no NaN.

    Args:
        arguments: Names of the arguments of the model that are the kinds of data, two or more.
        probability: p, from 0 to 1; by default K / (K + 1) for K kinds, by which complete rows and each kind weigh the same.

    Raises:
        OptionError: Not the names of two or more arguments, or p is not a probability.
        DataError: There is no such argument, or its values are not floats; told at the beginning of a fit.

    References:
        Wu and Goodman 2018, arXiv:1802.05335, section 2.2.

    Example:
        >>> batch = {"x1": torch.zeros(1000, 3), "x2": torch.zeros(1000, 2)}
        >>> hidden = pv.transforms.HideKinds("x1", "x2")(batch)
        >>> first, second = (hidden[name].isnan().all(1) for name in ("x1", "x2"))
        >>> bool((first & second).any()), round(float((first | second).double().mean()), 1)
        (False, 0.7)
    """

    only_in_training = True
    argument = None  # it takes rows with gaps

    def __init__(self, *arguments: str, probability: float | None = None) -> None:
        names = {name for name in arguments if isinstance(name, str)}
        if len(names) < max(2, len(arguments)):
            raise OptionError(
                "HideKinds takes the names of two or more arguments of the model, one after the other, as in "
                f"HideKinds('x1', 'x2'), got {list(arguments)}."
            )
        number = isinstance(probability, (int, float)) and not isinstance(probability, bool)
        if probability is not None and not (number and 0 <= probability <= 1):
            raise OptionError(f"HideKinds: probability must be a number from 0 to 1, got {probability!r}.")
        self.arguments, self.probability = arguments, probability

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.check(batch)
        rows = len(batch[self.arguments[0]])
        share = len(self.arguments) / (len(self.arguments) + 1) if self.probability is None else self.probability
        device = batch[self.arguments[0]].device
        has = torch.stack([_known_rows(batch[name]) for name in self.arguments])  # (K, N)
        chosen = torch.where(has, torch.rand(has.shape, device=device), -1.0).argmax(0)
        alone = torch.rand(rows, device=device) < share
        found = dict(batch)
        for number, name in enumerate(self.arguments):
            x = batch[name]
            hide = (alone & (chosen != number)).reshape(-1, *[1] * (x.dim() - 1))
            found[name] = torch.where(hide, torch.full_like(x, torch.nan), x)
        return found

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise DataError unless the arguments are in the batch, and are floats, which alone have NaN."""
        for name in self.arguments:
            if name not in batch:
                raise DataError(f"HideKinds: the data have no argument {name!r}, only {sorted(batch)}.")
            if not batch[name].is_floating_point():
                raise DataError(
                    f"HideKinds hides values as NaN, and {name!r} is {str(batch[name].dtype).removeprefix('torch.')}: give it "
                    "as floats, .float(), which families of classes and counts and nets.OneHot take, too."
                )


Transform = Callable[[Batch], Batch]
