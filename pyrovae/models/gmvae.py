"""The Gaussian mixture VAE: clusters whose guide is a network of its own."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_prior


class GMVAE(nn.Module):
    """Gaussian mixture VAE: model `p(y) p(z|y) p(x|z)`, guide `q(y|x) q(z|x,y)`, y one of C clusters.

    The data are x, `(N, *event)`. The cluster y is never observed and is summed out exactly.

    Args:
        cluster_prior: `p(y)`, a prior over classes, such as `priors.Categorical(C)`.
        prior: `p(z|y)`, a conditional called as `prior(code)`.
        likelihood: `p(x|z)`, a conditional called as `likelihood(z)`.
        encoder: `q(z|x,y)`, a conditional called as `encoder(x, code)`.
        classifier: `q(y|x)`, a conditional called as `classifier(x)`, whose family has a finite support.
        code: Encodes y for the networks, `nets.OneHot(C)`.

    Raises:
        PairError: `cluster_prior` is neither a distribution nor a module.

    References:
        Shu 2016, *Gaussian mixture VAE: lessons in variational inference, generative models, and deep nets*;
        Kingma et al. 2014, arXiv:1406.5298.

    Example:
        >>> pair = pv.GMVAE(
        ...     cluster_prior=pv.priors.Categorical(3),
        ...     prior=pv.mlp(3, fam.Normal(2), hidden=()),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
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
        cluster_prior: nn.Module | Distribution,
        prior: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        code: nn.Module,
    ) -> None:
        super().__init__()
        self.cluster_prior, self.prior, self.likelihood = as_prior(cluster_prior), prior, likelihood
        self.encoder, self.classifier, self.code = encoder, classifier, code

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.cluster_prior())
            z = pyro.sample("z", self.prior(self.code(y)))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})
            return pyro.sample("z", self.encoder(x, self.code(y)))
