"""Semi-supervised regression: a number that some rows have."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class SSRegression(nn.Module):
    """p(y) p(z) p(x|z,y) with guide q(y|x) q(z|x,y), y a number, or a vector of them; an unknown y is drawn.

    x: (N, *event); y: (N, *target), None where unknown, as `fit` calls it for rows whose y is NaN. `label_prior` has no
    parents; `likelihood(z, code)`, `encoder(x, code)` and `regressor(x)`, a reparameterised family on the support of
    `label_prior`, are conditionals; `code`: `nets.Column()` for a number, `nn.Identity()` for a vector. `alpha` as in
    `SSVAE`. Kingma et al. 2014, arXiv:1406.5298, with a density in the place of the classes.
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        regressor: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.likelihood, self.encoder, self.regressor, self.code = likelihood, encoder, regressor, code
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|x", self.regressor(x), obs=y, infer={"objective_only": True})
            y = pyro.sample("y", self.label_prior(), obs=y)
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, self.code(y)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.regressor(x))
            return pyro.sample("z", self.encoder(x, self.code(y)))
