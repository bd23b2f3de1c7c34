import pytest
import torch

from pyrovae.distributions.inverting import inverse
from pyrovae.nets.flows import transform


@pytest.mark.parametrize("kind", ["nsf", "iaf", "coupling"])
@pytest.mark.parametrize("features, context", [(1, 0), (1, 2), (2, 2), (7, 0), (7, 3)])
def test_the_inverse_is_that_of_zuko(kind: str, features: int, context: int) -> None:
    torch.manual_seed(0)
    made = transform(features, context, kind, 2, (16,)).double()
    for parameter in made.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    t = made(torch.randn(5, context).double() if context else None)
    y = (2 * torch.randn(3, 5, features)).double().requires_grad_()
    x = inverse(t, y)
    torch.testing.assert_close(t(x), y)
    torch.testing.assert_close(x, t.inv(y))
    slopes = (torch.autograd.grad((each**3).sum(), y)[0] for each in (x, t.inv(y)))
    torch.testing.assert_close(*slopes)
    one = inverse(t, y[0, 0])  # of one vector in all contexts
    torch.testing.assert_close(one, t.inv(y[0, 0].expand(one.shape)))
