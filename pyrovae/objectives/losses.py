"""The losses that `fit` takes: `Trace_ELBO`, and Pyro's own losses translated to it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.infer
import torch
from torch import Tensor, nn

from pyrovae._arguments import as_choice, as_count
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.baselines import learned, leave_one_out
from pyrovae.objectives.elbo import Baseline, Bound, bound_of, check_kl
from pyrovae.objectives.fixed_draws import direct_log_q
from pyrovae.objectives.kl_functions import KLFunction, num_arguments, repr_of
from pyrovae.objectives.marginals import count
from pyrovae.objectives.terms import Term, Terms, terms
from pyrovae.pair.layout import Layout
from pyrovae.pair.program import PairLike, is_marked, sample_sites

_CALLED = "is called as loss(pair, batch, num_rows=..., kl_weight=..., layout=...) and returns a pv.Bound"


class Trace_ELBO:
    """The ELBO, `E_q[log p(x, z) - log q(z | x)]`, as a loss for `pv.fit`.

    Calling it, `loss(pair, batch, num_rows=None, kl_weight=None, layout=None)`, runs model and guide and returns a `Bound`; see
    `pv.elbo` for the estimator and for enumerated sites.

    Args:
        num_particles: K, the number of draws of the guide for each row. More particles reduce the noise of gradients, above all
            for global latent variables under minibatches.
        kl: None for KL terms at the draws, "analytic" for closed forms, "auto" for closed forms where they are known and right,
            or a function of the per-site KL terms; see `pv.elbo` and `pv.kl`.
        gradient: "standard", or "sticking_the_landing", which leaves out the part of the gradient that reaches the guide's
            parameters directly, with the draws held fixed. The expectation of that part is zero, and without it no noise is
            left where the guide is exact. With several sites the guide runs twice, at the same draws, so it must be random at
            its sites only (no dropout).
        baseline: What is subtracted from the learning signal of sites that are drawn without reparameterisation, such as
            discrete ones; no other gradient changes, and no expectation. "leave_one_out": the mean signal of the other draws of
            a row, or for a single draw of the other rows of the minibatch. None: nothing, as in Pyro. `pv.baselines.learned`:
            what a network predicts. Beside enumerated sites nothing is subtracted. Where rows of a minibatch change one
            another's densities, as by batch normalisation, the gradient of such sites is biased with any baseline and without:
            it leaves out what the draw of a row does to the others.

    Raises:
        OptionError: An argument is unknown, or `kl` is given together with "sticking_the_landing".
        PairError: When called, as `pv.elbo`; for "sticking_the_landing" also for enumerated sites and for sites that are not
            reparameterised.

    References:
        Kingma and Welling 2014, arXiv:1312.6114; Roeder, Wu and Duvenaud 2017, arXiv:1703.09194 (sticking the landing); Mnih
        and Gregor 2014, arXiv:1402.0030 (baselines).

    Example:
        >>> x = torch.rand(32, 4).round()
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
        >>> loss = pv.Trace_ELBO(num_particles=2, kl="analytic")
        >>> fitted = pv.fit(vae, x, epochs=2, loss=loss, progress=False)
        >>> loss(vae, fitted.batch(x)).elbo.shape
        torch.Size([])
    """

    def __init__(
        self,
        num_particles: int = 1,
        kl: str | KLFunction | None = None,
        gradient: str = "standard",
        baseline: str | learned | None = "leave_one_out",
    ) -> None:
        self.num_particles = as_count("num_particles", num_particles)
        self.gradient = as_choice("gradient", gradient, ("standard", "sticking_the_landing"))
        check_kl(kl)
        if callable(kl):
            num_arguments(kl)  # refuse a function of too many arguments now, not in the first step
        if kl is not None and gradient != "standard":
            raise OptionError(f"gradient={gradient!r} needs the KL as drawn: use kl=None or gradient='standard'.")
        named = isinstance(baseline, str) and baseline == "leave_one_out"
        if not (baseline is None or named or isinstance(baseline, learned)):
            raise OptionError(f"baseline must be None, 'leave_one_out' or pv.baselines.learned(...), got {baseline!r}.")
        self.kl, self.baseline = kl, baseline
        self._dice = False  # see `bound_of`

    def __call__(
        self,
        pair: PairLike,
        batch: Mapping[str, Tensor],
        *,
        num_rows: int | None = None,
        kl_weight: Tensor | float | None = None,
        layout: Layout | None = None,
    ) -> Bound:
        run = terms(pair, batch, self.num_particles, layout=layout)
        chosen = self.baseline
        subtracted: Baseline | None = chosen if isinstance(chosen, learned) else leave_one_out if chosen else None
        bound = bound_of(run, num_rows, kl_weight, self.kl, self._dice, subtracted, batch)
        if self.gradient == "standard":
            return bound
        check_reparameterised(run, self.gradient)
        direct = torch.zeros_like(bound.elbo)
        for name, log_q in direct_log_q(pair, batch, run).items():
            weight = count(run.sites[name], run, run.num_rows if num_rows is None else num_rows)
            direct = direct + weight * log_q.scaled.sum()
        direct = direct * (1.0 if kl_weight is None else kl_weight) / run.num_particles
        return Bound(bound.elbo, bound.objective + direct - direct.detach())

    def __repr__(self) -> str:
        gradient = "" if self.gradient == "standard" else f", gradient={self.gradient!r}"
        baseline = "" if self.baseline == "leave_one_out" else f", baseline={self.baseline!r}"
        return f"Trace_ELBO(num_particles={self.num_particles}, kl={repr_of(self.kl)}{gradient}{baseline})"


def modules_of(loss: Any) -> dict[str, nn.Module]:
    """The modules that a loss trains besides the pair, by the prefix of their parameters' names."""
    parts = (loss, *(getattr(loss, name, None) for name in ("kl", "baseline")))
    found = [module for part in parts for module in getattr(part, "trains", ())]
    return {f"loss.{number}.": module for number, module in enumerate(found)}


