"""A network that predicts, with no latent variable: what a conditional model is compared with."""

import pyro
from torch import Tensor, nn


class Regression(nn.Module):
    """p(x|c), elements independent given c. x: (N, *event); c: (N, *condition). `likelihood(code)` is a conditional.

    `condition` codes c, as in `CVAE`. The guide has nothing to draw, and the ELBO is the log-likelihood.
    McCullagh & Nelder 1989, *Generalized Linear Models*.
    """

    def __init__(self, condition: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.condition, self.likelihood = condition, likelihood

    def model(self, x: Tensor, c: Tensor) -> Tensor:
        code = self.condition(c)
        with pyro.plate("data", len(x)):
            return pyro.sample("x", self.likelihood(code), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:
        """No latent variable."""
