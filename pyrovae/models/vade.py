"""Variational deep embedding: clusters in a VAE's latent space."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class VaDE(nn.Module):
    """p(y) p(z|y) p(x|z) with guide q(z|x): the cluster y is summed out in the model. x: (N, *event).

    p(z) = sum_y p(y) p(z|y) is a mixture, and p(y|z) its responsibilities. `cluster_prior` has no parents; `prior(code)`,
    `likelihood(z)` and `encoder(x)` are conditionals; `code`: `nets.OneHot(C)`. Jiang et al. 2017, arXiv:1611.05148.
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