def loss_tensors(loss: Any) -> dict[str, Tensor]:
    """The parameters and buffers of these modules, by name."""
    parts = modules_of(loss).items()
    return {prefix + name: tensor for prefix, m in parts for name, tensor in m.state_dict(keep_vars=True).items()}


def check_learns(loss: Any, guides: Sequence[Any]) -> None:
    """OptionError where a learned baseline has nothing to learn, given a trace of the guide for each group of rows."""
    nodes = [node for guide in guides for node in sample_sites(guide).values()]
    if all(node["fn"].has_rsample or is_marked(node) for node in nodes):
        raise OptionError(
            f"{loss.baseline!r} learns what is expected of sites that are drawn without reparameterisation, and the guide has "
            "none: leave the baseline out."
        )


def as_loss(loss: Any) -> Any:
    """pyrovae's loss for a given one: None is `Trace_ELBO()`, and Pyro's ELBOs become their equivalents here.

    Other callables are returned as they are. Raises OptionError for losses of Pyro without an equivalent.
    """
    if loss is None:
        return Trace_ELBO()
    sampled = (pyro.infer.Trace_ELBO, pyro.infer.JitTrace_ELBO, pyro.infer.TraceEnum_ELBO, pyro.infer.JitTraceEnum_ELBO)
    if type(loss) in sampled:
        return Trace_ELBO(loss.num_particles, baseline=None)
    if type(loss) in (pyro.infer.TraceMeanField_ELBO, pyro.infer.JitTraceMeanField_ELBO):
        return Trace_ELBO(loss.num_particles, kl="analytic")
    if isinstance(loss, type):
        raise OptionError(
            f"loss takes an object, and {loss.__name__} is a class: make one of it, {loss.__name__}(...)."
        )
    if isinstance(loss, pyro.infer.ELBO) or not callable(loss):
        raise OptionError(
            f"loss={type(loss).__name__} is not supported; known: pv.Trace_ELBO, pv.IWELBO, pv.RWS, pv.WakeSleep, "
            "pyro.infer.Trace_ELBO, pyro.infer.TraceEnum_ELBO, pyro.infer.TraceMeanField_ELBO."
        )
    _check_signature(loss)
    return loss


def _check_signature(loss: Any) -> None:
    """OptionError for a function that is not called as `pv.fit` calls a loss, such as one of `pyro.infer.SVI`."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # of a builtin, which says itself what it takes
        return
    name = getattr(loss, "__name__", type(loss).__name__)
    if list(signature.parameters)[:2] == ["model", "guide"]:
        raise OptionError(
            f"{name} takes model and guide, as a loss of pyro.infer.SVI does: pv.SVI(model, guide, optim, loss) takes it. "
            f"A loss of pv.fit {_CALLED}."
        )
    try:
        signature.bind(None, {}, num_rows=None, kl_weight=None, layout=None)
    except TypeError as error:
        raise OptionError(f"A loss of pv.fit {_CALLED}, and {name}{signature} cannot be ({error}).") from None


def check_reparameterised(terms: Terms, gradient: str) -> None:
    """PairError unless every site of the guide is drawn with reparameterisation."""
    for term in terms.sites.values():
        if term.enum_dim is not None:
            raise PairError(
                f"gradient={gradient!r} needs drawn sites, and {term.name!r} is enumerated: use gradient='standard'."
            )
        if term.q is not None and term.q.score is not None:
            raise PairError(
                f"gradient={gradient!r} needs reparameterised sites, and {term.name!r} is not: use gradient='standard'."
            )
        if getattr(innermost_of(term), "borrows_gradient", False):
            raise PairError(
                f"gradient={gradient!r} needs draws that have the density of the guide, and {term.name!r} is relaxed, or "
                "discrete with the gradient of other draws: use gradient='standard'."
            )


def innermost_of(term: Term) -> Any:
    """The distribution of a site of the guide, without what is wrapped around it."""
    fn: Any = None if term.q is None else term.q.fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
