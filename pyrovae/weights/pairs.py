"""Pairs made of another pair, whose weights have a prior: `Bayesian`, with a posterior of weights, and `MAP`, with a mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.errors import OptionError
from pyrovae.pair.parameters import modules
from pyrovae.pair.program import PairLike, signature_of
from pyrovae.weights.choose import Names, choose
from pyrovae.weights.exchange import exchanged
from pyrovae.weights.posteriors import MeanField, split
from pyrovae.weights.priors import WeightPrior, check_prior, prior_of

PREFIX = "w."  # of the sites of weights
JOINT = "w.joint"  # the site of all weights together, where the guide draws them so

Posterior = Callable[[Mapping[str, Tensor]], nn.Module]


class Side:
    """The model or the guide of a pair that is made of another one, with the arguments of that one."""

    def __init__(self, owner: Any, side: str) -> None:
        self.owner, self.side = owner, side
        self.__signature__ = signature_of(getattr(owner.pair, side))

    def __call__(self, *args: Any, **batch: Any) -> Any:
        return getattr(self.owner, f"_{self.side}")(*args, **batch)


class _Around(nn.Module):
    """What `Bayesian` and `MAP` have in common: a pair, and the parameters that are chosen of it."""

    def __init__(self, pair: PairLike, prior: Any, expose: Names, hide: Names) -> None:
        super().__init__()
        self.pair, self.prior = pair, check_prior(prior)
        self.chosen = choose(pair, expose, hide)
        # What a run records is what was chosen: the same names may mean others later, as when frozen parts have thawed.
        self.expose, self.hide = tuple(self.chosen), None
        self._held = nn.ModuleList()
        if not isinstance(pair, nn.Module):  # its modules are registered here, so that they are trained and saved
            own = {id(module): module for module in modules(pair).values()}
            inside = {id(parameter) for module in own.values() for parameter in module.parameters()}
            places = [c.places for c in self.chosen.values() if id(c.parameter) not in inside]
            self._held.extend((own | {id(module): module for each in places for module, _ in each}).values())
        for name, one in self.chosen.items():
            prior_of(self.prior, name, one.parameter)

    @property
    def model(self) -> Callable[..., Any]:
        return Side(self, "model")

    @property
    def guide(self) -> Callable[..., Any]:
        return Side(self, "guide")


class Bayesian(_Around):
    """`p(w) p(x, z | w)` with `q(w) q(z | x)`: a pair some of whose weights are global latent variables.

    `pv.bayesian` makes it. Each chosen parameter is a global sample site of its own, "w." and its name. The parameters
    themselves stay where they are, in the modules of `pair`, and are the means of q(w).

    Args:
        pair: Model and guide.
        prior: p(w), see `pv.bayesian`.
        posterior: What `pv.bayesian` calls guide.
        expose: Names of the weights.
        hide: Names of what is left out of these.

    Attributes:
        approximation: The module that returns q(w), with its scales.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> pair = pv.bayesian(vae, hide="*.bias")
        >>> list(pair.chosen)
        ['likelihood.net.first.0.weight', 'likelihood.net.rest.1.weight']
    """

    def __init__(
        self,
        pair: PairLike,
        prior: Any = None,
        posterior: Posterior | None = None,
        expose: Names = None,
        hide: Names = None,
    ) -> None:
        super().__init__(pair, _standard() if prior is None else prior, expose, hide)
        self.posterior = MeanField() if posterior is None else posterior
        made = not isinstance(self.posterior, type) or issubclass(self.posterior, nn.Module)
        if not callable(self.posterior) or not made:
            raise OptionError(
                f"guide must be a posterior of weights, such as pv.weights.MeanField(), got {self.posterior!r}."
            )
        means = {name: one.parameter.detach() for name, one in self.chosen.items()}
        self.approximation = self.posterior(means)
        if not isinstance(self.approximation, nn.Module):
            raise OptionError(
                f"guide=... must return a module, which returns q(w), got {type(self.approximation).__name__}."
            )

    def _model(self, *args: Any, **batch: Any) -> Any:
        values = {
            name: pyro.sample(PREFIX + name, prior_of(self.prior, name, one.parameter.detach()))
            for name, one in self.chosen.items()
        }
        with exchanged(self.chosen, values):
            return self.pair.model(*args, **batch)

    def _guide(self, *args: Any, **batch: Any) -> Any:
        means: dict[str, Tensor] = {name: one.parameter for name, one in self.chosen.items()}
        q = self.approximation(means)
        if not isinstance(q, Mapping):  # of all weights together
            flat = pyro.sample(JOINT, q, infer={"is_auxiliary": True})
            parts = split(flat, {name: mean.shape for name, mean in means.items()})
            q = {name: dist.Delta(parts[name], event_dim=mean.dim()) for name, mean in means.items()}
        values = {name: pyro.sample(PREFIX + name, q[name]) for name in means}
        with exchanged(self.chosen, values):
            return self.pair.guide(*args, **batch)


class MAP(_Around):
    """`p(w) p(x, z | w)` with `q(z | x)` at a single w: a pair whose weights have a prior, which a fit adds to its loss.

    `pv.map_prior` makes it. The log prior of each chosen parameter is a global site, "w." and its name, that counts in what a
    fit ascends, and in no bound that it reports.

    Args:
        pair: Model and guide.
        prior: p(w), see `pv.map_prior`.
        expose: Names of the weights.
        hide: Names of what is left out of these.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> print(pv.check_pair(pv.map_prior(vae, expose="likelihood.net.rest.1.bias"), torch.zeros(5, 6)))
        z                             latent     per row  event (2,)
        w.likelihood.net.rest.1.bias  observed   global  event (6,)
        x                             observed   per row  event (6,) <- x
    """

    def __init__(self, pair: PairLike, prior: Any = None, expose: Names = None, hide: Names = None) -> None:
        super().__init__(pair, _standard() if prior is None else prior, expose, hide)

    def _model(self, *args: Any, **batch: Any) -> Any:
        for name, one in self.chosen.items():
            prior = prior_of(self.prior, name, one.parameter.detach())
            pyro.sample(PREFIX + name, prior, obs=one.parameter, infer={"objective_only": True})
        return self.pair.model(*args, **batch)

    def _guide(self, *args: Any, **batch: Any) -> Any:
        return self.pair.guide(*args, **batch)


def bayesian(
    pair: PairLike,
    *,
    prior: Any | WeightPrior = None,
    guide: Posterior | None = None,
    expose: Names = None,
    hide: Names = None,
) -> Bayesian:
    """`p(w) p(x, z | w)` with `q(w) q(z | x)`: full variational Bayes, in which weights of a model are latent variables, too.

    The chosen parameters of any pair become global sample sites of another pair. Nothing else changes: the latent variables
    of a row stay amortised, the loss is `-(1/N) [log p(w) - log q(w) + (N/B) sum over the minibatch of local terms]`, and
    every question averages over weights, since global sites are drawn from the guide. So `pv.importance` estimates the
    predictive density `log E_q(w)[p(x | w)]` of each row, `pv.generate` draws weights anew in each call (with `each_row`
    for each row), and `pv.global_posterior` returns draws of the weights.

    Each particle of a run has weights of its own. Linear layers, layer normalisation, and what broadcasts take them all at
    once; a pair with other layers, such as convolutions, runs particle by particle, with a warning.

    Args:
        pair: Model and guide. They are used and not copied: its parameters are the means of q(w), from where they are.
        prior: p(w), by default N(0, 1) of each weight: a distribution of one number, or a function of a parameter's name and
            value that returns a distribution of its shape, such as `pv.weights.FanIn()`.
        guide: q(w): `pv.weights.MeanField()` (the default), `pv.weights.LowRank()`, or any function of the parameters by name
            that returns a module. Called with the parameters by name, that module returns a distribution for each name, or
            one of all weights together, flattened one after the other.
        expose: Which parameters: names of parameters ("likelihood.net.rest.1.weight"), of modules ("likelihood"), or patterns
            (`"*.weight"`). By default those that the model reads and the guide does not, as its code says by name: decoder and
            prior of a VAE. What the guide reads, too, may be named: it then runs with the same draw.
        hide: Names of what is left out of these, and stays a parameter.

    Returns:
        The pair, see `pv.weights.Bayesian`.

    Raises:
        OptionError: A name fits no parameter, or none is chosen; a parameter is that of a recurrent network or a
            `PyroModule`; the prior has another shape.

    References:
        Kingma and Welling 2014, arXiv:1312.6114, appendix F; Blundell et al. 2015, arXiv:1505.05424; Ritter, Kukla, Zhang and
        Li 2021, arXiv:2110.00276 (a network, its prior, likelihood and guide chosen apart).

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> pair = pv.bayesian(vae, prior=pv.weights.FanIn(), hide="*.bias")
        >>> print(pv.check_pair(pair, x))
        w.likelihood.net.first.0.weight  latent     global  event (8, 2)
        w.likelihood.net.rest.1.weight   latent     global  event (6, 8)
        z                                latent     per row  event (2,)
        x                                observed   per row  event (6,) <- x
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.log_likelihood(fitted, x, num_samples=50, seed=0).shape
        torch.Size([40])
        >>> pv.global_posterior(fitted, 10, seed=0)["w.likelihood.net.first.0.weight"].shape
        torch.Size([10, 8, 2])
    """
    return Bayesian(pair, prior, guide, expose, hide)


def map_prior(pair: PairLike, *, prior: Any | WeightPrior = None, expose: Names = None, hide: Names = None) -> MAP:
    """`loss - (1/N) log p(w)`: a prior on weights of any pair, of which a fit finds the mode (maximum a posteriori).

    Under `N(0, s^2)` the gradient of the loss gets `w / (N s^2)`. That is the `weight_decay=1 / (N s^2)` of torch's SGD and
    Adam, which add it to the gradient; it is not the decoupled one of `AdamW`, which shrinks weights at a rate that does not
    depend on how large their gradients are, and so is the mode of no prior.

    The log prior counts in what a fit ascends. The ELBO in the history, that of validation rows, and every question are those
    of the pair at its weights, so that they compare with those of a fit without prior.

    Args:
        pair: Model and guide. They are used and not copied.
        prior: p(w), by default N(0, 1) of each weight, as in `pv.bayesian`.
        expose: Which parameters, as in `pv.bayesian`; those of the guide may be named, too.
        hide: Names of what is left out of these.

    Returns:
        The pair, see `pv.weights.MAP`.

    Raises:
        OptionError: As `pv.bayesian`.

    References:
        Loshchilov and Hutter 2019, arXiv:1711.05101 (decoupled weight decay).

    Example:
        >>> import pyro
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> pair = pv.map_prior(vae, prior=pyro.distributions.Normal(0.0, 0.5), hide="*.bias")
        >>> fitted = pv.fit(pair, x, epochs=1, engine="eager", progress=False)
        >>> pv.encode(fitted, x).shape
        torch.Size([40, 2])
    """
    return MAP(pair, prior, expose, hide)


def _standard() -> Any:
    return dist.Normal(torch.zeros(()), torch.ones(()))
