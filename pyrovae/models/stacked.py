"""The stacked semi-supervised VAE, "M1+M2": the model of few labels applied to the latent variables of a VAE."""

from __future__ import annotations

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.errors import OptionError
from pyrovae.models.ssvae import SSVAE, positive_alpha
from pyrovae.models.vae import VAE
from pyrovae.priors import as_prior


class StackedSSVAE(nn.Module):
    """Stacked semi-supervised VAE, "M1+M2": model `p(y) p(z2) p(z1|z2,y) p(x|z1)`, guide `q(z1|x) q(y|z1) q(z2|z1,y)`.

    The data are x, `(N, *event)`, and class numbers y, `(N,)`, -1 where unknown, as in `SSVAE`. Both layers can be fitted
    together, or one after the other, as in the article: first a VAE ("M1"), then an `SSVAE` of its codes ("M2"), which `of`
    joins.

    Args:
        label_prior: `p(y)`, a prior over classes, such as `priors.Categorical(C)`.
        prior: `p(z2)`, a distribution, or a module whose `forward()` returns one.
        lower: `p(z1|z2,y)`, a conditional called as `lower(z2, code)`.
        likelihood: `p(x|z1)`, a conditional called as `likelihood(z1)`.
        encoder: `q(z1|x)`, a conditional called as `encoder(x)`.
        classifier: `q(y|z1)`, a conditional called as `classifier(z1)`, whose family has a finite support.
        upper_encoder: `q(z2|z1,y)`, a conditional called as `upper_encoder(z1, code)`.
        code: Encodes y for the networks, `nets.OneHot(C)`.
        alpha: How many times each labelled row counts in the classifier's term, positive.

    Raises:
        PairError: A prior is neither a distribution nor a module.
        OptionError: `alpha` is not positive.

    References:
        Kingma et al. 2014, arXiv:1406.5298, section 3.2, who fit the two layers one after the other.

    Example:
        >>> pair = pv.StackedSSVAE(
        ...     label_prior=pv.priors.Categorical(3),
        ...     prior=pv.priors.StandardNormal(2),
        ...     lower=pv.mlp((2, 3), fam.Normal(4), hidden=(8,)),
        ...     likelihood=pv.mlp(4, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(4), hidden=(8,)),
        ...     classifier=pv.mlp(4, fam.Categorical((), 3), hidden=(8,)),
        ...     upper_encoder=pv.mlp((4, 3), fam.Normal(2), hidden=(8,)),
        ...     code=pv.nets.OneHot(3),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> y = torch.where(torch.arange(40) < 12, torch.arange(40) % 3, -1)  # 12 labels are known
        >>> fitted = pv.fit(pair, {"x": x, "y": y}, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x, site="z1").shape
        torch.Size([40, 4])
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        lower: nn.Module,
        likelihood: nn.Module,
        encoder: nn.Module,
        classifier: nn.Module,
        upper_encoder: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.lower, self.likelihood, self.encoder = lower, likelihood, encoder
        self.classifier, self.upper_encoder, self.code = classifier, upper_encoder, code
        self.alpha = positive_alpha(alpha)

    @classmethod
    def of(cls, m1: VAE, m2: SSVAE) -> StackedSSVAE:
        """Join a VAE and a model of its codes, in the latent variables of which z1 is x; they share their parts with the pair.

        Given z1, the bound of the pair is that of `m2`, plus `log p(x|z1) - log q(z1|x)`, which `m2` does not enter. So to fit
        `m2` to draws of `m1`'s codes (`transforms.DrawNormal`) is to fit the pair with `m1` as it stands.

        Args:
            m1: A VAE of x, whose prior is left behind.
            m2: An `SSVAE` of its codes.

        Raises:
            OptionError: `m1` is no `VAE`, or `m2` no `SSVAE`.

        Example:
            >>> m1 = pv.VAE(pv.priors.StandardNormal(4), pv.mlp(4, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(4)))
            >>> m2 = pv.SSVAE(
            ...     label_prior=pv.priors.Categorical(3),
            ...     prior=pv.priors.StandardNormal(2),
            ...     likelihood=pv.mlp((2, 3), fam.Normal(4)),
            ...     encoder=pv.mlp((4, 3), fam.Normal(2)),
            ...     classifier=pv.mlp(4, fam.Categorical((), 3)),
            ...     code=pv.nets.OneHot(3),
            ... )
            >>> x, y = torch.rand(40, 6).round(), torch.where(torch.arange(40) < 12, torch.arange(40) % 3, -1)
            >>> first = pv.fit(m1, x, epochs=1, progress=False)
            >>> q = first.pair.encoder(x.to(first.device))
            >>> codes = torch.stack([q.mean, q.stddev], 1).detach()
            >>> draw = pv.transforms.DrawNormal()
            >>> above = pv.fit(m2, {"x": codes, "y": y}, epochs=1, transform=draw, progress=False)
            >>> both = pv.fit(pv.StackedSSVAE.of(m1, m2), {"x": x, "y": y}, epochs=0)  # 0: the weights as they are
            >>> pv.classify(both, x).joint.shape
            torch.Size([40, 3])
        """
        if not isinstance(m1, VAE) or not isinstance(m2, SSVAE):
            raise OptionError(
                f"StackedSSVAE.of joins a VAE and an SSVAE of its codes, got {type(m1).__name__} and {type(m2).__name__}; give "
                "the pairs, not their fits."
            )
        return cls(
            label_prior=m2.label_prior,
            prior=m2.prior,
            lower=m2.likelihood,
            likelihood=m1.likelihood,
            encoder=m1.encoder,
            classifier=m2.classifier,
            upper_encoder=m2.encoder,
            code=m2.code,
            alpha=m2.alpha,
        )

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        known = y
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.label_prior(), obs=y)
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.lower(z2, self.code(y)))
            if known is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|z1", self.classifier(z1), obs=known, infer={"objective_only": True})
            return pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.encoder(x))
            if y is None:
                y = pyro.sample("y", self.classifier(z1), infer={"enumerate": "parallel"})
            return pyro.sample("z2", self.upper_encoder(z1, self.code(y)))
