"""Functions of the KL terms that disentangle: they look at how the codes of a minibatch are distributed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from pyrovae._arguments import as_choice, as_names, as_number
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.aggregate import ESTIMATORS, check_codes, check_several_rows, code_sites, codes_of, estimate
from pyrovae.objectives.enumeration import dims_of
from pyrovae.objectives.kl_functions import Minibatch
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import PairLike


class total_correlation:
    """`alpha I(x; z) + beta TC(z) + gamma sum_d KL(q(z_d) || p(z_d))` in place of the KL: the objective of the beta-TCVAE.

    The three parts of `KL = I(x; z) + TC(z) + sum_d KL(q(z_d) || p(z_d))` are the mutual information of row and code, the total
    correlation of the code's dimensions under the aggregate posterior q(z), and the distance of each dimension to its prior. A
    weight above 1 on the second alone makes dimensions independent of each other without making them say less. Where the
    prior's dimensions depend on each other, the third part is what is left of the KL.

    For each site, q(z) is estimated from the minibatch at its draws. Computed are `gamma KL + (beta - gamma) TC + (alpha -
    gamma) I`, with the KL in closed form where there is one, so that with equal weights nothing is estimated. It costs K B^2
    operations for each latent dimension.

    Args:
        weight: beta.
        information: alpha.
        dimension_wise: gamma.
        estimator: "weighted" weighs the densities of all rows of the minibatch by 1/(N B), as in the experiments of Chen et al.
            Its gradients are those of a data set that is the minibatch alone, and its values are off by a constant.
            "stratified" weighs a row's own density by 1/N and the others equally, so that the estimate of q(z) has no bias.
        sites: The names of the sites concerned, by default all that the guide draws for each row. Others stay as they are.

    Raises:
        OptionError: A weight is negative or not finite, or the estimator is unknown.
        PairError: At the first step, for a site that the pair does not have, or that the guide does not draw from a Normal of
            independent dimensions given the row alone; for a minibatch of one row.

    References:
        Chen et al. 2018, arXiv:1802.04942; Hoffman and Johnson 2016, *ELBO surgery*.

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> loss = pv.Trace_ELBO(kl=pv.kl.total_correlation(6.0))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=loss, progress=False)
    """

    def __init__(
        self,
        weight: float,
        information: float = 1.0,
        dimension_wise: float = 1.0,
        estimator: str = "weighted",
        sites: str | Sequence[str] | None = None,
    ) -> None:
        self.weight = float(as_number("weight", weight, least=0))
        self.information = float(as_number("information", information, least=0))
        self.dimension_wise = float(as_number("dimension_wise", dimension_wise, least=0))
        self.estimator = as_choice("estimator", estimator, ESTIMATORS)
        self.sites = as_names("sites", sites) or ()

    def check(self, pair: PairLike, batch: Batch, layout: Layout) -> None:
        """PairError unless the guide draws the sites from Normals given the rows alone. A fit asks before its first step."""
        check_codes(pair, batch, layout, self.sites or None)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        changed = dict(terms)
        for name in code_sites(minibatch.terms, self.sites or None):
            found = estimate(codes_of(minibatch.terms, name), minibatch.num_rows, self.estimator)
            changed[name] = (
                self.dimension_wise * terms[name]
                + (self.weight - self.dimension_wise) * found.total_correlation
                + (self.information - self.dimension_wise) * found.information
            )
        return changed

    def __repr__(self) -> str:
        rest = (self.information, self.dimension_wise, self.estimator, *([self.sites] if self.sites else []))
        return f"total_correlation({', '.join(map(repr, (self.weight, *rest)))})"


class density_ratio:
    """`KL + gamma TC(z)`, with the total correlation by a discriminator: the objective of the FactorVAE, for any family of q.

    A network D that tells codes of a minibatch from codes whose dimensions have been shuffled over rows, each for itself, has
    the logit `log q(z) - sum_d log q(z_d)` at best, whose mean is the total correlation. It learns in the same step, by a
    logistic loss added to the objective with value 0: that loss has no gradient to the pair, and the estimate none to D. Its
    weights belong to the fit, not to the pair: they are in checkpoints, and not in what is saved. The same optimizer trains
    both; each gets the KL weight of a schedule as a factor.

    Args:
        weight: gamma.
        discriminator: D, a module from codes `(*batch, D)` to one logit `(*batch, 1)`, such as `pv.nets.MLP(D, 1)`. A fit
            trains it in place, so give each fit its own.
        site: The name of the site, by default the one that the guide draws for each row.

    Raises:
        OptionError: The weight is negative or not finite, or the discriminator is no module, or has no parameter to train.
        PairError: At the first step, for a site that the pair does not have, or several to choose from; for a minibatch of one
            row.

    References:
        Kim and Mnih 2018, arXiv:1802.05983, algorithm 2. They shuffle the codes of a second minibatch, and train D with Adam at
        a rate of its own.

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> kl = pv.kl.density_ratio(10.0, pv.nets.MLP(2, 1, hidden=(8,)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=kl), progress=False)
    """

    def __init__(self, weight: float, discriminator: nn.Module, site: str | None = None) -> None:
        self.weight = float(as_number("weight", weight, least=0))
        if not isinstance(discriminator, nn.Module):
            raise OptionError(f"density_ratio needs a module as discriminator, got {discriminator!r}.")
        if not any(parameter.requires_grad for parameter in discriminator.parameters()):
            raise OptionError(
                f"density_ratio trains its discriminator, and {type(discriminator).__name__} has no parameter to train."
            )
        self.discriminator, self.site = discriminator, site
        self.sites = as_names("site", site) or ()

    @property
    def trains(self) -> tuple[nn.Module, ...]:
        """What a fit trains besides the pair."""
        return (self.discriminator,)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        run = minibatch.terms
        found = code_sites(run, self.sites or None)
        if not found:  # it is observed in this group of rows
            return dict(terms)
        if len(found) > 1 or not run.sites[found[0]].local or run.sites[found[0]].enum_dim is not None:
            raise PairError(
                f"density_ratio looks at one site that is drawn for each row: choose by site=..., of {found}."
            )
        term = run.sites[found[0]]
        if term.q is not None and dims_of(term.q.log_prob, run):
            raise PairError(
                f"density_ratio needs a site with one draw for each row, and {term.name!r} has one for each value of an "
                "enumerated site on which it depends: remove the mark of that site to draw it, or name another one, site=..."
            )
        codes = run.rows(term.value, tuple(term.either.fn.event_shape)).flatten(2)  # (K, B, D)
        check_several_rows(codes.shape[1])
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        ratio = functional_call(self.discriminator, fixed, (codes,))
        here = codes.detach()
        shuffled = here.gather(1, torch.rand_like(here).argsort(1))
        loss = 0.5 * (softplus(-self.discriminator(here)) + softplus(self.discriminator(shuffled)))
        if ratio.shape != (*codes.shape[:2], 1):
            raise PairError(
                f"The discriminator must return one logit for each row, {(*codes.shape[:2], 1)}, got {tuple(ratio.shape)}."
            )
        changed = terms[term.name] + (self.weight * ratio + loss - loss.detach()).squeeze(-1)
        return {**terms, term.name: changed}

    def __repr__(self) -> str:
        site = f", site={self.site!r}" if self.site else ""
        return f"density_ratio({self.weight!r}, {type(self.discriminator).__name__}{site})"


class dip:
    """`KL + a sum_{i != j} C_ij^2 + b sum_i (C_ii - 1)^2` for each site: the disentangled inferred prior of DIP-VAE.

    C is a covariance of the codes of a minibatch: that of their means, `Cov(E[z | x])` (DIP-VAE-I), or that of the aggregate
    posterior, `Cov(E[z | x]) + E[Var(z | x)]` (DIP-VAE-II). The prior is taken to be N(0, I).

    Args:
        off_diagonal: a, in nats.
        diagonal: b, in nats. In the reference it is ten times a for the covariance of means, and a for that of codes.
        of: "means" or "codes".
        sites: The names of the sites concerned, by default all that the guide draws for each row. Others stay as they are.

    Raises:
        OptionError: A weight is negative or not finite, or `of` is neither of the two.
        PairError: At the first step, as for `total_correlation`.

    References:
        Kumar, Sattigeri and Balakrishnan 2018, arXiv:1711.00848.

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=pv.kl.dip(10.0, 10.0)), progress=False)
    """

    def __init__(
        self, off_diagonal: float, diagonal: float, of: str = "codes", sites: str | Sequence[str] | None = None
    ) -> None:
        self.off_diagonal = float(as_number("off_diagonal", off_diagonal, least=0))
        self.diagonal = float(as_number("diagonal", diagonal, least=0))
        self.of = as_choice("of", of, ("means", "codes"))
        self.sites = as_names("sites", sites) or ()

    def check(self, pair: PairLike, batch: Batch, layout: Layout) -> None:
        """PairError unless the guide draws the sites from Normals given the rows alone. A fit asks before its first step."""
        check_codes(pair, batch, layout, self.sites or None)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> dict[str, Tensor]:
        changed = dict(terms)
        for name in code_sites(minibatch.terms, self.sites or None):
            codes = codes_of(minibatch.terms, name)
            check_several_rows(codes.loc.shape[1])
            centred = codes.loc - codes.loc.mean(1, keepdim=True)
            covariance = centred.transpose(1, 2) @ centred / centred.shape[1]  # (K, D, D)
            variances = covariance.diagonal(dim1=1, dim2=2)
            others = covariance.square().sum((1, 2)) - variances.square().sum(1)
            if self.of == "codes":
                variances = variances + codes.scale.square().mean(1)
            penalty = self.off_diagonal * others + self.diagonal * (variances - 1).square().sum(1)
            changed[name] = terms[name] + penalty.unsqueeze(1)
        return changed

    def __repr__(self) -> str:
        sites = f", {self.sites!r}" if self.sites else ""
        return f"dip({self.off_diagonal!r}, {self.diagonal!r}, {self.of!r}{sites})"
