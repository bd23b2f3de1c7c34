"""Conditional VAE: everything given c."""

import pyro
from torch import Tensor, nn


class CVAE(nn.Module):
    """p(z|c) p(x|z,c) with guide q(z|x,c). x: (N, *event); c: (N, *condition), never a random variable here.

    `condition` codes c for all three: `nets.OneHot(C)` for a label, `nn.Identity()` for a vector, a network for an image.
    `prior(code)`, `likelihood(z, code)` and `encoder(x, code)` are conditionals. z need not repeat what c says.
    Sohn, Lee & Yan 2015, *Learning structured output representation using deep conditional generative models*.
    """

    def __init__(self, condition: nn.Module, prior: nn.Module, likelihood: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.condition, self.prior, self.likelihood, self.encoder = condition, prior, likelihood, encoder

    def model(self, x: Tensor, c: Tensor) -> Tensor:
        code = self.condition(c)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(code))
            return pyro.sample("x", self.likelihood(z, code), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x, self.condition(c)))
