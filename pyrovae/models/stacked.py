"""Two stacked layers, "M1+M2": a semi-supervised model of the codes of a VAE."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class StackedSSVAE(nn.Module):
    """p(y) p(z2) p(z1|z2,y) p(x|z1) with guide q(z1|x) q(y|z1) q(z2|z1,y); an unknown y is summed out exactly.

    x: (N, *event); y: (N,) class numbers, None where unknown. `lower(z2, code)` is p(z1|z2,y); `encoder(x)` and
    `likelihood(z1)` are those of a VAE, which may have been fitted before ("M1"); `classifier(z1)`, `upper_encoder(z1, code)`
    and `alpha` as in `SSVAE`. Kingma et al. 2014, arXiv:1406.5298, section 3.2, who fit the two layers one after the other.
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        lower: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        upper_encoder: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.lower, self.likelihood, self.encoder = lower, likelihood, encoder
        self.classifier, self.upper_encoder, self.code = classifier, upper_encoder, code
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        known = y
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.label_prior(), obs=y)
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.lower(z2, self.code(y)))
            if known is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|z1", self.classifier(z1), obs=known, infer={"objective_only": True})
            return pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.encoder(x))
            if y is None:
                y = pyro.sample("y", self.classifier(z1), infer={"enumerate": "parallel"})
            return pyro.sample("z2", self.upper_encoder(z1, self.code(y)))
