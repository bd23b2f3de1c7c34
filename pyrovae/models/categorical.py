"""A VAE of discrete codes: several categories, or bits, in place of real numbers.

How the gradient reaches the codes is the choice of the guide's family and of the loss, and nothing here depends on it.
"""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.errors import ShapeError
from pyrovae.priors import as_prior


class CategoricalVAE(nn.Module):
    """VAE of discrete codes: model `p(z) p(x|z)`, guide `q(z|x)`, z L one-hot codes of K categories, or bits.

    The data are x, `(N, *event)`; z is `(N, L, K)`, or `(N, L)` for bits. The graph is that of `VAE`. What trains the guide:

    - `fam.OneHotCategorical` (or `fam.Bernoulli` for bits): the score function, less the mean over other draws or rows
      (`Trace_ELBO`), less what a network expects (`baselines.learned`, NVIL), or with `IWELBO` VIMCO's baseline; unbiased.
    - `fam.RelaxedOneHotCategorical` (`fam.RelaxedBernoulli`): relaxed draws (Gumbel-softmax), whose temperature
      `schedules.cooling` lowers; a relaxed bound in training, and the discrete guide in evaluation. With `hard=True` exact
      draws with the gradient of relaxed ones.
    - `fam.StraightThroughOneHotCategorical` (`fam.StraightThroughBernoulli`): exact draws with the gradient of probabilities.
    - where K^L is small, the sum over all values of z: `pv.Pair(pair.model, pyro.infer.config_enumerate(pair.guide))`.

    Args:
        prior: `p(z)`, `priors.OneHotCategorical((L, K))`, `priors.Bernoulli(L)`, or a distribution.
        likelihood: `p(x|z)`, a conditional called as `likelihood(z)` with rows of L K numbers (of bits L numbers).
        encoder: `q(z|x)`, a conditional called as `encoder(x)`, of the same event shape as the prior.

    Raises:
        PairError: `prior` is neither a distribution nor a module.
        ShapeError: Prior and encoder are of different event shapes, or the prior is one of single numbers.

    References:
        Jang, Gu and Poole 2017, arXiv:1611.01144; Mnih and Gregor 2014, arXiv:1402.0030.

    Example:
        >>> pair = pv.CategoricalVAE(
        ...     prior=pv.priors.OneHotCategorical((3, 4)),
        ...     likelihood=pv.mlp(12, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.RelaxedOneHotCategorical((3, 4)), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> cooling = pv.schedules.cooling(1.0, 0.5, epochs=1)
        >>> fitted = pv.fit(pair, x, epochs=1, schedule=cooling, engine="eager", progress=False)
        >>> pv.encode(fitted, x).shape, pv.generate(fitted, 5).shape  # probabilities of each code; new rows
        (torch.Size([40, 3, 4]), torch.Size([5, 6]))
    """

    def __init__(self, prior: nn.Module | Distribution, likelihood: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.prior, self.likelihood, self.encoder = as_prior(prior), likelihood, encoder
        codes = self.prior().event_shape
        if not codes:
            raise ShapeError(
                "CategoricalVAE needs a prior over rows of codes or bits, got one of single numbers: use "
                "priors.OneHotCategorical((L, K)), or priors.Bernoulli(L)."
            )
        if (found := getattr(encoder, "event_shape", codes)) != codes:
            raise ShapeError(
                f"CategoricalVAE needs prior and encoder of one event shape, got {tuple(codes)} and {tuple(found)}. Build "
                "both for (L, K), L codes of K categories, or for L bits."
            )

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            p = self.prior()
            z = pyro.sample("z", p)  # (N, L, K), or (N, L)
            return pyro.sample("x", self.likelihood(z.flatten(-len(p.event_shape))), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))
