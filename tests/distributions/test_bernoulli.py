"""The Bernoulli distribution: its log-density and gradient against torch's own in double precision, at logits of any size."""

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pyrovae.distributions.bernoulli import Bernoulli

LOGITS = torch.tensor([-1e4, -90.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 90.0, 1e4])


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_log_density_and_gradient_at_logits_of_any_size(x: float) -> None:
    logits, exact = LOGITS.clone().requires_grad_(), LOGITS.double().requires_grad_()
    value = torch.full_like(logits, x)
    found = Bernoulli(logits, validate_args=False).log_prob(value)
    wanted = -binary_cross_entropy_with_logits(exact, value.double(), reduction="none")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1.5e-7)
    gradients = (torch.autograd.grad(each.sum(), of)[0] for each, of in ((found, logits), (wanted, exact)))
    torch.testing.assert_close(next(gradients).double(), next(gradients), rtol=1e-6, atol=1.5e-7)


def test_second_derivative_also_where_a_logit_is_zero() -> None:
    logits = torch.tensor([-5.0, -0.7, -1e-9, -0.0, 0.0, 1e-9, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(Bernoulli(logits).log_prob(torch.ones(8).double()).sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(second, -p * (1 - p), rtol=1e-10, atol=0)


def test_it_is_pyros_in_double_precision() -> None:
    logits = torch.linspace(-8, 8, 9, dtype=torch.float64)
    x = (torch.arange(9) % 2).double()
    torch.testing.assert_close(
        Bernoulli(logits).log_prob(x), dist.Bernoulli(logits=logits).log_prob(x), rtol=1e-12, atol=1e-15
    )


def test_half_precision_logits_lose_no_digits_to_the_density() -> None:
    logits = torch.linspace(-12, 12, 49).bfloat16()
    x = (torch.arange(49) % 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = Bernoulli(logits).log_prob(x)
    torch.testing.assert_close(found, Bernoulli(logits.double()).log_prob(x.double()).float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(Bernoulli(logits).log_prob(x.bool()), Bernoulli(logits).log_prob(x.bfloat16()))
