"""The vector-quantised VAE: a grid of codes, one of finitely many at each place, chosen by the encoder.

The latent variable is the codes themselves and not their numbers: z is a tensor of real numbers, so that the gradient of the
decoder passes through its value to the encoder, and the same statement `z ~ Codes(p(k), c)` evaluates the guide's codes and
draws new ones. p(z) is a probability, that of the numbers k, and a Delta guide has probability 1.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae._arguments import told
from pyrovae.distributions import Codes
from pyrovae.errors import OptionError, ShapeError
from pyrovae.nets import Quantiser
from pyrovae.priors import as_prior


class VQVAE(nn.Module):
    """Vector-quantised VAE: model `p(z) p(x|z)`, guide a point mass at the codes z nearest to `e(x)`.

    The data are x, `(N, *event)`; z are codes, `(N, *codes.event_shape)`, and p(z) is the probability of their numbers. The
    ELBO is `log p(x|z) + log p(z)`, a bound on log p(x), and with a uniform prior the KL is log K for each code, whatever x
    is. log p(x) by importance sampling is that bound, too, since all draws of the guide are one.

    A learned codebook adds two terms to what a fit ascends, up to constants the codebook's `-|sg(e) - z|^2` and the
    commitment `-beta |e - sg(z)|^2`, where sg stops the gradient; they are no part of p(x, z) and of reported bounds. They
    evaluate the encoder a second time. `nets.FSQ` has neither.

    The second stage learns a prior of the numbers, `priors.Autoregressive`, in one more fit, with everything else frozen::

        pair.requires_grad_(False)
        prior = pv.priors.Autoregressive(codes.num_codes, codes.index_shape)
        pv.fit(pv.VQVAE(prior, pair.likelihood, pair.encoder, pair.codes), x)

    Args:
        prior: `p(k)`, a prior over arrays of code numbers, `(*codes.index_shape)`, such as
            `priors.Categorical(codes.num_codes, event_shape=codes.index_shape)`.
        likelihood: `p(x|z)`, a conditional called as `likelihood(codes.vectors(z))`, with `(N, width, *grid)`.
        encoder: `e(x)`, a network with out_shape `(width, *grid)`, called as `encoder(x)`.
        codes: The quantiser, such as `nets.FSQ(levels, grid)`.

    Raises:
        PairError: `prior` is neither a distribution nor a module.
        ShapeError: Prior, encoder and quantiser are not of the same grid, or the prior has another number of codes.

    References:
        van den Oord, Vinyals and Kavukcuoglu 2017, arXiv:1711.00937; Mentzer et al. 2023, arXiv:2309.15505.

    Example:
        >>> codes = pv.nets.FSQ((5, 3), grid=2)
        >>> pair = pv.VQVAE(
        ...     prior=pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape),
        ...     likelihood=pv.Conditional(pv.nets.Behind(pv.nets.Flat((2, 2)), pv.nets.MLP(4, (1, 6))), fam.Bernoulli(6)),
        ...     encoder=pv.nets.MLP(6, (codes.width, *codes.grid)),
        ...     codes=codes,
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.generate(fitted, 5).shape, codes.indices(pv.encode(fitted, x)).shape
        (torch.Size([5, 6]), torch.Size([40, 2]))
        >>> torch.allclose(pv.kl_by_site(fitted, x)["z"], 2 * torch.tensor(15.0).log())
        True
    """

    def __init__(
        self, prior: nn.Module | Distribution, likelihood: nn.Module, encoder: nn.Module, codes: Quantiser
    ) -> None:
        super().__init__()
        self.prior, self.likelihood, self.encoder, self.codes = as_prior(prior), likelihood, encoder, codes
        self._check()

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Codes(self.prior(), self.codes))  # (N, *codes.event_shape)
            if self.codes.learned:
                e, q = self.codes.residuals(self.encoder(x), z), self.codes.lookup(self.codes.indices(z))
                near = self._normal(z.detach(), self.codes.commitment)
                pyro.sample("commitment", near, obs=e, infer={"objective_only": True})
                pyro.sample("codebook", self._normal(q, 1.0), obs=e.detach(), infer={"objective_only": True})
            return pyro.sample("x", self.likelihood(self.codes.vectors(z)), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            z = self.codes(self.encoder(x))
            return pyro.sample("z", dist.Delta(z, event_dim=len(self.codes.event_shape)))

    def _normal(self, code: Tensor, weight: float) -> TorchDistributionMixin:
        """A Normal with log-density `-weight |e - code|^2` up to a constant."""
        return dist.Normal(code, code.new_full((), (2 * weight) ** -0.5)).to_event(len(self.codes.event_shape))

    def _check(self) -> None:
        """Raise ShapeError unless prior, encoder and quantiser are of the same grid and number of codes."""
        codes = self.codes
        if not all(hasattr(codes, name) for name in ("width", "grid", "index_shape", "num_codes")) or isinstance(
            codes, type
        ):
            raise OptionError(
                f"VQVAE needs a quantiser as codes, such as nets.FSQ((8, 5, 5, 5), grid), got {told(codes)}."
            )
        grid = torch.Size((codes.width, *codes.grid))
        out, numbers = getattr(self.encoder, "out_shape", grid), getattr(self.prior, "event_shape", codes.index_shape)
        classes = getattr(self.prior, "num_classes", codes.num_codes)
        if tuple(out) != tuple(grid):
            raise ShapeError(
                f"VQVAE needs an encoder with out_shape={tuple(grid)}, as {codes} takes it, got {tuple(out)}. Build it "
                "with out_shape=(codes.width, *codes.grid)."
            )
        if tuple(numbers) != tuple(codes.index_shape) or classes != codes.num_codes:
            raise ShapeError(
                f"VQVAE needs a prior of arrays {tuple(codes.index_shape)} of {codes.num_codes} classes, the code numbers of "
                f"{codes}, got {tuple(numbers)} of {classes}. Build the prior for codes.num_codes and codes.index_shape."
            )
