"""A VAE of rows with gaps whose place says something about what is missing."""

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.distributions import ObservedOnly
from pyrovae.priors import as_prior


class NotMIWAE(nn.Module):
    """VAE of rows with gaps that are not at random: model `p(z) p(x|z) p(s|x)`, guide `q(z|x) p(x_missing|z)`.

    The data are x, `(N, *event)`, NaN where an entry is missing; s, `(N, *event)`, is 1 where it is observed. An entry may be
    missing because of its own value, as incomes that are high. The missing entries are latent, and the guide draws them from
    the likelihood, so that they add no KL term. Fit it by `pv.IWELBO(num_particles=20)`; `pv.impute` fills in the gaps by
    their posterior.

    Args:
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z)`, a conditional called as `likelihood(z)`, of independent elements. It is not wrapped in
            `pv.observed_only`.
        encoder: `q(z|x)`, a conditional called as `encoder(x)`, which takes NaN, as a net in `nets.WithMask` does.
        missingness: `p(s|x)`, a conditional called as `missingness(x)` with the whole row, such as a Bernoulli family with
            the net `nets.SelfMasking`, or a linear one, `pv.mlp(D, fam.Bernoulli(D), hidden=())`. Data say little about it: let
            the net say what is known.

    Raises:
        PairError: `prior` is neither a distribution nor a module.

    References:
        Ipsen, Mattei and Frellsen 2021, arXiv:2006.12871.

    Example:
        >>> vae = pv.NotMIWAE(
        ...     prior=pv.priors.StandardNormal(1),
        ...     likelihood=pv.mlp(1, fam.Normal(3), hidden=(8,)),
        ...     encoder=pv.Conditional(pv.nets.WithMask(pv.nets.MLP((3, 3), (2, 1), hidden=(8,))), fam.Normal(1)),
        ...     missingness=pv.Conditional(pv.nets.SelfMasking(3, missing="high"), fam.Bernoulli(3)),
        ... )
        >>> x = torch.randn(40, 3)
        >>> x[x > 1] = float("nan")
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.IWELBO(5), engine="eager", progress=False)
        >>> pv.impute(fitted, x, seed=0).draws.shape
        torch.Size([20, 40, 3])
    """

    def __init__(
        self, prior: nn.Module | Distribution, likelihood: nn.Module, encoder: nn.Module, missingness: nn.Module
    ) -> None:
        super().__init__()
        self.prior, self.likelihood, self.encoder = as_prior(prior), likelihood, encoder
        self.missingness = missingness

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (N, L)
            likelihood = self.likelihood(z)
            x_missing = pyro.sample("x_missing", likelihood, infer={"fills": "x"})  # whole rows, used in gaps only
            s = (~x.isnan()).long()
            x = pyro.sample("x", ObservedOnly(likelihood), obs=x)
            pyro.sample("s", self.missingness(torch.where(x.isnan(), x_missing, x)), obs=s)
            return x

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.encoder(x))
            return pyro.sample("x_missing", self.likelihood(z), infer={"fills": "x"})
