"""Monte Carlo estimates of log p(x) with draws from the prior, which need no guide."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrovae.criticism.importance import log_likelihood
from pyrovae.criticism.prior_as_guide import with_prior_as_guide
from pyrovae.fitted.fitted import Fit
from pyrovae.pair.asked import refuse_unfitted


def prior_log_likelihood(fitted: Fit, data: Any, num_samples: int = 1000, *, seed: int | None = None) -> Tensor:
    """Estimate log p(x) with K draws from the prior, `log (1/K) sum_k p(x | z_k)` with `z_k ~ p(z)`.

    With a condition c it is `p(x | z_k, c)` with `z_k ~ p(z | c)`. The expectation of the estimate is at most log p(x). It
    is far below if the posterior is much narrower than the prior; `pv.log_likelihood`, with draws near the posterior, is then
    closer. Both converge to log p(x) as K grows. To see the effective sample size and k-hat of the estimate, call
    `pv.importance` on `with_prior_as_guide(fitted)`.

    Enumerated sites are summed out. Global latent sites are drawn from the guide, so that the estimate of a row is its log
    predictive density.

    Args:
        fitted: The fitted pair.
        data: The rows, as for `pv.fit`. The transform of the fit is applied once, with a fixed seed.
        num_samples: The number K of draws for each row.
        seed: The seed of the draws; None continues torch's random state.

    Returns:
        The estimate for each row in nats, `(N,)` float64, on the CPU.

    Raises:
        OptionError: `num_samples` is less than 1.
        DataError: Values are outside the support of the likelihood, or missing where it does not allow that.

    References:
        Sohn, Lee & Yan 2015, *Learning structured output representation using deep conditional generative models*,
        section 4.

    Example:
        >>> vae = pv.VAE(
        ...     prior=pv.priors.StandardNormal(2),
        ...     likelihood=pv.mlp(2, fam.Bernoulli(6), hidden=(8,)),
        ...     encoder=pv.mlp(6, fam.Normal(2), hidden=(8,)),
        ... )
        >>> x = torch.bernoulli(torch.full((40, 6), 0.4))
        >>> fitted = pv.fit(vae, x, epochs=1, engine="eager", progress=False)
        >>> pv.prior_log_likelihood(fitted, x, num_samples=100, seed=0).shape
        torch.Size([40])
    """
    refuse_unfitted(fitted)
    return log_likelihood(with_prior_as_guide(fitted), data, num_samples, proposal="guide", seed=seed)
