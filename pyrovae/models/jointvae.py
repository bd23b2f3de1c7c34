"""JointVAE: a discrete and a continuous latent variable, independent of each other."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class JointVAE(nn.Module):
    """JointVAE: model `p(y) p(z) p(x|z,y)`, guide `q(y|x) q(z|x)`, y discrete and z continuous.

    The data are x, `(N, *event)`. y is never observed and is summed out exactly, where the paper relaxes it; the paper's
    capacities can be expressed as a function passed to `Trace_ELBO(kl=...)`.

    Args:
        discrete_prior: `p(y)`, a prior over classes, such as `priors.Categorical(C)`.
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z,y)`, a conditional called as `likelihood(z, code)`.
        encoder: `q(z|x)`, a conditional called as `encoder(x)`.
        classifier: `q(y|x)`, a conditional called as `classifier(x)`, whose family has a finite support.
        code: Encodes y for the networks, `nets.OneHot(C)`.

    Raises:
        PairError: A prior is neither a distribution nor a module.

    References:
        Dupont 2018, arXiv:1804.00104.

    Example:
        >>> pair = pv.JointVAE(
        ...     discrete_prior=pv.priors.Categorical(3),
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ...     classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(8,)),
        ...     code=pv.nets.OneHot(3),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.classify(fitted, x).predicted.shape
        torch.Size([40])
    """

    def __init__(
        self,
        discrete_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        code: nn.Module,
    ) -> None:
        super().__init__()
        self.discrete_prior, self.prior = as_prior(discrete_prior), as_prior(prior)
        self.likelihood, self.encoder, self.classifier, self.code = likelihood, encoder, classifier, code

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.discrete_prior())
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, self.code(y)), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(x))
