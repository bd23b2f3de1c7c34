"""Functions of the per-site KL terms, for `Trace_ELBO(kl=...)`: they keep latent variables in use, or disentangle them.

Such a function takes a dict from site to KL term in nats, of shape `(K, N)` for a local site and `(K,)` for a global one, and
returns it changed; `(K, 1)` is one value for every row. A function of two required arguments also gets the KL weight, as a
0-d tensor; since a step is traced only once, it must branch on the weight by `torch.where`, not by `if`. A function of three
also gets the run that the terms come from, a `Minibatch`. Any function will do:
`kl=lambda terms: {**terms, "y": terms["y"].clamp_min(0.5)}`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.aggregate import ESTIMATORS, check_codes, check_several_rows, code_sites, codes_of, estimate
from pyrovae.objectives.terms import Terms
from pyrovae.pair.batch import Batch
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import PairLike

KLFunction = Callable[..., Mapping[str, Tensor]]  # of (terms), (terms, weight) or (terms, weight, minibatch)

__all__ = [
    "KLFunction",
    "Minibatch",
    "balanced",
    "beta",
    "capacity",
    "chain",
    "density_ratio",
    "dip",
    "free_bits",
    "total_correlation",
]


class Minibatch(NamedTuple):
    """What a function of the KL terms may look at besides these: a run of the pair on a minibatch.

    Attributes:
        terms: The run, as `pv.terms` returns it: the draws of all sites, and their distributions.
        num_rows: N, the number of rows of the whole data set, or of the group of rows that the minibatch is from.

    Example:
        >>> def small_codes(kl, weight, minibatch):
        ...     return {"z": kl["z"] + 0.1 * minibatch.terms.sites["z"].value.square().sum(-1)}
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=small_codes), progress=False)
    """

    terms: Terms
    num_rows: int


class free_bits:
    """`max(nats, mean KL)` for each site: below its `nats` a KL term has no gradient, so ignoring the variable gains nothing.

    The mean is over the rows and particles of a minibatch, and separate for each group of rows. If the guide draws sites in
    another order than the model, the KL term of a lower level is small when the level above is informative, and a floor would
    then also hold back p(lower | upper): name the upper levels only.

    Args:
        nats: One number for all sites, or a dict by site; sites that are not named stay as they are. In nats per row for a
            local site, in nats for the whole data set for a global one.

    Raises:
        OptionError: A number is negative or not finite.
        PairError: At the first step, for a site that the pair does not have.

    References:
        Kingma et al. 2016, arXiv:1606.04934, appendix C.8.

    Example:
        >>> floor = pv.kl.free_bits(0.5)
        >>> floor({"z": torch.tensor([[0.1, 0.3, 0.2]])})
        {'z': tensor([[0.5000]])}
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=floor), progress=False)
    """

    def __init__(self, nats: float | Mapping[str, float]) -> None:
        self.nats = _numbers(nats, "free_bits needs nats of at least 0", zero=True)
        self.sites = tuple(self.nats) if isinstance(self.nats, dict) else ()

    def __call__(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        floors = self.nats if isinstance(self.nats, dict) else dict.fromkeys(terms, self.nats)
        return {**terms, **{name: _mean(terms[name]).clamp_min(floors[name]) for name in floors if name in terms}}

    def __repr__(self) -> str:
        return f"free_bits({self.nats!r})"


class balanced:
    """`gamma_l KL_l` for each level l while the KL weight is below 1, so that no level of a hierarchy is ignored early on.

    `gamma_l` is proportional to `(|mean KL_l over the minibatch| + 0.01) / size_l`, carries no gradient and has mean 1 over the
    local sites: a level with little information pays little. Groups of rows are balanced separately, and global sites, which
    belong to no row, are unchanged. From KL weight 1 on, and so without a warm-up of that weight, it changes nothing.

    Args:
        sizes: A size for each site, 1 for those not named; in the reference they grow with the resolution of a level.

    Raises:
        OptionError: `sizes` is not a dict, or a size is not positive.
        PairError: At the first step, for a site that the pair does not have.

    References:
        Vahdat and Kautz 2020, arXiv:2007.03898, appendix A.

    Example:
        >>> terms = {"z1": torch.full((1, 2), 0.99), "z2": torch.full((1, 2), 2.99)}
        >>> pv.kl.balanced()(terms, torch.tensor(0.5))
        {'z1': tensor([[0.4950, 0.4950]]), 'z2': tensor([[4.4850, 4.4850]])}
        >>> pv.kl.balanced()(terms, torch.tensor(1.0))
        {'z1': tensor([[0.9900, 0.9900]]), 'z2': tensor([[2.9900, 2.9900]])}
    """

    def __init__(self, sizes: Mapping[str, float] | None = None) -> None:
        if not isinstance(sizes or {}, Mapping):
            raise OptionError(f"balanced needs sizes as a dict by site, got {sizes!r}.")
        found = _numbers(sizes or {}, "balanced needs positive sizes", zero=False)
        self.sizes, self.sites = found, tuple(found)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
        local = {name: kl for name, kl in terms.items() if kl.dim() == 2}
        if not local:
            return dict(terms)
        shares = torch.stack([(kl.mean().abs() + 0.01) / self.sizes.get(name, 1.0) for name, kl in local.items()])
        gammas = torch.where(weight < 1, shares / shares.mean(), 1.0).detach()
        return {**terms, **{name: gamma * kl for gamma, (name, kl) in zip(gammas, local.items())}}

    def __repr__(self) -> str:
        return f"balanced({self.sizes or ''})"


class beta:
    """`beta KL` for each site: the objective of the beta-VAE, which presses the codes of all rows towards the prior.

    With a KL weight from a schedule, the two are multiplied.

    Args:
        weight: beta, one number for all sites, or a dict by site; sites that are not named stay as they are.

    Raises:
        OptionError: A weight is negative or not finite.
        PairError: At the first step, for a site that the pair does not have.

    References:
        Higgins et al. 2017, *beta-VAE: learning basic visual concepts with a constrained variational framework*, ICLR.

    Example:
        >>> pv.kl.beta(4.0)({"z": torch.tensor([[0.5, 1.0]])})
        {'z': tensor([[2., 4.]])}
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=pv.kl.beta(4.0)), progress=False)
    """

    def __init__(self, weight: float | Mapping[str, float]) -> None:
        self.weight = _numbers(weight, "beta needs a weight of at least 0", zero=True)
        self.sites = tuple(self.weight) if isinstance(self.weight, dict) else ()

    def __call__(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = self.weight if isinstance(self.weight, dict) else dict.fromkeys(terms, self.weight)
        return {**terms, **{name: weights[name] * terms[name] for name in weights if name in terms}}

    def __repr__(self) -> str:
        return f"beta({self.weight!r})"


class capacity:
    """`gamma |mean KL - C|` for each site, where the capacity C grows during the fit: the code takes in what pays most first.

    C is `weight * nats`, where the KL weight of the schedule, such as `pv.schedules.kl_warmup(epochs)`, is the share of the
    capacity that is open, and multiplies nothing at the sites concerned; without a schedule it is `nats` from the start. The
    mean is over the rows and particles of a minibatch, and separate for each group of rows.

    Args:
        nats: C at its largest, in nats per row: one number for all local sites, or a dict by site. Other sites stay as they
            are, with the KL weight.
        gamma: The price of a nat above or below the capacity, positive.

    Raises:
        OptionError: A number is negative or not finite.
        PairError: At the first step, for a site that the pair does not have.

    References:
        Burgess et al. 2018, arXiv:1804.03599. They take gamma = 1000 and let C grow to 25 nats.

    Example:
        >>> kl = pv.kl.capacity(25.0, gamma=10.0)
        >>> kl({"z": torch.tensor([[4.0, 8.0]])}, torch.tensor(0.2))  # a mean of 6 nats where 5 are open
        {'z': tensor([[10.]])}
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> growing = pv.schedules.kl_warmup(2)
        >>> fitted = pv.fit(vae, x, epochs=3, loss=pv.Trace_ELBO(kl=kl), schedule=growing, progress=False)
    """

    applies_weight = True

    def __init__(self, nats: float | Mapping[str, float], gamma: float = 100.0) -> None:
        self.nats = _numbers(nats, "capacity needs nats of at least 0", zero=True)
        self.gamma = _numbers(gamma, "capacity needs a positive gamma", zero=False)
        self.sites = tuple(self.nats) if isinstance(self.nats, dict) else ()

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
        local = [name for name, kl in terms.items() if kl.dim() == 2]
        nats = self.nats if isinstance(self.nats, dict) else dict.fromkeys(local, self.nats)
        return {
            name: self.gamma * (_mean(kl) - weight * nats[name]).abs() if name in nats else weight * kl
            for name, kl in terms.items()
        }

    def __repr__(self) -> str:
        return f"capacity({self.nats!r}, gamma={self.gamma!r})"


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
        wanted = "total_correlation needs weights of at least 0"
        self.weight, self.information, self.dimension_wise = (
            _number(w, wanted) for w in (weight, information, dimension_wise)
        )
        if estimator not in ESTIMATORS:
            raise OptionError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}.")
        self.estimator, self.sites = estimator, names_of(sites)

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
        self.weight = _number(weight, "density_ratio needs a weight of at least 0")
        if not isinstance(discriminator, nn.Module):
            raise OptionError(f"density_ratio needs a module as discriminator, got {discriminator!r}.")
        if not any(parameter.requires_grad for parameter in discriminator.parameters()):
            raise OptionError(
                f"density_ratio trains its discriminator, and {type(discriminator).__name__} has no parameter to train."
            )
        self.discriminator, self.site = discriminator, site
        self.sites = names_of(site)

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
        self.off_diagonal, self.diagonal = (
            _number(w, "dip needs weights of at least 0") for w in (off_diagonal, diagonal)
        )
        if of not in ("means", "codes"):
            raise OptionError(f"dip takes the covariance of 'means' or of 'codes', got of={of!r}.")
        self.of, self.sites = of, names_of(sites)

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


class chain:
    """Several functions of the KL terms, one after the other.

    Args:
        functions: Functions as for `Trace_ELBO(kl=...)`, in the order in which they are applied.

    Raises:
        OptionError: One of them is not callable, or one that applies the KL weight itself (`capacity`) is not the last.

    Example:
        >>> kl = pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.5))
        >>> kl
        chain(balanced(), free_bits(0.5))
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> fitted = pv.fit(vae, x, epochs=1, loss=pv.Trace_ELBO(kl=kl), progress=False)
    """

    def __init__(self, *functions: KLFunction) -> None:
        if not all(map(callable, functions)):
            raise OptionError(f"chain needs functions of the KL terms, got {functions!r}.")
        for f in functions:
            num_arguments(f)  # refuse one of too many arguments now
        if any(applies_weight(f) for f in functions[:-1]):
            raise OptionError("capacity applies the KL weight itself, so it must be the last function of a chain.")
        self.functions = functions
        self.applies_weight = bool(functions) and applies_weight(functions[-1])
        self.sites = tuple(name for f in functions for name in getattr(f, "sites", ()))

    @property
    def trains(self) -> tuple[nn.Module, ...]:
        """What a fit trains besides the pair."""
        return tuple(module for f in self.functions for module in getattr(f, "trains", ()))

    def check(self, pair: PairLike, batch: Batch, layout: Layout) -> None:
        """What the functions check of a pair before the first step of a fit."""
        for f in self.functions:
            if hasattr(f, "check"):
                f.check(pair, batch, layout)

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> Mapping[str, Tensor]:
        for f in self.functions:
            terms = apply(f, terms, weight, minibatch)
        return terms

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr_of, self.functions))})"


def num_arguments(kl: Any) -> int:
    """How many of terms, weight and minibatch a function of the KL terms takes. OptionError for a fourth required argument."""
    try:
        parameters = inspect.signature(kl).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return 1
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind in places]
    if len(required) > 3:
        raise OptionError(
            "A function kl takes the KL terms, and then, if it wants, the KL weight and the minibatch; this one wants "
            f"{required}."
        )
    return max(1, len(required))


def apply(kl: KLFunction, terms: Mapping[str, Tensor], weight: Tensor, minibatch: Minibatch) -> Mapping[str, Tensor]:
    """What a function makes of a copy of the KL terms, given as many arguments as it takes."""
    return kl(*(dict(terms), weight, minibatch)[: num_arguments(kl)])


def applies_weight(kl: Any) -> bool:
    """Whether the result of a function has the KL weight in it already, as that of `capacity` has."""
    return bool(getattr(kl, "applies_weight", False))


def repr_of(function: Any) -> str:
    """A function's name instead of its address, since the settings of a fit are compared when it is resumed elsewhere."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def _mean(kl: Tensor) -> Tensor:
    """The mean over rows and particles: `(K, 1)`, or `(K,)` for a global site."""
    return kl.mean().expand(len(kl), *(1,) * (kl.dim() - 1))


def _numbers(given: float | Mapping[str, float], wanted: str, zero: bool) -> Any:
    """The numbers given, checked. Raises OptionError for one that is not finite or not positive (0 where `zero` allows it)."""
    numbers = dict(given) if isinstance(given, Mapping) else {"": given}
    for name, number in numbers.items():
        fits = isinstance(number, Real) and math.isfinite(number) and (number > 0 or (zero and number == 0))
        if not fits:
            place = f" for {name!r}" if name else ""
            raise OptionError(f"{wanted}, one number or a dict by site; got {number!r}{place}.")
    return numbers if isinstance(given, Mapping) else given


def _number(given: float, wanted: str) -> float:
    """One number of at least 0, checked. Raises OptionError."""
    if isinstance(given, Mapping):
        raise OptionError(f"{wanted}, one number each; got {given!r}.")
    return float(_numbers(given, wanted, zero=True))


def names_of(sites: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of sites as a tuple, empty for all. Raises OptionError for what is no list of names."""
    names = () if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
    if not all(isinstance(name, str) for name in names):
        raise OptionError(f"sites must be names of sites, got {sites!r}.")
    return names
