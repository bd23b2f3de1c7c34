"""The conditional VAE, in which every distribution, but perhaps the prior, depends on a known c."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.priors import as_conditional_prior


class CVAE(nn.Module):
    """Conditional VAE: model `p(z|c) p(x|z,c)`, guide `q(z|x,c)`.

    The data are x, `(N, *event)`, and c, `(N, *condition)`, which is always given and never a random variable.

    Args:
        condition: Encodes c for the three networks: `nets.OneHot(C)` for a label, `nn.Identity()` for a vector, or a
            network for an image.
        prior: `p(z|c)`, a conditional called as `prior(code)`; or a `p(z)`, a distribution or a module that takes no parents,
            such as `priors.StandardNormal(8)`. Then z is, in the model, independent of c, as where c is a batch whose effect
            codes are not to tell.
        likelihood: `p(x|z,c)`, a conditional called as `likelihood(z, code)`.
        encoder: `q(z|x,c)`, a conditional called as `encoder(x, code)`.

    References:
        Sohn, Lee and Yan 2015, *Learning structured output representation using deep conditional generative models*.

    Example:
        >>> cvae = pv.CVAE(
        ...     condition=pv.nets.OneHot(3),
        ...     prior=pv.mlp(3, fam.Normal(2), hidden=(8,)),
        ...     likelihood=pv.mlp((2, 3), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(8,)),
        ... )
        >>> x, c = torch.bernoulli(torch.full((40, 6), 0.4)), torch.arange(40) % 3
        >>> fitted = pv.fit(cvae, {"x": x, "c": c}, epochs=1, engine="eager", progress=False)
        >>> pv.generate(fitted, 5, given={"c": torch.full((5,), 2)}).shape
        torch.Size([5, 6])
    """

    def __init__(
        self, condition: nn.Module, prior: nn.Module | Distribution, likelihood: nn.Module, encoder: nn.Module
    ) -> None:
        super().__init__()
        self.condition, self.prior = condition, as_conditional_prior(prior)
        self.likelihood, self.encoder = likelihood, encoder

    def model(self, x: Tensor, c: Tensor) -> Tensor:
        code = self.condition(c)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(code))
            return pyro.sample("x", self.likelihood(z, code), obs=x)

    def guide(self, x: Tensor, c: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x, self.condition(c)))
