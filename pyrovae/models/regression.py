"""A network that predicts x from c without latent variables, the baseline for conditional models."""

import pyro
from torch import Tensor, nn


class Regression(nn.Module):
    """Regression without latent variables: model `p(x|c)`, empty guide.

    The data are x, `(N, *event)`, and c, `(N, *condition)`. The ELBO is the log-likelihood.

    Args:
        condition: Encodes c for the network, as in `CVAE`.
        likelihood: `p(x|c)`, a conditional called as `likelihood(code)`.

    References:
        McCullagh and Nelder 1989, *Generalized Linear Models*.

    Example:
        >>> regression = pv.Regression(torch.nn.Identity(), pv.mlp(3, fam.Normal(6), hidden=(8,)))
        >>> data = {"x": torch.randn(40, 6), "c": torch.randn(40, 3)}
        >>> fitted = pv.fit(regression, data, epochs=1, engine="eager", progress=False)
        >>> pv.log_likelihood(fitted, data, num_samples=1).shape
        torch.Size([40])
    """

    def __init__(self, condition: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.condition, self.likelihood = condition, likelihood

    def model(self, x: Tensor, c: Tensor) -> Tensor:
        code = self.condition(c)
        with pyro.plate("data", len(x)):
            return pyro.sample("x", self.likelihood(code), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> None:
        """Empty: there is no latent variable."""
