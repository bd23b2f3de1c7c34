"""Conditionals whose parameters are normalised over a batch."""

from __future__ import annotations

from pyrovae.conditionals import Conditional
from pyrovae.errors import OptionError
from pyrovae.families import FullNormal, LowRankNormal, Normal
from pyrovae.nets import BatchNormedHead

NORMALS = (Normal, FullNormal, LowRankNormal)  # whose first parameters are the mean


def batch_normed(conditional: Conditional, gamma: float | None = None, momentum: float = 0.1) -> Conditional:
    """`p(child | parents) = family(BatchNormedHead(net)(parents))`: a conditional whose parameters are normalised over a batch.

    See `nets.BatchNormedHead`, also for the floor of a KL term that `gamma` gives.

    Args:
        conditional: A `Conditional`, as made by `mlp`, `conv` or `resnet`; its network and family are used, not copied.
        gamma: None normalises all parameters and learns a factor for each. A positive number normalises the locations alone,
            and is their factor, of a `Normal`, `FullNormal` or `LowRankNormal`.
        momentum: How far each pass moves the running statistics towards its own, above 0 and at most 1.

    Returns:
        A `Conditional`.

    Raises:
        OptionError: `conditional` is none, a number is out of range, or `gamma` is given for another family.
        ShapeError: The network has no `out_shape`.

    References:
        Sønderby et al. 2016, arXiv:1602.02282; Zhu et al. 2020, arXiv:2004.12585.

    Example:
        >>> encoder = pv.batch_normed(pv.mlp(6, fam.Normal(2)), gamma=0.5)
        >>> encoder(torch.randn(100, 6)).mean.detach().var(0, correction=0).round(decimals=2)
        tensor([0.2500, 0.2500])
    """
    if not isinstance(conditional, Conditional):
        raise OptionError(
            f"batch_normed takes a Conditional, a network and a family, got {type(conditional).__name__}: put "
            "nets.BatchNormedHead around the network of another module."
        )
    family = conditional.family
    if gamma is not None and not isinstance(family, NORMALS):
        raise OptionError(f"batch_normed with gamma takes a Normal, FullNormal or LowRankNormal, got {family}.")
    locations = None if gamma is None else family.event_shape.numel()
    return Conditional(BatchNormedHead(conditional.net, gamma, locations, momentum), family)
