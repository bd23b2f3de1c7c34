"""Parts whose parameters do not learn."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from pyrovae.errors import OptionError

Part = TypeVar("Part", bound=nn.Module)


def frozen(part: Part) -> Part:
    """A copy of a module whose parameters do not learn, in evaluation mode.

    In another graph it does what it did in the one that it was fitted in: its parameters and buffers, such as running means,
    stay as they are, and its dropout is off. The module itself can go on learning, and the fit that it belongs to still
    answers. Modules that share a parameter are frozen together, by freezing the module that holds both.

    `pv.save` records which parameters do not learn, and `pv.load` restores that where it builds the pair itself; of a pair that
    you build and pass to it, freeze the same parts. `.requires_grad_(True)` and `.train()` let them learn again.

    Args:
        part: The module: a conditional, a prior, a network, or a whole pair.

    Returns:
        The copy, of the same class.

    Raises:
        OptionError: `part` is not a module.

    Example:
        >>> vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        >>> decoder = pv.frozen(vae.likelihood)
        >>> any(p.requires_grad for p in decoder.parameters()), all(p.requires_grad for p in vae.likelihood.parameters())
        (False, True)

        An encoder for a decoder that stays as it is:

        >>> other = pv.VAE(vae.prior, decoder, pv.mlp(6, fam.FullNormal(2)))
        >>> fitted = pv.fit(other, torch.rand(40, 6).round(), epochs=1, progress=False, device="cpu")
        >>> all(map(torch.equal, decoder.parameters(), vae.likelihood.parameters()))
        True
    """
    if not isinstance(part, nn.Module):
        raise OptionError(
            f"frozen takes a module, such as a conditional or a prior, got {type(part).__name__}. A distribution has no "
            "parameters to freeze; those of a pair of functions are frozen in their modules, by .requires_grad_(False)."
        )
    return copy.deepcopy(part).requires_grad_(False).eval()
