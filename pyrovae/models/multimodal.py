"""A VAE of rows with two kinds of data, such as image and words, either of which may be missing."""

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.distributions import ObservedOnly, ProductOfExperts
from pyrovae.errors import PairError
from pyrovae.nets import is_seen, without_gaps
from pyrovae.priors import as_prior


class MultimodalVAE(nn.Module):
    """VAE of two kinds of data with one code: model `p(z) p(x1|z) p(x2|z)`, guide `q(z|x1,x2)` of two encoders.

    The data are x1, `(N, *event1)`, and x2, `(N, *event2)`; a row of which one kind is missing has NaN there, so that
    classes come as floats, too. Each kind has an encoder of its own, which says what its data add to the prior, and the
    encoder of a kind that is missing says nothing. By default the guide is the product of prior and encoders, as the posterior
    is, `p(z) q_1(z|x1) q_2(z|x2) / c` (MVAE). Trained on complete rows alone, the encoders of a product need not make sense one
    by one: let some rows keep one kind in every step, by `pv.transforms.HideKinds("x1", "x2")`. In a mixture of the products
    with q_1, with q_2 and with both (MoPoE, `joint=pv.distributions.MixtureOfProducts()`) they learn that from complete rows,
    too. `pv.impute` then draws either kind given the other.

    Args:
        prior: `p(z)`, a diagonal Normal, or a module whose `forward()` returns one.
        likelihood1: `p(x1|z)`, a conditional of independent elements. It is not wrapped in `pv.observed_only`.
        likelihood2: `p(x2|z)`, another one.
        encoder1: `q_1(z|x1)`, a conditional that returns a diagonal Normal, called with zeros where all of x1 is missing. Where
            single entries may be missing, it must take NaN, as a net in `nets.WithMask` does.
        encoder2: `q_2(z|x2)`, another one.
        joint: What makes one distribution of prior and encoders: `distributions.ProductOfExperts()`, the default, or
            `MixtureOfProducts()`, or a callable of one's own that takes `(experts, seen)` as these do.

    Raises:
        PairError: `prior` is neither a distribution nor a module, or `joint` cannot be called; raised by the guide where prior
            or encoders are not diagonal Normals.

    References:
        Wu and Goodman 2018, arXiv:1802.05335. Hinton 2002, doi:10.1162/089976602760128018. Sutter, Daunhawer and Vogt 2021,
        arXiv:2105.02470.

    Example:
        >>> pair = pv.MultimodalVAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood1=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     likelihood2=pv.mlp(2, fam.Normal(3), hidden=(8,)),
        ...     encoder1=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ...     encoder2=pv.mlp(3, fam.Normal(2), hidden=(8,)),
        ... )
        >>> rows = {"x1": torch.bernoulli(torch.full((40, 6), 0.4)), "x2": torch.randn(40, 3)}
        >>> rows["x2"][30:] = torch.nan  # ten rows of which only x1 is known
        >>> hide = pv.transforms.HideKinds("x1", "x2")
        >>> fitted = pv.fit(pair, rows, epochs=1, transform=hide, engine="eager", progress=False)
        >>> pv.impute(fitted, rows, seed=0).mean["x2"].shape
        torch.Size([40, 3])
    """

    def __init__(
        self,
        prior: nn.Module | Distribution,
        likelihood1: nn.Module,
        likelihood2: nn.Module,
        encoder1: nn.Module,
        encoder2: nn.Module,
        joint: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.prior, self.likelihood1, self.likelihood2 = as_prior(prior), likelihood1, likelihood2
        self.encoder1, self.encoder2 = encoder1, encoder2
        if isinstance(joint, type) or not (joint is None or callable(joint)):
            got = f"the class {joint.__name__}" if isinstance(joint, type) else repr(joint)
            raise PairError(
                f"`joint` makes one distribution of experts, as distributions.MixtureOfProducts() does, got {got}: pass such "
                "an object, or leave it out."
            )
        self.joint = ProductOfExperts() if joint is None else joint

    def model(self, x1: Tensor, x2: Tensor) -> Tensor:
        with pyro.plate("data", len(x1)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x1", ObservedOnly(self.likelihood1(z)), obs=x1)
            return pyro.sample("x2", ObservedOnly(self.likelihood2(z)), obs=x2)

    def guide(self, x1: Tensor, x2: Tensor) -> Tensor:
        experts = [self.prior(), self.encoder1(without_gaps(x1)), self.encoder2(without_gaps(x2))]
        with pyro.plate("data", len(x1)):
            return pyro.sample("z", self.joint(experts, [None, is_seen(x1), is_seen(x2)]))
