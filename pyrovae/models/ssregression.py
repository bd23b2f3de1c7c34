"""Semi-supervised regression: some rows have a measured number."""

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.models.ssvae import positive_alpha
from pyrovae.priors import as_prior


class SSRegression(nn.Module):
    """Semi-supervised regression: model `p(y) p(z) p(x|z,y)`, guide `q(y|x) q(z|x,y)`, y real.

    The data are x, `(N, *event)`, and y, `(N,)` numbers or `(N, D)` vectors. `fit` treats y = NaN as unknown and calls the pair
    with y=None for those rows; an unknown y is drawn from the guide. Where y is known, the objective gets the additional term
    `alpha log q(y|x)`, as in `SSVAE`.

    Args:
        label_prior: `p(y)`, a distribution, or a module whose `forward()` returns one.
        prior: `p(z)`, a distribution, or a module whose `forward()` returns one.
        likelihood: `p(x|z,y)`, a conditional called as `likelihood(z, code)`.
        encoder: `q(z|x,y)`, a conditional called as `encoder(x, code)`.
        regressor: `q(y|x)`, a conditional called as `regressor(x)`, whose family is reparameterised and has the support of
            `label_prior`.
        code: Encodes y for the networks: `nets.Column()` for a number, `nn.Identity()` for a vector.
        alpha: How many times each labelled row counts in the regressor's term, positive.

    Raises:
        PairError: A prior is neither a distribution nor a module.
        OptionError: `alpha` is not positive.

    References:
        Kingma et al. 2014, arXiv:1406.5298, here with a density in place of classes.

    Example:
        >>> pair = pv.SSRegression(
        ...     label_prior=pv.priors.StandardNormal(()),
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp((2, 1), fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp((6, 1), fam.Normal(2), hidden=(8,)),
        ...     regressor=pv.mlp(6, fam.Normal(()), hidden=(8,)),
        ...     code=pv.nets.Column(),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> y = torch.where(torch.arange(40) < 12, torch.randn(40), torch.nan)  # 12 numbers are known
        >>> fitted = pv.fit(pair, {"x": x, "y": y}, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x, site="y").shape
        torch.Size([40])
    """

    def __init__(
        self,
        label_prior: nn.Module | Distribution,
        prior: nn.Module | Distribution,
        likelihood: nn.Module,
        encoder: nn.Module,
        regressor: nn.Module,
        code: nn.Module,
        alpha: float = 50.0,
    ) -> None:
        super().__init__()
        self.label_prior, self.prior = as_prior(label_prior), as_prior(prior)
        self.likelihood, self.encoder, self.regressor, self.code = likelihood, encoder, regressor, code
        self.alpha = positive_alpha(alpha)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y is not None:
                with pyro.poutine.scale(scale=self.alpha):
                    pyro.sample("y|x", self.regressor(x), obs=y, infer={"objective_only": True})
            y = pyro.sample("y", self.label_prior(), obs=y)
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, self.code(y)), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.regressor(x))
            return pyro.sample("z", self.encoder(x, self.code(y)))
