"""Baselines of the score function, for `Trace_ELBO(baseline=...)`: gradients of sites without reparameterisation, less noisy.

The gradient of such a site is `E[R d log q(z)]`, where R, the learning signal, is the part of the bound that may depend on the
draw z. Since `E[d log q(z)] = 0`, anything that does not depend on z may be subtracted from R: the expectation stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pyrovae._arguments import as_names
from pyrovae.errors import OptionError, PairError
from pyrovae.objectives.terms import Term, Terms
from pyrovae.pair.handlers import DATA_PLATE

__all__ = ["Signal", "learned"]


class Signal(NamedTuple):
    """What multiplies a score: the learning signal of a site.

    Attributes:
        values: R of each draw, without a gradient, in nats, multiplied by N / B, of the full batch shape of the site.
        term: The site.
        terms: The run that it is from.
        batch: The arguments of the pair, by name.
        weight: N / B, by which a local site is multiplied.

    Example:
        >>> signal = pv.baselines.Signal(torch.zeros(3), term=None, terms=None, batch={}, weight=10.0)
        >>> signal.weight
        10.0
    """

    values: Tensor
    term: Term
    terms: Terms
    batch: Mapping[str, Tensor]
    weight: float


def leave_one_out(signal: Signal) -> tuple[Tensor, None]:
    """R less the mean of the other draws of the same row, or with a single draw less that of the other rows.

    A site that all rows share has nothing to subtract if it is drawn once, and neither has one in a loop over rows.
    """
    run, of_rows = signal.terms, rows_dim(signal.term)
    if run.num_particles > 1:
        return without_others(signal.values, -run.depth), None
    return (signal.values if of_rows is None else without_others(signal.values, of_rows)), None


def rows_dim(term: Term) -> int | None:
    """The dimension of the rows in the log-density of a site of the guide, from the right; None where it has none."""
    assert term.q is not None
    return next((int(frame.dim) for frame in term.q.frames if frame.name == DATA_PLATE), None)


def without_others(values: Tensor, *dims: int) -> Tensor:
    """Each value less the mean of all that differ from it in the first of these dimensions; as it is where there are none.

    The mean runs over the other dimensions, too.
    """
    num = values.shape[dims[0]]
    if num == 1:
        return values
    mean = values.mean(dims[1:], keepdim=True) if len(dims) > 1 else values
    return values - (mean.sum(dims[0], keepdim=True) - mean) / (num - 1)


class learned:
    """`R - C(x) - c`: a network C that learns to predict the learning signal from the row, and the mean c of what is left.

    C learns by least squares in the same step, by a term that is added to the objective with value 0; its weights belong to the
    fit, not to the pair: they are in checkpoints, and not in what is saved. c is the mean of `R - C(x)` over the other rows of
    the minibatch, where the paper has a running mean, so that a step depends on no earlier one and the gradient is unbiased.
    `normalised` divides by the standard deviation of what is left in the minibatch, where that is above 1, as in the paper; it
    changes the length of the guide's gradient, not its direction, beside that of the model.

    With several draws for each row, their mean, which `baseline="leave_one_out"` subtracts, is at hand without a network.

    Args:
        net: C, a module called with the arguments of the pair, whose output is one number for each row, `(N,)` or `(N, 1)`,
            in nats. A fit trains it in place, so give each fit its own.
        inputs: The names of the arguments that it is called with, by default all, in the order of the pair's.
        normalised: Whether to divide by the standard deviation.

    Raises:
        OptionError: `net` is no module, or has no parameter to train; in `pv.fit`, the guide has no site drawn without
            reparameterisation.
        PairError: At the first step: an argument in `inputs` is unknown, the output has another shape, or the site is one that
            all rows share or is in a loop over rows.

    References:
        Mnih and Gregor 2014, arXiv:1402.0030 (NVIL).

    Example:
        >>> pair = pv.CategoricalVAE(
        ...     prior=pv.priors.OneHotCategorical((3, 4)),
        ...     likelihood=pv.mlp(12, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.OneHotCategorical((3, 4)), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> loss = pv.Trace_ELBO(baseline=pv.baselines.learned(pv.nets.MLP(6, 1, hidden=(8,))))
        >>> fitted = pv.fit(pair, x, epochs=1, loss=loss, engine="eager", progress=False)
    """

    def __init__(self, net: nn.Module, inputs: str | Sequence[str] | None = None, normalised: bool = False) -> None:
        if not isinstance(net, nn.Module):
            raise OptionError(f"baselines.learned needs a module, such as pv.nets.MLP(784, 1), got {net!r}.")
        if not any(parameter.requires_grad for parameter in net.parameters()):
            raise OptionError(f"baselines.learned trains its network, and {type(net).__name__} has nothing to train.")
        self.net, self.normalised = net, normalised
        self.inputs = as_names("inputs", inputs)

    @property
    def trains(self) -> tuple[nn.Module, ...]:
        """What a fit trains besides the pair."""
        return (self.net,)

    def __call__(self, signal: Signal) -> tuple[Tensor, Tensor]:
        """The centred signal, of the shape of its values, and what the network ascends, a 0-d tensor with value 0."""
        name, dim = signal.term.name, rows_dim(signal.term)
        if not signal.term.local:
            raise PairError(
                f"Site {name!r} belongs to all rows, and baselines.learned predicts from a row: use "
                "baseline='leave_one_out' and num_particles of 2 or more."
            )
        if dim is None:
            raise PairError(
                f"Site {name!r} is in a loop over rows, and baselines.learned predicts for all of them at once: write `with "
                "pyro.plate('data', len(x)):`, or use another baseline."
            )
        predicted = self._predicted(signal, dim)
        rows = signal.values / signal.weight
        rest = rows - predicted.detach()
        others = [d for d in range(-rows.dim(), 0) if d != dim]
        centred = without_others(rest, dim, *others)
        misfit = (rows - (rest - centred) - predicted).square().sum() / 2
        if self.normalised:
            centred = centred / centred.square().mean().sqrt().clamp_min(1.0)
        return signal.weight * centred, signal.weight * (misfit.detach() - misfit)

    def _predicted(self, signal: Signal, dim: int) -> Tensor:
        """C(x), with the rows in this dimension."""
        run, known = signal.terms, signal.batch
        names = tuple(known) if self.inputs is None else self.inputs
        if missing := [name for name in names if name not in known]:
            raise PairError(
                f"baselines.learned reads the arguments {list(names)}, and {missing} are not among those of these rows, "
                f"{list(known)}: name others by inputs=..."
            )
        found: Any = self.net(*(known[name] for name in names))
        if not isinstance(found, Tensor) or found.shape not in ((run.num_rows,), (run.num_rows, 1)):
            got = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise PairError(
                f"The network of baselines.learned must return one number for each row, {(run.num_rows,)} or "
                f"{(run.num_rows, 1)}, got {got}."
            )
        return found.reshape(-1, *(1 for _ in range(-dim - 1)))

    def __repr__(self) -> str:
        inputs = "" if self.inputs is None else f", inputs={self.inputs!r}"
        return f"learned({type(self.net).__name__}{inputs}{', normalised=True' if self.normalised else ''})"
