"""The semi-supervised VAE, "M2": some rows have a label."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae._arguments import as_number
from pyrovae.priors import as_prior


class SSVAE(nn.Module):
    """Semi-supervised VAE, "M2": model `p(y) p(z) p(x|z,y)`, guide `q(y|x) q(z|x,y)`.

    The data are x, `(N, *event)`, and class numbers y, `(N,)`. `fit` treats y = -1 as unknown and calls the pair with y=None
    for those rows; an unknown y is summed out exactly. Where y is known, the objective gets the additional term
    `alpha log q(y|x)`, which trains the classifier on the labels. It is not part of `log p(x, y)` and of reported bounds.

    Args:
        label_prior: `p(y)`, a prior over classes, such as `priors.Categorical(C)`.
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z,y)`, a conditional called as `likelihood(z, code)`.
        encoder: `q(z|x,y)`, a conditional called as `encoder(x, code)`.
        classifier: `q(y|x)`, a conditional called as `classifier(x)`, whose family has a finite support: `Categorical`, or
            `OrderedLogistic` for grades.
        code: Encodes y for the networks: `nets.OneHot(C)`, or `nets.Thermometer(C)` for grades.
        alpha: How many times each labelled row counts in the classifier's term, positive.

    Raises:
        PairError: A prior is neither a distribution nor a module.
        OptionError: `alpha` is not positive.

    References:
        Kingma, Rezende, Mohamed and Welling 2014, arXiv:1406.5298, equations 6 to 9. Their alpha is 0.1 N for all labelled rows
        together.

    Example:
        >>> m2 = pv.SSVAE(
        ...     label_prior=pv.priors.Categorical(3),
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
        ...     classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        ...     code=pv.nets.OneHot(3),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> y = torch.where(torch.arange(40) < 12, torch.arange(40) % 3, -1)  # 12 labels are known
        >>> fitted = pv.fit(m2, {"x": x, "y": y}, epochs=1, engine="eager", progress=False)
        >>> pv.classify(fitted, x).predicted.shape
        torch.Size([40])
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
    """Return `alpha` as a float, or raise OptionError unless it is positive: labels would not train the classifier."""
    return float(as_number("alpha, the weight of each labelled row in the classifier's term,", alpha, above=0))
