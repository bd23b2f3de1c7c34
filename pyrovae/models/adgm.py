"""Auxiliary deep generative model: M2 with an auxiliary variable that makes its guide richer."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class ADGM(nn.Module):
    """p(y) p(z) p(x|z,y) p(a|x,z,y) with guide q(a|x) q(y|a,x) q(z|a,x,y); an unknown y is summed out exactly.

    x: (N, *event); y: (N,) class numbers, None where unknown. Integrating a out of the model leaves M2; of the guide, a
    mixture. `auxiliary(x, z, code)`, `likelihood(z, code)`, `auxiliary_encoder(x)`, `classifier(a, x)` and
    `encoder(a, x, code)` are conditionals; `alpha` as in `SSVAE`.
    Maaloe, Sonderby, Sonderby & Winther 2016, arXiv:1602.05473.
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        auxiliary: nn.Module,
        auxiliary_encoder: nn.Module,
        classifier: nn.Module,
        encoder: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.likelihood, self.auxiliary, self.auxiliary_encoder = likelihood, auxiliary, auxiliary_encoder
        self.classifier, self.encoder, self.code = classifier, encoder, code
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        known = y
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.label_prior(), obs=y)
            z = pyro.sample("z", self.prior())
            x = pyro.sample("x", self.likelihood(z, self.code(y)), obs=x)
            a = pyro.sample("a", self.auxiliary(x, z, self.code(y)))
            if known is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|a,x", self.classifier(a, x), obs=known, infer={"objective_only": True})
            return x

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", self.auxiliary_encoder(x))
            if y is None:
                y = pyro.sample("y", self.classifier(a, x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(a, x, self.code(y)))
