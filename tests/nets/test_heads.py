"""Heads that are normalised over a batch: what they compute, the floor of the KL, and hierarchies with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae import families as fam


def normed(shape: Any = (2, 3), **options: Any) -> pv.nets.BatchNormedHead:
    torch.manual_seed(0)
    return pv.nets.BatchNormedHead(pv.nets.MLP(4, shape, (8,)), **options)


def rows(n: int = 50) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def test_all_numbers_are_normalised_as_by_torch() -> None:
    head, theirs = normed(), nn.BatchNorm1d(6)
    for _ in range(3):
        wanted = theirs(head.net(rows()).flatten(1))
        torch.testing.assert_close(head(rows()).flatten(1), wanted, rtol=1e-5, atol=1e-6)
    head.eval(), theirs.eval()
    # torch counts N - 1 in the running variance
    torch.testing.assert_close(head(rows()).flatten(1), theirs(head.net(rows()).flatten(1)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("locations", [None, 2])
def test_gamma_normalises_locations_alone(locations: int | None) -> None:
    head = normed(gamma=0.7, locations=locations)
    out, plain = head(rows()).flatten(1), head.net(rows()).flatten(1)
    number = 3 if locations is None else locations
    torch.testing.assert_close(out[:, :number].var(0, correction=0), torch.full((number,), 0.49), rtol=1e-2, atol=0)
    assert torch.equal(out[:, number:], plain[:, number:])
    assert [tuple(p.shape) for name, p in head.norm.named_parameters()] == [(number,)]  # a shift, and no factor


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_kl_has_the_floor_that_gamma_gives(shift: float) -> None:
    gamma = 0.7
    encoder = pv.batch_normed(pv.mlp(4, fam.Normal(3), (8,)), gamma=gamma)
    with torch.no_grad():
        encoder.net.norm.bias.fill_(shift)
    q = encoder(rows())
    prior = torch.distributions.Normal(0.0, 1.0)
    exact = kl_divergence(q.base_dist, prior).sum(-1).mean()
    var = encoder.net.net(rows())[:, 0].var(0, correction=0)
    locations = ((var / (var + 1e-5)) * gamma**2 + shift**2).sum() / 2
    scales = (0.5 * (q.base_dist.scale**2 - 1) - q.base_dist.scale.log()).sum(-1).mean()
    torch.testing.assert_close(exact, locations + scales, rtol=1e-5, atol=0)
    floor = (gamma**2 * var / (var + 1e-5)).sum() / 2
    assert scales >= 0 and exact >= floor > 0


def test_mistakes() -> None:
    for wrong in (0.0, -1.0, True, float("nan"), "1"):
        with pytest.raises(pv.OptionError, match="gamma of BatchNormedHead must be a positive number, or None"):
            normed(gamma=wrong)
    with pytest.raises(pv.OptionError, match="only with gamma"):
        normed(locations=2)
    for count in (0, 7, 1.5, True):
        with pytest.raises(pv.OptionError, match="needs locations"):
            normed(gamma=1.0, locations=count)
    with pytest.raises(pv.OptionError, match="needs locations"):
        normed(6, gamma=1.0)
    with pytest.raises(pv.ShapeError, match="out_shape"):
        pv.nets.BatchNormedHead(nn.Linear(4, 3))
    with pytest.raises(pv.OptionError, match="takes a Conditional"):
        pv.batch_normed(nn.Linear(4, 3))  # type: ignore[arg-type]
    with pytest.raises(pv.OptionError, match="with gamma takes a Normal"):
        pv.batch_normed(pv.mlp(4, fam.Bernoulli(3)), gamma=1.0)
    with pytest.raises(pv.ShapeError, match="row"):
        normed()(rows(1))


# --- hierarchies -----------------------------------------------------------------------------------------------------


def ladder() -> pv.LadderVAE:
    torch.manual_seed(0)
    how: dict[str, Any] = {"layers": 1, "activation": pv.nets.BatchNormed(nn.LeakyReLU), "head": pv.batch_normed}
    return pv.LadderVAE.of_levels(fam.Bernoulli(6), (4, 2), (8, 8), **how)


@pytest.mark.parametrize("head", ["batch_normed", 3, lambda conditional: None])
def test_heads_that_make_no_conditional(head: Any) -> None:
    with pytest.raises(pv.OptionError, match="head takes a conditional"):
        pv.LadderVAE.of_levels(fam.Bernoulli(6), (4, 2), (8, 8), head=head)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.bernoulli(torch.full((60, 6), 0.4), generator=torch.Generator().manual_seed(2))


def fitted(x: Tensor, engine: str = "eager") -> pv.Fit:
    return pv.fit(ladder(), x, epochs=2, batch_size=20, engine=engine, seed=0, progress=False)


def test_engines_and_files_agree(x: Tensor, tmp_path: Path) -> None:
    one, two = fitted(x), fitted(x, "traced")
    for name, value in one.pair.state_dict().items():
        torch.testing.assert_close(two.pair.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    pv.save(one, tmp_path / "run")
    again = pv.load(tmp_path / "run")
    how: dict[str, Any] = {"num_samples": 5, "proposal": "guide", "seed": 0}
    assert torch.equal(pv.log_likelihood(one, x, **how), pv.log_likelihood(again, x, **how))


def test_in_evaluation_a_row_is_judged_by_itself(x: Tensor) -> None:
    fit = fitted(x)
    with fit.scope():
        together = fit.pair.evidence[0](fit.pair.upward[0](x)).mean
        alone = torch.cat([fit.pair.evidence[0](fit.pair.upward[0](row[None])).mean for row in x[:5]])
    torch.testing.assert_close(together[:5], alone)


def test_recomputed_statistics_are_those_of_all_rows(x: Tensor) -> None:
    fit = fitted(x)
    weights = {name: p.clone() for name, p in fit.pair.named_parameters()}
    pv.recompute_statistics(fit, x, batch_size=60, seed=0)
    with fit.scope():
        first = fit.pair.upward[0]
        u = next(part for part in first.modules() if isinstance(part, nn.Linear))(x)
        norm = next(part for part in first.modules() if hasattr(part, "running_mean"))
    torch.testing.assert_close(norm.running_mean, u.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, u.var(0), rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.1 and all(torch.equal(p, weights[name]) for name, p in fit.pair.named_parameters())


@pytest.mark.parametrize("size", [2, 7, 20])
def test_batches_count_by_their_rows(x: Tensor, size: int) -> None:
    fit = fitted(x)
    pv.recompute_statistics(fit, x, batch_size=size, seed=0)
    norm = next(part for part in fit.pair.upward[0].modules() if hasattr(part, "running_mean"))
    with fit.scope():
        u = next(part for part in fit.pair.upward[0].modules() if isinstance(part, nn.Linear))(x)
    torch.testing.assert_close(norm.running_mean, u.mean(0), rtol=1e-4, atol=1e-5)


def test_statistics_that_are_not_finite_are_refused(x: Tensor) -> None:
    fit = fitted(x)
    before, bad = {name: buffer.clone() for name, buffer in fit.pair.named_buffers()}, x.clone()
    bad[-1] = torch.nan
    with pytest.raises(pv.DataError, match="not finite"):
        pv.recompute_statistics(fit, bad, batch_size=20, seed=0)
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in fit.pair.named_buffers())


def test_statistics_that_do_not_exist(x: Tensor) -> None:
    plain = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
    fit = pv.fit(plain, x, epochs=0, progress=False)
    with pytest.raises(pv.OptionError, match="no batch normalisation"):
        pv.recompute_statistics(fit, x)
    fit = fitted(x)
    before = {name: value.clone() for name, value in fit.pair.state_dict().items()}
    with pytest.raises(pv.OptionError, match="batch_size"):
        pv.recompute_statistics(fit, x, batch_size=1)
    with pytest.raises(pv.ShapeError, match="two rows"):
        pv.recompute_statistics(fit, x[:1])
    pv.recompute_statistics(fit, x[:3], batch_size=2)  # one batch of three
    assert any(not torch.equal(value, before[name]) for name, value in fit.pair.state_dict().items())


def stop(fit: pv.Fit) -> None:
    """Let the third pass through the likelihood's network be interrupted."""
    passes: list[int] = []

    def interrupt(*_: Any) -> None:
        passes.append(0)
        if len(passes) == 3:
            raise KeyboardInterrupt

    fit.pair.likelihood.register_forward_pre_hook(interrupt)


def test_an_interrupted_pass_leaves_the_statistics_as_they_were(x: Tensor) -> None:
    fit = fitted(x)
    before = {name: value.clone() for name, value in fit.pair.state_dict().items()}
    stop(fit)
    with pytest.raises(KeyboardInterrupt):
        pv.recompute_statistics(fit, x, batch_size=10)
    assert all(torch.equal(value, before[name]) for name, value in fit.pair.state_dict().items())


def test_statistics_are_recomputed_of_a_fit_only() -> None:
    pair = pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Bernoulli(2)), pv.mlp(2, fam.Normal(1)))
    with pytest.raises(pv.OptionError, match="asked of a fit"):
        pv.recompute_statistics(pair, torch.zeros(4, 2))
