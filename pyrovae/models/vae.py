"""The variational autoencoder: the skeleton that every other model follows."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class VAE(nn.Module):
    """p(z) p(x|z) with guide q(z|x). x: (N, *event). Kingma & Welling 2014, arXiv:1312.6114.

    `prior` is a module without parents or a distribution, else PairError; `likelihood` and `encoder` are conditionals.
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
