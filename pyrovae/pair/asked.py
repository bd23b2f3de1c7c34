"""What questions are asked of: a fit, and not the pair itself, or data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrovae.errors import OptionError


def refuse_unfitted(value: Any) -> None:
    """OptionError for what is no fit, as `pv.fit` returns it."""
    if hasattr(value, "scope") and hasattr(value, "pair"):
        return
    kind = type(value).__name__
    if hasattr(value, "model") and hasattr(value, "guide"):
        raise OptionError(
            f"This is asked of a fit, as pv.fit returns it, and got the pair itself, {kind}: fitted = pv.fit(pair, data, "
            "epochs=50), or, for a pair with the parameters that it has, epochs=0."
        )
    got = f"{kind} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind
    raise OptionError(f"This is asked of a fit, as pv.fit returns it, which comes first, got {got}.")
