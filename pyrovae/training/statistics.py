"""Running statistics of batch normalisation, computed anew with the weights that a fit ended with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from pyrovae._arguments import as_count
from pyrovae.batching.transformed import in_evaluation, transformed
from pyrovae.errors import DataError, OptionError, ShapeError
from pyrovae.fitted.fitted import Fit, seeded
from pyrovae.objectives.terms import terms
from pyrovae.pair.asked import refuse_unfitted
from pyrovae.pair.batch import group_rows, num_rows, take_group, take_rows
from pyrovae.pair.parameters import every_module


def recompute_statistics(fitted: Fit, data: Any, *, batch_size: int = 500, seed: int | None = None) -> None:
    """Set the running means and variances of batch normalisation to the averages over these rows, batch by batch.

    While a fit runs, they follow the last few steps: those of a fit in batches of 50 with the usual momentum of 0.1 stand for
    some 1,000 rows, and lag behind weights that still move. Here every batch counts by its number of rows, and all with the
    weights at the end of the fit. Layers are normalised by the batch, and everything else, such as dropout, is in evaluation
    mode. The fit is changed in place; its weights, and layers whose parameters are frozen, are not.

    Args:
        fitted: A fit.
        data: Rows, as for `pv.fit`: those of the fit, or some thousand of them.
        batch_size: About how many rows a batch has, at least 2; all batches have nearly the same number.
        seed: Of the draws of the guide and of a transform. None takes torch's random state as it is.

    Raises:
        OptionError: `fitted` is no fit, `batch_size` is below 2, or the pair has no layer with running statistics that learns.
        ShapeError: There is a single row, or a single one of which the same is known.
        DataError: The data cannot be bound to the model's arguments, or have rows of another shape or dtype than the fit's; or
            a mean or variance over them is not finite.

    References:
        Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1; Izmailov et al. 2018, arXiv:1803.05407, section 3.2.

    Example:
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> encoder = pv.batch_normed(pv.mlp(6, fam.Normal(2), hidden=()))
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), encoder)
        >>> fitted = pv.fit(vae, x, epochs=2, engine="eager", progress=False)
        >>> pv.recompute_statistics(fitted, x)
        >>> with fitted.scope():
        ...     (encoder(x).mean.std(0) / encoder.net.norm.weight[:2].abs()).round(decimals=2)
        tensor([1., 1.])
    """
    refuse_unfitted(fitted)
    size = as_count("batch_size", batch_size, 2)
    layers = {id(part): part for root in every_module(fitted.pair).values() for part in root.modules() if _moves(part)}
    if not layers:
        raise OptionError("The pair has no batch normalisation with running statistics that learns.")
    with seeded(seed), fitted.scope():
        batch = fitted.batch(data)
        with ExitStack() as stack:
            rows = stack.enter_context(_averaging(list(layers.values())))
            parts = [take_group(batch, group) for group in group_rows(fitted.pair, batch)]
            if any(num_rows(part) < 2 for part in parts):
                raise ShapeError(
                    "Statistics of batch normalisation need two rows or more, of each group that rows form by what is "
                    "known of them, and there is one: leave it out."
                )
            for part in parts:
                total = num_rows(part)
                number = max(1, total // size)  # batches, none of a single row
                for i in range(number):
                    some = take_rows(part, slice(i * total // number, (i + 1) * total // number))
                    some = transformed(fitted.pair, some, in_evaluation(fitted.transform))
                    rows[0] = num_rows(some)
                    terms(fitted.pair, some, layout=fitted.layout_of(some))
            averages: list[Any] = [kept for one in layers.values() for kept in (one.running_mean, one.running_var)]
            if not all(bool(kept.isfinite().all()) for kept in averages):
                raise DataError(
                    "A mean or variance over these rows is not finite: look for missing or very large values. All is left as "
                    "it was."
                )


def _moves(part: nn.Module) -> bool:
    if getattr(part, "track_running_stats", False) is not True or not isinstance(
        getattr(part, "running_mean", None), Tensor
    ):
        return False
    own = list(part.parameters())
    return any(p.requires_grad for p in own) or not own


@contextmanager
def _averaging(layers: list[Any]) -> Iterator[list[int]]:
    """Inside, the layers normalise by the batch, and their running statistics are averages over all rows seen.

    The list holds the number of rows of the batch to come.
    """
    rows, seen = [0], dict.fromkeys(map(id, layers), 0)
    momenta = [layer.momentum for layer in layers]

    def weigh(layer: Any, _: Any) -> None:
        seen[id(layer)] += rows[0]
        layer.momentum = rows[0] / seen[id(layer)]

    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    hooks = [layer.register_forward_pre_hook(weigh) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        yield rows
    except BaseException:
        for layer, (mean, var) in zip(layers, before):
            layer.running_mean.copy_(mean), layer.running_var.copy_(var)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta):
            layer.momentum, layer.training = momentum, False
