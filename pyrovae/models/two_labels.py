"""The semi-supervised VAE with two labels: each of them is known of some rows."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class TwoLabelVAE(nn.Module):
    """M2 with two labels: model `p(y1) p(y2) p(z) p(x|z,y1,y2)`, guide `q(y1|x) q(y2|x) q(z|x,y1,y2)`.

    The data are x, `(N, *event)`, and class numbers y1 and y2, `(N,)`, such as the species and the sex of an animal; -1 is
    unknown. `fit` groups rows by which labels are known, four groups at most, and calls the pair without those that are not. An
    unknown label is summed out exactly, and where both are unknown, over all C1 C2 pairs. Each known label adds `alpha log
    q(y|x)` to the objective, which trains its classifier; it is not part of `log p(x, y1, y2)` and of reported bounds.

    The labels are independent before x is seen, and in the guide given x. By Bayes' rule they are not: `pv.classify(fitted,
    rows, site="y2")` takes y1 into account where the rows have it, and sums over it where they do not. Where both are unknown,
    log p(x) is estimated with draws of the guide, as no proposal is refined for pairs of classes.

    Args:
        label_prior1: `p(y1)`, a prior over classes, such as `priors.Categorical(C1)`.
        label_prior2: `p(y2)`, another one.
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z,y1,y2)`, a conditional called as `likelihood(z, code1, code2)`.
        encoder: `q(z|x,y1,y2)`, a conditional called as `encoder(x, code1, code2)`.
        classifier1: `q(y1|x)`, a conditional called as `classifier1(x)`, whose family has a finite support.
        classifier2: `q(y2|x)`, another one.
        code1: Encodes y1 for the networks, such as `nets.OneHot(C1)`.
        code2: Encodes y2.
        alpha: How many times each known label counts in its classifier's term, positive.

    Raises:
        PairError: A prior is neither a distribution nor a module.
        OptionError: `alpha` is not positive.

    References:
        Kingma, Rezende, Mohamed and Welling 2014, arXiv:1406.5298, for one label.

    Example:
        >>> pair = pv.TwoLabelVAE(
        ...     label_prior1=pv.priors.Categorical(3),
        ...     label_prior2=pv.priors.Categorical(2),
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp((2, 3, 2), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 3, 2), fam.Normal(2), hidden=(8,)),
        ...     classifier1=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        ...     classifier2=pv.mlp(6, fam.Categorical((), 2), hidden=(8,)),
        ...     code1=pv.nets.OneHot(3),
        ...     code2=pv.nets.OneHot(2),
        ... )
        >>> x, row = torch.bernoulli(torch.full((40, 6), 0.4)), torch.arange(40)
        >>> y1, y2 = torch.where(row < 20, row % 3, -1), torch.where(row % 4 > 0, row % 2, -1)
        >>> fitted = pv.fit(pair, {"x": x, "y1": y1, "y2": y2}, epochs=1, engine="eager", progress=False)
        >>> pv.classify(fitted, {"x": x, "y1": y1}, site="y2").predicted.shape
        torch.Size([40])
    """

    def __init__(
        self,
        label_prior1: nn.Module | Distribution,
        label_prior2: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier1: nn.Module,
        classifier2: nn.Module,
        code1: nn.Module,
        code2: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior1, self.label_prior2, self.prior = map(as_prior, (label_prior1, label_prior2, prior))
        self.likelihood, self.encoder = likelihood, encoder
        self.classifier1, self.classifier2, self.code1, self.code2 = classifier1, classifier2, code1, code2
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y1: Tensor | None = None, y2: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=self.alpha):
                if y1 is not None:
                    pyro.sample("y1|x", self.classifier1(x), obs=y1, infer={"objective_only": True})
                if y2 is not None:
                    pyro.sample("y2|x", self.classifier2(x), obs=y2, infer={"objective_only": True})
            y1 = pyro.sample("y1", self.label_prior1(), obs=y1)
            y2 = pyro.sample("y2", self.label_prior2(), obs=y2)
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, self.code1(y1), self.code2(y2)), obs=x)

    def guide(self, x: Tensor, y1: Tensor | None = None, y2: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y1 is None:
                y1 = pyro.sample("y1", self.classifier1(x), infer={"enumerate": "parallel"})
            if y2 is None:
                y2 = pyro.sample("y2", self.classifier2(x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(x, self.code1(y1), self.code2(y2)))
