"""RandomMask: what an encoder does not see in training, while the likelihood and all questions see everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.programs import binary
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam

NAN = float("nan")


class Kept(nn.Module):
    """Keeps what it is given."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        self.seen, self.others = x, others
        return x.nan_to_num(-1.0)


@pytest.mark.parametrize("shape", [(400,), (4, 10, 10)])
@pytest.mark.parametrize("most", [0.5, 1.0])
def test_shares_are_uniform_and_entries_of_a_row_independent_given_them(shape: tuple[int, ...], most: float) -> None:
    """Moments of 2000 rows of 400 entries, at 4.5 standard errors: false alarms 3e-5 a case."""
    torch.manual_seed(0)
    net = Kept()
    given = torch.ones(2000, *shape)
    pv.nets.RandomMask(net, most)(given)
    seen = net.seen
    share = seen.isnan().flatten(1).double().mean(1)
    n, d = 2000, 400
    assert (given == 1).all() and (seen[~seen.isnan()] == 1).all()
    variance = most**2 / 12 + (most / 2 - most**2 / 3) / d  # of the share, and of 400 draws given it
    assert abs(share.mean() - most / 2) < 4.5 * (variance / n) ** 0.5
    assert abs(share.var() / variance - 1) < 4.5 * (2 / n) ** 0.5  # a uniform share varies less than a normal one
    each = seen.isnan().flatten(1).double().mean(0)
    assert ((each - most / 2).abs() < 5.5 * (most / 2 * (1 - most / 2) / n) ** 0.5).all()


def test_what_is_missing_stays_so_and_in_evaluation_nothing_else_is() -> None:
    net = Kept()
    mask = pv.nets.RandomMask(net, most=0.9)
    x = torch.arange(60.0).reshape(5, 3, 4)
    x[:, 0] = NAN
    mask(x, x[:, 1])
    assert net.seen[:, 0].isnan().all() and net.seen[:, 1:].isnan().any() and torch.equal(net.others[0], x[:, 1])
    assert torch.equal(mask.eval()(x).nan_to_num(-1.0), x.nan_to_num(-1.0))
    for empty in ((), (0, 3)):
        assert mask.train()(torch.ones(empty)).shape == empty


def vae(most: float | None = 0.8) -> pv.VAE:
    torch.manual_seed(0)
    q = fam.Normal(2)
    net: nn.Module = pv.nets.WithMask(pv.nets.MLP((6, 6), q.param_shape, hidden=(8,)))
    net = net if most is None else pv.nets.RandomMask(net, most)
    return pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), hidden=(8,)), pv.Conditional(net, q))


HOW: dict[str, Any] = {"epochs": 2, "batch_size": 10, "seed": 0, "progress": False}


def test_the_likelihood_is_of_whole_rows_and_questions_are_asked_of_them() -> None:
    pair, shown = vae(), {True: [], False: []}
    masked = pair.encoder.net.net
    masked.register_forward_pre_hook(lambda net, given: shown[net.training].append(bool(given[0].isnan().any())))
    x = binary()
    fitted = pv.fit(pair, x, validation=x, engine="eager", **HOW)
    assert all(shown[True]) and len(shown[True]) == 2 * len(x) // 10
    assert sum(shown[False]) == 1 < len(shown[False])  # the trial whether the network takes NaN
    codes = pv.encode(fitted, x)
    assert sum(shown[False]) == 1 and torch.equal(codes, pv.encode(fitted, x))
    pair.train()
    run = pv.terms(pair, {"x": x})
    assert torch.equal(run.sites["x"].value.reshape(x.shape), x) and run.sites["x"].p.log_prob.isfinite().all()


def test_each_step_hides_other_entries_in_every_engine() -> None:
    histories = {
        engine: [row["elbo"] for row in pv.fit(vae(), binary(), engine=engine, **HOW).history]
        for engine in ("eager", "traced")
    }
    assert histories["traced"] == pytest.approx(histories["eager"], rel=1e-5)
    still = pv.fit(vae(), binary(), engine="traced", **{**HOW, "learning_rate": 1e-12, "epochs": 3}).history
    assert len({row["elbo"] for row in still}) == 3


def test_it_is_saved_and_found_again(tmp_path: Path) -> None:
    x = binary()
    fitted = pv.fit(vae(), x, checkpoint=tmp_path / "run", engine="eager", **HOW)
    again = pv.load(tmp_path / "run")
    assert again.pair.encoder.net.most == 0.8
    assert torch.equal(pv.encode(again, x), pv.encode(fitted, x))


def test_what_cannot_be_is_refused() -> None:
    for most in (0.0, -0.1, 1.1, NAN, True):
        with pytest.raises(pv.OptionError, match="above 0 and at most 1"):
            pv.nets.RandomMask(nn.Identity(), most)
    q = fam.Normal(2)
    encoder = pv.Conditional(pv.nets.RandomMask(pv.nets.MLP(6, q.param_shape)), q)
    with pytest.raises(pv.OptionError, match=r"MLP makes NaN of them: put WithMask"):
        pv.fit(pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), encoder), binary(), **HOW)
    with pytest.raises(pv.ShapeError, match=r"torch.int64 does not have: give it x.float\(\)"):
        pv.nets.RandomMask(nn.Identity())(torch.ones(3, 2, dtype=torch.int64))
