"""JointVAE: a discrete and a continuous code side by side."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class JointVAE(nn.Module):
    """p(y) p(z) p(x|z,y) with guide q(y|x) q(z|x), y discrete and never observed, summed out exactly. x: (N, *event).

    `discrete_prior` and `prior` have no parents; `likelihood(z, code)`, `classifier(x)`, of a family with a finite support,
    and `encoder(x)` are conditionals; `code`: `nets.OneHot(C)`. Dupont 2018, arXiv:1804.00104, without its relaxation; its
    capacities are a function for `Trace_ELBO(kl=...)`.
    """

    def __init__(
        self,
        discrete_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        code: nn.Module,
    ) -> None:
        super().__init__()
        self.discrete_prior, self.prior = as_prior(discrete_prior), as_prior(prior)
        self.likelihood, self.encoder, self.classifier, self.code = likelihood, encoder, classifier, code

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.discrete_prior())
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, self.code(y)), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(x))
