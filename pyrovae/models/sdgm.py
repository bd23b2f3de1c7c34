"""The skip deep generative model: two layers of latent variables, both of which the data see, and a class."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class SDGM(nn.Module):
    """Skip deep generative model: model `p(y) p(z) p(a|z,y) p(x|a,z,y)`, guide `q(a|x) q(y|a,x) q(z|a,x,y)`.

    The data are x, `(N, *event)`, and class numbers y, `(N,)`, -1 where unknown, as in `SSVAE`. The guide is that of `ADGM`. In
    the model, a is no longer auxiliary: it is a second layer of latent variables between z and x, and x depends on z and y
    directly, too, as by skip connections. Integrating a out leaves a likelihood `p(x|z,y)` that is a mixture.

    Args:
        label_prior: `p(y)`, a prior over classes, such as `priors.Categorical(C)`.
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        auxiliary: `p(a|z,y)`, a conditional called as `auxiliary(z, code)`.
        likelihood: `p(x|a,z,y)`, a conditional called as `likelihood(a, z, code)`.
        auxiliary_encoder: `q(a|x)`, a conditional called as `auxiliary_encoder(x)`.
        classifier: `q(y|a,x)`, a conditional called as `classifier(a, x)`, whose family has a finite support.
        encoder: `q(z|a,x,y)`, a conditional called as `encoder(a, x, code)`.
        code: Encodes y for the networks, `nets.OneHot(C)`.
        alpha: How many times each labelled row counts in the classifier's term, positive.

    Raises:
        PairError: A prior is neither a distribution nor a module.
        OptionError: `alpha` is not positive.

    References:
        Maaløe, Sønderby, Sønderby and Winther 2016, arXiv:1602.05473.

    Example:
        >>> pair = pv.SDGM(
        ...     label_prior=pv.priors.Categorical(3),
        ...     prior=pv.priors.StandardNormal(2),
        ...     auxiliary=pv.mlp((2, 3), fam.Normal(2), hidden=(8,)),
        ...     likelihood=pv.mlp((2, 2, 3), fam.Bernoulli(6), hidden=(8,)),
        ...     auxiliary_encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ...     classifier=pv.mlp((2, 6), fam.Categorical((), 3), hidden=(8,)),
        ...     encoder=pv.mlp((2, 6, 3), fam.Normal(2), hidden=(8,)),
        ...     code=pv.nets.OneHot(3),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> y = torch.where(torch.arange(40) < 12, torch.arange(40) % 3, -1)  # 12 labels are known
        >>> fitted = pv.fit(pair, {"x": x, "y": y}, epochs=1, engine="eager", progress=False)
        >>> pv.classify(fitted, x).predicted.shape
        torch.Size([40])
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        auxiliary: nn.Module,
        likelihood: nn.Module,
        auxiliary_encoder: nn.Module,
        classifier: nn.Module,
        encoder: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.auxiliary, self.likelihood, self.auxiliary_encoder = auxiliary, likelihood, auxiliary_encoder
        self.classifier, self.encoder, self.code = classifier, encoder, code
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        known = y
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.label_prior(), obs=y)
            z = pyro.sample("z", self.prior())
            a = pyro.sample("a", self.auxiliary(z, self.code(y)))
            if known is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|a,x", self.classifier(a, x), obs=known, infer={"objective_only": True})
            return pyro.sample("x", self.likelihood(a, z, self.code(y)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", self.auxiliary_encoder(x))
            if y is None:
                y = pyro.sample("y", self.classifier(a, x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(a, x, self.code(y)))
