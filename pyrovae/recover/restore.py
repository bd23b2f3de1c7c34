"""`restore`: draws of rows given what is seen of them after a corruption."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae._arguments import as_count, told
from pyrovae.batching.memory import halving
from pyrovae.criticism.proposals import check_proposal
from pyrovae.criticism.psis import pareto_k
from pyrovae.criticism.resampling import in_a_run, resampled
from pyrovae.distributions import ObservedOnly
from pyrovae.errors import DataError, OptionError, PairError, counted
from pyrovae.fitted.fitted import Fit, FittedGroup, in_order, seeded
from pyrovae.fitted.runs import global_draw, global_sites, particles_at_once
from pyrovae.pair.arrays import as_tensor
from pyrovae.pair.batch import Batch, names_of, num_rows, take_rows
from pyrovae.pair.handlers import FixDraws, SetValues, with_particles
from pyrovae.pair.layout import Layout, Site, describe
from pyrovae.pair.parameters import fork_rng
from pyrovae.pair.program import Pair, sample_sites
from pyrovae.predict.dependence import site_parents
from pyrovae.predict.forward import run_model
from pyrovae.predict.sites import observed_sites, sites_to_generate
from pyrovae.recover.corruptions import Corruption, Mask, Noise
from pyrovae.recover.gaps import observers
from pyrovae.recover.impute import FEWEST_CANDIDATES, MEAN_DRAWS, PER_DRAW, warn_of_few
from pyrovae.recover.linear import LinearMap, linear_guess
from pyrovae.recover.seen import Seen, has_moments, integrated

EXAMPLES = 256  # rows drawn from the model, whose covariance makes a first guess
GUESS = "_guess"  # of x, an argument of the pair that is asked


@dataclass(frozen=True, repr=False)
class Restoration:
    """Draws of N rows given what was seen of them, as `pv.restore` returns them. All tensors are on the CPU.

    Attributes:
        draws: S draws of x, `(S, N, *event)`.
        mean: `E[x | x_seen]`, `(N, *event)`, averaged over 200 draws of z, or S if that is more.
        sd: The standard deviation of x given x_seen, `(N, *event)`: a map of what remains uncertain.
        ess: How many draws of the proposal count in each row, `(N,)`, by the effective sample size of their weights.
        k_hat: The estimated shape of the weights' tail, `(N,)`; above `pv.k_hat_threshold(num_particles)` the draws may miss a
            part of the posterior.
        exact: Whether the likelihood of what was seen is exact, and not that of Normals with the same moments.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 1, 4, 4), 0.4))
        >>> encoder = pv.Conditional(pv.nets.ConvEncoder((1, 4, 4), (2, 2), channels=(4,)), fam.Normal(2))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli((1, 4, 4)), hidden=(8,)), encoder)
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> noise = pv.corruptions.Noise(0.3)
        >>> restored = pv.restore(fitted, noise(x[:3]), noise, num_particles=200, seed=0)
        >>> restored, restored.mean.shape
        (Restoration(20 draws of 3 rows), torch.Size([3, 1, 4, 4]))
    """

    draws: Tensor
    mean: Tensor
    sd: Tensor
    ess: Tensor
    k_hat: Tensor
    exact: bool

    def __repr__(self) -> str:
        return f"Restoration({len(self.draws)} draws of {counted(len(self.mean), 'row')})"


@halving
def restore(
    fitted: Fit,
    seen: Any,
    corruption: Corruption,
    num_samples: int = 20,
    *,
    site: str | None = None,
    num_particles: int = 1000,
    proposal: str = "refined",
    moves: int = 20,
    seed: int | None = None,
) -> Restoration:
    """Draw rows given what is seen of them: `p(x | x_seen)` for x of a fitted pair and `x_seen = f(x) + sd e`.

    To inpaint, denoise, deblur and enlarge are one question with different corruptions, `pv.corruptions`. The corruption is a
    likelihood on top of the graph, so that nothing is fitted for it: the latent sites are drawn from their posterior given
    what was seen, as by `pv.posterior`, and x from `p(x | z, x_seen)`.

    Where x can be integrated out, it is: under a mask; under any corruption of single elements if they have few values;
    under noise, and linear functions, if they are Normal; and if Normals are clipped. Under noise and linear functions other
    likelihoods are taken for Normals with their mean and variance (`exact` is then False). Under all other functions x is a
    latent site beside z, which needs noise and works for at most some hundred elements.

    Args:
        fitted: The fitted pair. It need not take missing values. Its guide, which has never seen corrupted rows, is only
            where the refinement of the proposal starts.
        seen: The corrupted rows, `(N, *seen)`, NaN where nothing is seen; or a dict of these under the name of the argument,
            and of the other arguments of the pair. They are as the transform of the fit would make them.
        corruption: What happened to them.
        num_samples: The number S of draws.
        site: The observed site that was corrupted. It may be left out if there is only one.
        num_particles: The number of draws of the proposal from which those of z are chosen.
        proposal: "refined", "laplace" or "guide", as for `pv.importance`.
        moves: Steps of the Metropolis-adjusted Langevin algorithm, as for `pv.impute`.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        Draws of x, their mean and their standard deviation, see `pv.Restoration`.

    Raises:
        OptionError: A number is less than 1, the proposal is not known, or the corruption needs noise.
        DataError: What was seen has another shape than what the corruption makes of rows.
        PairError: The model reads x elsewhere than in the site that observes it, or there are several sites and none is named.
        NotFiniteError: What is seen in a row has probability 0 at every draw.

    References:
        Rezende, Mohamed and Wierstra 2014, arXiv:1401.4082, section F (imputation by a deep latent Gaussian model). Bora,
        Jalal, Price and Dimakis 2017, arXiv:1703.03208 (inverse problems with a generative model).

    Example:
        >>> x = torch.bernoulli(torch.full((40, 1, 4, 4), 0.4))
        >>> encoder = pv.Conditional(pv.nets.ConvEncoder((1, 4, 4), (2, 2), channels=(4,)), fam.Normal(2))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli((1, 4, 4)), hidden=(8,)), encoder)
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> holes = pv.corruptions.Mask(torch.eye(4).bool())
        >>> restored = pv.restore(fitted, holes(x[:3]), holes, num_particles=200, seed=0)
        >>> restored.draws.shape, restored.exact
        (torch.Size([20, 3, 1, 4, 4]), True)
    """
    num_samples, num_particles = as_count("num_samples", num_samples), as_count("num_particles", num_particles)
    moves = as_count("moves", moves, least=0)
    check_proposal(proposal)
    if not isinstance(corruption, Corruption):
        raise OptionError(
            f"corruption must be one of pv.corruptions, such as pv.corruptions.Noise(0.3), got {told(corruption)}: write "
            "pv.corruptions.Corruption(f, sd=...) around a function f of rows."
        )
    chosen = observed_sites(fitted.layouts)[sites_to_generate(fitted, (), site)[0]]
    if chosen.argument is None:
        raise PairError(
            f"Site {chosen.name!r} observes a function of the data, not an argument: observe the argument itself."
        )
    plain = replace(fitted, transform=None, untransformed={})
    with fitted.scope(), seeded(seed):
        rows, others = _seen_rows(plain, seen, chosen)
        clean = _placeholder(plain, chosen, len(rows))
        parts = plain.parts({**others, chosen.argument: clean})
        problems = [_Problem(plain, part, chosen, rows[part.rows.to(rows.device)], corruption) for part in parts]
        moved = 0 if proposal == "guide" else moves
        found = [problem.solve(num_samples, num_particles, proposal, moved) for problem in problems]
    draws = in_order(parts, [part[0] for part in found], 1)
    mean, sd, ess, k_hat = (in_order(parts, list(each)) for each in list(zip(*found))[1:])
    warn_of_few(fitted, ess, num_samples, proposal)
    return Restoration(draws, mean, sd, ess, k_hat, all(problem.exact for problem in problems))


def _seen_rows(fitted: Fit, seen: Any, site: Site) -> tuple[Tensor, dict[str, Any]]:
    """What was seen, on the device of the weights, and the other arguments."""
    argument = str(site.argument)
    given = dict(seen) if isinstance(seen, Mapping) else {argument: seen}
    if argument not in given:
        raise DataError(f"Pass what was seen under the name of the argument, {argument!r}; got {sorted(given)}.")
    dtype = fitted.arguments[argument][1]
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    if len(names_of(given[argument]) or ()) == len(
        fitted.columns.get(argument, ())
    ):  # else a corruption of other columns
        fitted.check_columns({argument: given[argument]})
    rows = as_tensor(argument, given.pop(argument), dtype).to(fitted.device, dtype)
    return rows, given


def _placeholder(fitted: Fit, site: Site, num: int) -> Tensor:
    shape, dtype = fitted.arguments[str(site.argument)]
    return torch.zeros(num, *shape, dtype=dtype, device=fitted.device)


class _Problem:
    """Rows that have the same arguments, and the pair of which what was seen is data."""

    def __init__(self, fitted: Fit, part: FittedGroup, site: Site, seen: Tensor, corruption: Corruption) -> None:
        self.fitted, self.site, self.corruption = fitted, site, corruption
        self.argument = str(site.argument)
        self.others = {name: value for name, value in part.batch.items() if name != self.argument}
        few = take_rows(part.batch, slice(0, 2))
        self.how = observers(fitted, few, part.layout)
        self._check_reads(few, part.layout)
        wanted = corruption.function(part.batch[self.argument][:1].to(seen.dtype)).shape[1:]
        if seen.shape[1:] != wanted:
            raise DataError(
                f"{self.argument!r} must be what the corruption makes of rows, of shape {tuple(wanted)}, got "
                f"{tuple(seen.shape[1:])}."
            )
        self.linear = None
        if corruption.linear:
            plain = Noise(0.0) if isinstance(corruption, Mask) else corruption
            self.linear = LinearMap.of(plain, part.batch[self.argument].shape[1:], seen)
        self.drawn = self._likelihood(few) is None
        if self.drawn and not bool((torch.as_tensor(corruption.sd) > 0).all()):
            raise OptionError(
                "x cannot be integrated out of what this corruption makes of this likelihood, and without noise no draw of x "
                "would agree with what was seen: give the corruption sd=..., or say that it is linear=True or "
                "elementwise=True if it is."
            )
        batch = {**self.others, self.argument: seen, GUESS: self._guess(part, seen)}
        pair = _signed(Pair(self._model, self._guide), list(batch))
        with fork_rng():
            layout = describe(pair, take_rows(batch, slice(0, 2)))
        self.seen = replace(fitted, pair=pair, layout=layout, more_layouts=(), row_elements={})
        self.part = FittedGroup(part.rows, batch, layout)
        self.exact = True

    def _check_reads(self, few: Batch, layout: Layout) -> None:
        """PairError if another site of the model depends on x: it would read what is not known."""
        inside = {one.name for one in layout.sites if not one.objective_only}
        readers = [
            name
            for name, above in site_parents(self.fitted, few, {}).items()
            if name in inside and name != self.site.name and {self.argument, self.site.name} & set(above)
        ]
        if readers:
            raise PairError(
                f"Site {readers[0]!r} of the model depends on {self.argument!r}, of which only a corrupted version is seen: "
                "restoring needs a model in which nothing does."
            )

    def _guess(self, part: FittedGroup, seen: Tensor) -> Tensor:
        """Rough values of x, from which the guide starts, `(n, *event)`.

        If the corruption is linear, they are the mean given what was seen of a Normal with the mean and covariance that x has
        under the model; else what was seen itself, and the mean where nothing was, or in another shape.
        """
        index = torch.arange(EXAMPLES, device=self.fitted.device) % num_rows(part.batch)
        known = {name: value[index] for name, value in self.others.items()}
        node = run_model(self.fitted, EXAMPLES, known, {}, None, [self.site.name])[self.site.name]
        fn = node["fn"].whole if isinstance(node["fn"], ObservedOnly) else node["fn"]
        x, variance = (fn.mean, fn.variance) if has_moments(fn) else (node["value"], torch.zeros_like(node["value"]))
        x, variance = (part.double().reshape(EXAMPLES, -1) for part in (x, variance))
        variance = variance.mean(0) + 1e-4 * x.var(0).mean() + 1e-12
        shape, dtype = self.fitted.arguments[self.argument]
        if self.linear is not None:
            guess = linear_guess(self.linear, x, variance, seen.flatten(1))
        elif seen.shape[1:] == shape:
            guess = torch.where(seen.isnan(), x.mean(0).reshape(shape), seen)
        else:
            guess = x.mean(0).expand(len(seen), -1)
        return guess.reshape(-1, *shape).to(dtype)

    def _likelihood(self, few: Batch) -> Seen | None:
        """That of what is seen with x integrated out, in a run on a few rows."""
        with fork_rng():
            node = sample_sites(poutine.trace(self.fitted.pair.model).get_trace(**few))[self.site.name]
        return integrated(node["fn"], self.corruption, torch.Size([1]), self.linear)

    def _clean(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arguments of the fitted pair, with a guess of x."""
        return {**{name: rows[name] for name in self.others}, self.argument: rows[GUESS]}

    def _model(self, **rows: Tensor) -> Any:
        return self._handled(rows)(self.fitted.pair.model)(**self._clean(rows))

    def _handled(self, rows: Mapping[str, Tensor]) -> Messenger:
        seen, event_dim = self._in_a_run(rows), rows[self.argument].dim() - 1
        if self.drawn:
            return _Above(self.site.name, self.corruption, seen, event_dim)
        return _Through(self.site.name, self.corruption, seen, event_dim, self.linear)

    def _in_a_run(self, rows: Mapping[str, Tensor]) -> Tensor:
        """What was seen, `(n, 1, ..., *seen)`, the rows along their dimension of a run."""
        seen = rows[self.argument]
        return seen.reshape(len(seen), *[1] * (-self.how.data_dim - 1), *seen.shape[1:])

    def _guide(self, **rows: Tensor) -> None:
        clean = self._clean(rows)
        if not self.drawn:
            self.fitted.pair.guide(**clean)
            return
        with poutine.trace() as tracer:
            self.fitted.pair.guide(**clean)
        values = {name: node["value"] for name, node in sample_sites(tracer.trace).items()}
        model = SetValues(values)(_Drawn(self.site.name)(self.fitted.pair.model))
        poutine.block(model, expose=[self.site.name])(**clean)

    def solve(
        self, num_samples: int, num_particles: int, proposal: str, moves: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Draws `(S, n, *event)`, mean and sd `(n, *event)`, ESS and k-hat `(n,)`."""
        layout, shared = self.part.layout, self._shared(num_samples)
        variants = [
            replace(self.seen, pair=_signed(Pair(self._model, FixDraws(values)(self._guide)), list(self.part.batch)))
            for values in shared
        ]
        total = num_samples if shared else max(num_samples, MEAN_DRAWS)
        needed = [self.site.name] if self.drawn else self.how.parents[self.site.name]
        particles = max(FEWEST_CANDIDATES, num_particles // num_samples) if shared else num_particles
        found = []
        for block in resampled(
            self.seen,
            self.part,
            total,
            needed,
            particles,
            proposal,
            moves=moves,
            ess_below=PER_DRAW * (1 if shared else num_samples),
            variants=variants,
            stacklevel=8,
        ):
            k_hat = torch.stack([pareto_k(log_w) for log_w in block.log_w]).amax(0)
            found.append(
                (*self._draws(block.rows, block.values, shared, total, num_samples, layout), block.ess.cpu(), k_hat)
            )
        draws, *others = zip(*found)
        return (torch.cat(draws, 1), *(torch.cat(part) for part in others))  # type: ignore[return-value]

    def _shared(self, num_samples: int) -> list[dict[str, Tensor]]:
        """Values of the global latent sites for each draw."""
        if not global_sites(self.part.layout):
            return []
        draws = [
            global_draw(self.seen, take_rows(self.part.batch, slice(0, 2)), self.part.layout)
            for _ in range(num_samples)
        ]
        return [{name: node["value"] for name, node in draw.items()} for draw in draws]

    def _draws(
        self,
        rows: Batch,
        values: Mapping[str, Tensor],
        shared: list[dict[str, Tensor]],
        total: int,
        num_samples: int,
        layout: Layout,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """S draws of x for n rows, and mean and standard deviation of all."""
        n, shape = num_rows(rows), self.fitted.arguments[self.argument][0]
        if self.drawn:
            x = values[self.site.name].reshape(total, n, *shape)
            return x[:num_samples].cpu(), x.mean(0).cpu(), x.std(0).cpu()
        at_once = 1 if shared else max(1, particles_at_once(self.seen, rows, layout, total))
        kept: list[Tensor] = []
        sums = torch.zeros(3, n, *shape, dtype=torch.float64, device=self.fitted.device)
        for start in range(0, total, at_once):
            stop = min(start + at_once, total)
            held = {
                name: in_a_run(value[start:stop], self.how.event_dims[name], self.how.data_dim)
                for name, value in values.items()
            } | (shared[start] if shared else {})
            model = with_particles(SetValues(held)(self._model), stop - start, layout.plate_nesting)
            node = sample_sites(poutine.trace(model).get_trace(**rows))[self.site.name]
            fn: Seen = node["fn"]
            self.exact &= fn.exact
            pair = fn.given(self._in_a_run(rows))
            drawn, mean = (part.expand(stop - start, *_between(part, n, shape), n, *shape) for part in pair)
            drawn, mean = (part.reshape(stop - start, n, *shape) for part in (drawn, mean))
            kept.append(drawn[: max(0, num_samples - start)].cpu())
            for i, part in enumerate((mean, drawn, drawn.double().square())):
                sums[i] += part.double().sum(0)
        middle, first, second = sums / total
        variance = (second - first.square()).clamp_min(0) * total / max(total - 1, 1)
        dtype = kept[0].dtype
        return torch.cat(kept), middle.to(dtype).cpu(), variance.sqrt().to(dtype).cpu()


def _between(part: Tensor, n: int, shape: tuple[int, ...]) -> list[int]:
    """Dimensions of size 1 between that of the particles and that of the rows."""
    return [1] * max(0, part.dim() - 2 - len(shape))


def _signed(pair: Pair, names: list[str]) -> Pair:
    """The pair, of which both functions say that they take these arguments."""
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])
    return Pair(_with_signature(pair.model, signature), _with_signature(pair.guide, signature))


def _with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    def called(**rows: Tensor) -> Any:
        return function(**rows)

    called.__signature__ = signature  # type: ignore[attr-defined]
    return called


class _Through(Messenger):  # type: ignore[misc]  # Pyro has no types
    """Let a site observe corrupted rows, with its own value integrated out."""

    def __init__(
        self, site: str, corruption: Corruption, seen: Tensor, event_dim: int, linear: LinearMap | None
    ) -> None:
        super().__init__()
        self.site, self.corruption, self.seen, self.linear = site, corruption, seen, linear
        self.event_shape = seen.shape[seen.dim() - event_dim :]

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            msg["fn"] = integrated(msg["fn"], self.corruption, self.event_shape, self.linear)
            msg["value"], msg["is_observed"] = self.seen, True


class _Drawn(Messenger):  # type: ignore[misc]
    """Draw an observed site."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and msg["is_observed"]:
            msg["is_observed"], msg["value"] = False, None


class _Above(_Drawn):
    """Draw an observed site, and let one above it observe corrupted rows."""

    def __init__(self, site: str, corruption: Corruption, seen: Tensor, event_dim: int) -> None:
        super().__init__(site)
        self.corruption, self.seen, self.event_dim = corruption, seen, event_dim

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            x = msg["value"]
            batch = x.shape[: x.dim() - msg["fn"].event_dim]
            loc = self.corruption.function(x.reshape(-1, *x.shape[len(batch) :]))
            loc = loc.reshape(*batch, *loc.shape[1:])
            sd = torch.as_tensor(self.corruption.sd).to(loc)
            there = ~self.seen.isnan()
            noise = dist.Normal(loc, sd.expand(loc.shape)).mask(there).to_event(self.event_dim)
            pyro.sample(f"{self.site} as seen", noise, obs=torch.where(there, self.seen, 0.0))
