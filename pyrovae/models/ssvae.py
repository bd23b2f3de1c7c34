"""Semi-supervised VAE, "M2": a label that some rows have."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.errors import OptionError
from pyrovae.priors import as_prior


class SSVAE(nn.Module):
    """p(y) p(z) p(x|z,y) with guide q(y|x) q(z|x,y); an unknown y is summed out exactly.

    x: (N, *event); y: (N,) class numbers, None where unknown, as `fit` calls it for rows whose label is -1.
    `label_prior` has no parents; `likelihood(z, code)`, `encoder(x, code)` and `classifier(x)`, a family with a finite
    support (Categorical, OrderedLogistic), are conditionals; `code`: `nets.OneHot(C)`, or `nets.Thermometer(C)` for grades.

    A known y trains the classifier as well: alpha log q(y|x), a site that counts in the objective and not in log p(x, y).
    alpha: how many times each labelled row counts there. Raises OptionError unless it is positive.
    Kingma, Rezende, Mohamed & Welling 2014, arXiv:1406.5298, equations 6 to 9 (whose alpha is 0.1 N for all labelled rows
    together).
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.likelihood, self.encoder, self.classifier, self.code = likelihood, encoder, classifier, code
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|x", self.classifier(x), obs=y, infer={"objective_only": True})
            y = pyro.sample("y", self.label_prior(), obs=y)
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, self.code(y)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(x, self.code(y)))


def positive_alpha(alpha: float) -> float:
    """OptionError unless a classifier's weight is positive: without it no labelled row would teach the classifier."""
    if not alpha > 0:
        raise OptionError(
            f"alpha, how often a labelled row counts for the classifier, must be positive, got {alpha!r}."
        )
    return float(alpha)
