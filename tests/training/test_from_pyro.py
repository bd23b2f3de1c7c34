"""What a program of Pyro's brings along and a fit does not take: it is told before the first step, and how to write it here."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv


class Plain(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), in a plate that says of how many rows a batch is a subsample; None is as many as it has."""

    def __init__(self, total: int | None = None) -> None:
        super().__init__()
        self.total, self.loc = total, nn.Parameter(torch.zeros(()))

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", self.total or len(x), subsample=torch.arange(len(x)))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with self.plate(x):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def fit(pair: Any, data: Any, **options: Any) -> pv.Fit:
    return pv.fit(pair, data, epochs=1, engine="eager", progress=False, seed=0, **options)


X = torch.linspace(-1, 1, 40)
SOME = {"x": X, "y": torch.where(X > 0, X, torch.nan)}


@pytest.mark.parametrize(
    ("data", "options", "rows"),
    [
        (X, {"batch_size": 8}, "40 training rows,"),
        (X, {"batch_size": 40}, "40 training rows,"),
        (X, {"batch_size": 8, "validation": 0.25}, "30 training rows,"),
        (SOME, {"batch_size": 8}, "20 training rows that have x,"),
        ([{"x": part} for part in X.split(8)], {"num_rows": 40}, "40 training rows,"),
    ],
    ids=["minibatches", "one batch", "validation rows held out", "groups", "batches that come"],
)
def test_a_plate_of_another_number_of_rows_is_refused(data: Any, options: dict[str, Any], rows: str) -> None:
    # its scale would make the ELBO too large by 100/N, and local terms too heavy beside global ones
    with pytest.raises(
        pv.PairError, match=rf"subsample of 100 rows, and the fit has {rows} .*plate\('data', len\(x\)\)"
    ):
        fit(Plain(100), data, **options)


def test_a_plate_of_the_rows_of_the_fit_is_taken_and_counts_once() -> None:
    stated, plain = (fit(Plain(total), X, batch_size=8).history[-1]["elbo"] for total in (40, None))
    assert stated == pytest.approx(plain, rel=1e-6)


def function_of_svi(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
    return pyro.infer.Trace_ELBO().differentiable_loss(model, guide, *args, **kwargs)


def of_one_argument(pair: Any) -> pv.Bound:
    raise NotImplementedError


def of_a_tensor(pair: Any, batch: Any, *, num_rows: Any, kl_weight: Any, layout: Any) -> Tensor:
    return pv.elbo(pv.terms(pair, batch)).elbo


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (function_of_svi, r"function_of_svi takes model and guide, .*pv\.SVI\(model, guide, optim, loss\) takes it"),
        (pyro.infer.EnergyDistance(), r"EnergyDistance takes model and guide"),
        (of_one_argument, r"called as loss\(pair, batch, num_rows=.*of_one_argument\(pair"),
        (of_a_tensor, "must return a pv.Bound, and it returned a Tensor"),
    ],
)
def test_a_function_that_is_no_loss_of_a_fit_is_told(loss: Any, told: str) -> None:
    with pytest.raises(pv.OptionError, match=told):
        fit(Plain(), X, loss=loss)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (pyro.optim.Adam({"lr": 1e-3}), "got PyroOptim"),
        (torch.optim.SGD([torch.zeros(1)], lr=1.0), "got SGD"),
        ("adam", "got str"),
        (lambda leaves: None, "it returned NoneType"),
    ],
    ids=["of pyro", "an object", "a name", "nothing"],
)
def test_what_makes_no_optimizer_is_told(optimizer: Any, told: str) -> None:
    with pytest.raises(pv.OptionError, match=f"a function from a list of tensors to a torch optimizer, .*{told}"):
        fit(Plain(), X, optimizer=optimizer)
