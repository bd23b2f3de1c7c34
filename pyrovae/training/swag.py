"""`swag`: a Normal around the weights that a fit visits when it goes on, as their posterior."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._arguments import as_count, as_number, refuse_unknown
from pyrovae.errors import OptionError
from pyrovae.fitted.ensemble import fit_like
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.asked import refuse_unfitted
from pyrovae.training.fit import fit
from pyrovae.training.fit_options import MEANT
from pyrovae.weights.ensemble import Ensemble
from pyrovae.weights.pairs import Bayesian
from pyrovae.weights.posteriors import Visited

_CHECKPOINTS = ("checkpoint", "resume", "force", "checkpoint_every")  # of `pv.fit`


def swag(
    fitted: Fit, data: Any, *, epochs: int = 40, rank: int = 20, learning_rate: float = 1e-3, **options: Any
) -> Fit:
    """Stochastic weight averaging, Gaussian: `q(w) = N(m, S / 2 + D D' / (2 (R - 1)))` of all weights, from those of K epochs.

    The fit goes on, by default by gradient descent with momentum 0.9 at a constant learning rate, whose noise keeps it moving
    around a mode. Of the weights at the end of each epoch, m is the mean and S the diagonal of variances. The R columns of D
    are the deviations of the last R epochs from the mean until then, where R is `rank`, or K if there are fewer epochs. The
    result is a fit of a pair whose weights, also those of the guide, are global latent variables with this q(w), so that every
    question averages over them. Running statistics of batch normalisation are those at the end of the fit, for all w; layer
    normalisation has none. How wide q(w) is depends on the learning rate; choose it by log p(x) of validation rows.

    Args:
        fitted: The fit to go on from. Its pair must be a module; it is copied and not changed.
        data: The rows, as for `pv.fit`.
        epochs: K, at least 2.
        rank: The most columns of D, at least 2.
        learning_rate: Of gradient descent.
        options: Other options of `pv.fit`, such as `batch_size`, or an `optimizer` in place of gradient descent, but none of
            checkpoints, which do not contain the moments.

    Returns:
        A fit of a `pv.weights.Bayesian` pair, with the history of these epochs. Its weights are m. It can be saved, and is not
        meant to be fitted any further.

    Raises:
        OptionError: There are fewer than 2 epochs or columns, or the fit stopped before its second epoch was over; the pair is
            not a module, or its weights are latent variables already; `pv.fit` has no such option, or it is one of checkpoints.

    References:
        Maddox, Garipov, Izmailov, Vetrov & Wilson 2019, arXiv:1902.02476.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), pv.mlp(6, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=2, engine="eager", progress=False)
        >>> around = pv.swag(fitted, x, epochs=5, engine="eager", progress=False)
        >>> pv.log_likelihood(around, x, num_samples=50, seed=0).shape
        torch.Size([40])
    """
    refuse_unfitted(fitted)
    epochs, rank = as_count("epochs of swag", epochs, least=2), as_count("rank of swag", rank, least=2)
    learning_rate = as_number("learning_rate", learning_rate, above=0)
    if unsafe := [name for name in options if name in _CHECKPOINTS]:
        raise OptionError(
            f"swag takes no {unsafe[0]}=..., since a checkpoint would not contain the moments of the weights: save the result "
            "with pv.save."
        )
    known = set(inspect.signature(fit).parameters) - {"pair", "data"}
    refuse_unknown("pv.fit, whose options swag takes,", options, known, MEANT)
    if not isinstance(fitted.pair, nn.Module):
        raise OptionError(
            "swag goes on with a copy of the pair, which must be a module with the methods model and guide."
        )
    if isinstance(fitted.pair, (Bayesian, Ensemble)):
        raise OptionError(
            f"The weights of this {type(fitted.pair).__name__} are latent variables already: give swag the fit of a pair "
            "without a posterior of weights."
        )
    fitted.check_weights()
    fitted.check_columns(data)
    pair: Any = copy.deepcopy(fitted.pair)
    around = Bayesian(pair, posterior=Visited(rank=min(rank, epochs)), expose="*")
    visited = around.approximation
    assert isinstance(visited, nn.Module)

    def look(_: Fit) -> None:
        visited.visit(_flat(around))  # type: ignore[operator]

    def descent(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(leaves, lr=learning_rate, momentum=0.9)

    chosen = {"optimizer": descent, "transform": fitted.transform, **options}
    chosen["callbacks"] = [*chosen.get("callbacks", ()), look]
    ran = fit(pair, data, epochs=epochs, **chosen)
    if (seen := int(visited.count)) < 2:  # type: ignore[arg-type]
        raise OptionError(
            f"swag needs the weights at the ends of at least 2 epochs, and this fit stopped after {seen}: let it go "
            "on for longer, or lower the learning rate."
        )
    with torch.no_grad():
        for name, value in visited.means(_parameters(around)).items():  # type: ignore[operator]
            around.chosen[name].parameter.copy_(value)
    made = fit_like(ran, around.to(ran.device))
    made.history, made.stopped = ran.history, ran.stopped
    return made


def _parameters(pair: Bayesian) -> dict[str, Tensor]:
    return {name: one.parameter for name, one in pair.chosen.items()}


def _flat(pair: Bayesian) -> Tensor:
    return torch.cat([value.detach().flatten() for value in _parameters(pair).values()])
