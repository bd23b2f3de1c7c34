"""Gaussian mixture VAE: clusters, with a guide of their own."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class GMVAE(nn.Module):
    """p(y) p(z|y) p(x|z) with guide q(y|x) q(z|x,y), y one of C clusters, summed out exactly. x: (N, *event).

    `cluster_prior` has no parents; `prior(code)`, `likelihood(z)`, `classifier(x)`, of a family with a finite support, and
    `encoder(x, code)` are conditionals; `code`: `nets.OneHot(C)`. Rui Shu 2016, *Gaussian mixture VAE: lessons in
    variational inference, generative models, and deep nets*; Kingma et al. 2014, arXiv:1406.5298.
    """

    def __init__(
        self,
        cluster_prior: nn.Module | Distribution,
        prior: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        code: nn.Module,
    ) -> None:
        super().__init__()
        self.cluster_prior, self.prior, self.likelihood = as_prior(cluster_prior), prior, likelihood
        self.encoder, self.classifier, self.code = encoder, classifier, code

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.cluster_prior())
            z = pyro.sample("z", self.prior(self.code(y)))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(x, self.code(y)))
