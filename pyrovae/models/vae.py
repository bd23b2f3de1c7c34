"""The variational autoencoder: the pattern that every other model follows."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class VAE(nn.Module):
    """Variational autoencoder: model `p(z) p(x|z)`, guide `q(z|x)`.

    The data are x, `(N, *event)`; z is `(N, L)`.

    Args:
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z)`, a conditional called as `likelihood(z)`.
        encoder: `q(z|x)`, a conditional called as `encoder(x)`.

    Raises:
        PairError: `prior` is neither a distribution nor a module.

    References:
        Kingma and Welling 2014, arXiv:1312.6114.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x).shape, pv.generate(fitted, 5).shape
        (torch.Size([40, 2]), torch.Size([5, 6]))
    """

    def __init__(self, prior: nn.Module | Distribution, likelihood: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior, self.likelihood, self.encoder = as_prior(prior), likelihood, encoder

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (N, L)
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))
