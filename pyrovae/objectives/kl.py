"""Functions of the per-site KL terms, for `Trace_ELBO(kl=...)`: they keep latent variables in use, or disentangle them.

Such a function takes a dict from site to KL term in nats, of shape `(K, N)` for a local site and `(K,)` for a global one, and
returns it changed; `(K, 1)` is one value for every row. A function of two required arguments also gets the KL weight, as a
0-d tensor; since a step is traced only once, it must branch on the weight by `torch.where`, not by `if`. A function of three
also gets the run that the terms come from, a `Minibatch`. Any function will do:
`kl=lambda terms: {**terms, "y": terms["y"].clamp_min(0.5)}`.

Here are those that look at each term by itself; this is also where users find all of them, as `pv.kl`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyrovae._arguments import as_number
from pyrovae.errors import OptionError
from pyrovae.objectives.disentangling import density_ratio, dip, total_correlation
from pyrovae.objectives.kl_functions import KLFunction, Minibatch, chain, checked_numbers, mean_over_rows

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
        self.nats = checked_numbers(nats, "free_bits needs nats of at least 0", zero=True)
        self.sites = tuple(self.nats) if isinstance(self.nats, dict) else ()

    def __call__(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        floors = self.nats if isinstance(self.nats, dict) else dict.fromkeys(terms, self.nats)
        return {
            **terms,
            **{name: mean_over_rows(terms[name]).clamp_min(floors[name]) for name in floors if name in terms},
        }

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
        found = checked_numbers(sizes or {}, "balanced needs positive sizes", zero=False)
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
        self.weight = checked_numbers(weight, "beta needs a weight of at least 0", zero=True)
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
        self.nats = checked_numbers(nats, "capacity needs nats of at least 0", zero=True)
        self.gamma = as_number("gamma", gamma, above=0)
        self.sites = tuple(self.nats) if isinstance(self.nats, dict) else ()

    def __call__(self, terms: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
        local = [name for name, kl in terms.items() if kl.dim() == 2]
        nats = self.nats if isinstance(self.nats, dict) else dict.fromkeys(local, self.nats)
        return {
            name: self.gamma * (mean_over_rows(kl) - weight * nats[name]).abs() if name in nats else weight * kl
            for name, kl in terms.items()
        }

    def __repr__(self) -> str:
        return f"capacity({self.nats!r}, gamma={self.gamma!r})"
