"""Variational deep embedding: clusters in the latent space of a VAE, inferred by Bayes' rule."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class VaDE(nn.Module):
    """Variational deep embedding: model `p(y) p(z|y) p(x|z)`, guide `q(z|x)`, y one of C clusters.

    The data are x, `(N, *event)`. The cluster y is summed out of the model, so that `p(z) = sum_y p(y) p(z|y)` is a mixture,
    and `p(y|z)` follows from Bayes' rule without a classifier.

    Args:
        cluster_prior: `p(y)`, a prior over classes, such as `priors.Categorical(C)`.
        prior: `p(z|y)`, a conditional called as `prior(code)`.
        likelihood: `p(x|z)`, a conditional called as `likelihood(z)`.
        encoder: `q(z|x)`, a conditional called as `encoder(x)`.
        code: Encodes y for the networks, `nets.OneHot(C)`.

    Raises:
        PairError: `cluster_prior` is neither a distribution nor a module.

    References:
        Jiang et al. 2017, arXiv:1611.05148.

    Example:
        >>> pair = pv.VaDE(
        ...     cluster_prior=pv.priors.Categorical(3, learned=True),
        ...     prior=pv.mlp(3, fam.Normal(2), hidden=()),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ...     code=pv.nets.OneHot(3),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.classify(fitted, x).predicted.shape
        torch.Size([40])
    """

    def __init__(
        self,
        cluster_prior: nn.Module | Distribution,
        prior: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        code: nn.Module,
    ) -> None:
        super().__init__()
        self.cluster_prior, self.prior, self.likelihood = as_prior(cluster_prior), prior, likelihood
        self.encoder, self.code = encoder, code

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.cluster_prior(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.prior(self.code(y)))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))
