"""A VAE of sequences, whose latent variable is a Markov chain."""

from __future__ import annotations

from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.conditionals import Conditional, mlp
from pyrovae.distributions import MarkovChain, ObservedOnly, normal_where
from pyrovae.errors import OptionError
from pyrovae.families import Family, Normal
from pyrovae.families.base import as_family
from pyrovae.nets import BackwardGRU, GatedStep, anything_from
from pyrovae.priors import StandardNormal, as_prior


class DeepMarkovVAE(nn.Module):
    """VAE of sequences: model `p(z_1) prod_t p(z_t|z_(t-1)) p(x_t|z_t)`, guide `prod_t q(z_t|z_(t-1), x_t, ..., x_T)`.

    The data are x, `(N, T, D)`; shorter sequences end with NaN, and a gap is NaN, too. The latent site is z, `(T, L)` for each
    row. As the posterior does, the guide looks at the value before and at what is still to come, which a recurrent network has
    read from the end; where nothing comes any more, it is the model's own step, so that what follows a sequence costs nothing.

    Args:
        initial: `p(z_1)`, a diagonal Normal, or a module whose `forward()` returns one.
        transition: `p(z_t|z_(t-1))`, a conditional that returns a diagonal Normal, called as `transition(z)`.
        likelihood: `p(x_t|z_t)`, a conditional of independent elements, called as `likelihood(z)` for all steps at once. It is
            not wrapped in `pv.observed_only`.
        reader: From x to h, `(N, T, H)`: what x_t and all that follows say, such as `nets.BackwardGRU(D, H)`; it takes NaN.
        combiner: `q(z_t|z_(t-1), h_t)`, a conditional that returns a diagonal Normal, called as `combiner(z, h)`; for z_1 with
            zeros in place of z_0.

    Raises:
        PairError: `initial` is neither a distribution nor a module; raised by the guide where it, `transition` or `combiner`
            is not a diagonal Normal.

    References:
        Krishnan, Shalit and Sontag 2017, arXiv:1609.09869.

    Example:
        >>> pair = pv.DeepMarkovVAE.of_sequences(fam.Bernoulli(6), latent=2, hidden=8, width=8)
        >>> x = torch.bernoulli(torch.full((40, 5, 6), 0.4))
        >>> x[:10, 3:] = torch.nan  # ten sequences of three steps
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x).shape, pv.generate(fitted, 3).shape
        (torch.Size([40, 5, 2]), torch.Size([3, 5, 6]))
    """

    def __init__(
        self,
        initial: nn.Module | Distribution,
        transition: nn.Module,
        likelihood: nn.Module,
        reader: nn.Module,
        combiner: nn.Module,
    ) -> None:
        super().__init__()
        self.initial, self.transition, self.likelihood = as_prior(initial), transition, likelihood
        self.reader, self.combiner = reader, combiner

    @classmethod
    def of_sequences(cls, family: Family, latent: int, hidden: int = 100, width: int = 100) -> DeepMarkovVAE:
        """The model of sequences of vectors, with perceptrons, a gated transition and a GRU.

        Args:
            family: The family of x_t, with the event shape `(D,)`.
            latent: L, the number of latent dimensions of a step.
            hidden: The width of hidden layers.
            width: H, the number of units of the GRU.

        Raises:
            OptionError: The family has another event shape, or is none.
            ShapeError: A number is not a positive int.
        """
        if len(as_family(family).event_shape) != 1:
            raise OptionError(
                "A step of a sequence is a vector of D numbers, and the family has the event shape "
                f"{tuple(family.event_shape)}: flatten each step, or build it of parts, DeepMarkovVAE(initial=..., ...)."
            )
        (in_features,) = family.event_shape
        return cls(
            initial=StandardNormal(latent),
            transition=Conditional(GatedStep(latent, hidden), Normal(latent)),
            likelihood=mlp(latent, family, (hidden,)),
            reader=BackwardGRU(in_features, width),
            combiner=mlp((latent, width), Normal(latent), (hidden,)),
        )

    def model(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            chain = MarkovChain(self.initial(), lambda z, t: self.transition(z), x.shape[1])
            z = pyro.sample("z", chain)  # (N, T, L)
            return pyro.sample("x", ObservedOnly(self.likelihood(z).to_event(1)), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        h, more = self.reader(x), anything_from(x)  # (N, T, H), and whether there is more to come
        first = self.initial()

        def following(z: Tensor, t: Any) -> Any:
            return normal_where(more[..., t], self.combiner(z, h[..., t, :]), self.transition(z))

        with pyro.plate("data", len(x)):
            start = self.combiner(h.new_zeros(len(x), *first.event_shape), h[..., 0, :])
            return pyro.sample("z", MarkovChain(normal_where(more[..., 0], start, first), following, x.shape[1]))
