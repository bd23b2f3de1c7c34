"""NVAE: what its graph is, the residual Normal and its KL, cells that keep rows apart, and the spectral penalty."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.distributions import residual_normal
from pyrovae.fitted.spec import from_spec, to_spec
from pyrovae.nets import EncoderCell, GenerativeCell

SMALL: dict[str, Any] = {"channels": (4, 8), "groups": (1, 2), "latent_channels": 2}


# --- the residual Normal ---------------------------------------------------------------------------------------------


def test_without_deltas_it_is_the_prior() -> None:
    prior = dist.Normal(torch.randn(3, 2, 4), torch.rand(3, 2, 4) + 0.1).to_event(2)
    same = residual_normal(prior, torch.zeros(3, 2, 4), torch.zeros(3, 2, 4))
    assert same.batch_shape == (3,) and same.event_shape == (2, 4)
    assert torch.equal(same.mean, prior.mean) and torch.equal(same.variance, prior.variance)


def test_its_kl_is_the_formula_of_the_paper() -> None:
    prior = dist.Normal(torch.randn(3, 4), torch.rand(3, 4) + 0.1).to_event(1)
    d, c = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    guide = residual_normal(prior, d, c)
    c = 5 * torch.tanh(c / 5)
    by_hand = 0.5 * (d.square() / prior.variance + (2 * c).exp() - 2 * c - 1).sum(-1)
    torch.testing.assert_close(kl_divergence(guide, prior.expand((5, 3))), by_hand)


def test_scales_stay_within_e_to_the_5() -> None:
    prior = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    extreme = residual_normal(prior, torch.zeros(2), torch.tensor([-1e6, 1e6]))
    torch.testing.assert_close(extreme.stddev.log(), torch.tensor([-5.0, 5.0]))


def test_another_prior_is_refused() -> None:
    with pytest.raises(pv.PairError, match=r"got Laplace\. Take the family Normal"):
        residual_normal(dist.Laplace(torch.zeros(2), 1.0).to_event(1), torch.zeros(2), torch.zeros(2))


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options", "shapes"),
    [
        (fam.Bernoulli((28, 28)), {}, {"z1_1": (4, 7, 7), "z1_2": (4, 7, 7), "z2_4": (4, 14, 14)}),
        (fam.Bernoulli((1, 9, 7)), {**SMALL, "expansion": 3}, {"z1_1": (2, 3, 2), "z2_2": (2, 5, 4)}),
        (fam.Bernoulli((9, 7)), {**SMALL, "groups": (2,), "cells": 2}, {"z1_1": (2, 3, 2), "z1_2": (2, 3, 2)}),
        (fam.Normal((2, 1)), SMALL, {"z1_1": (2, 1, 1), "z2_2": (2, 1, 1)}),
        (fam.DiscretizedLogisticMixture((3, 6, 5), 256, 2), {**SMALL, "rescale": 1 / 255}, {"z2_1": (2, 3, 3)}),
    ],
    ids=str,
)
def test_sites_stand_at_their_resolution(family: fam.Family, options: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    pair = pv.NVAE(family, **options)
    x = torch.randint(2, (6, *family.event_shape)).float()
    layout = pv.check_pair(pair, x)
    found = {s.name: s.event_shape for s in layout.sites}
    assert list(found) == [f"z{s}_{g}" for s, n in enumerate(pair.groups, 1) for g in range(1, n + 1)] + ["x"]
    assert found["x"] == family.event_shape and shapes.items() <= found.items()
    assert pv.log_weights(pv.terms(pair, {"x": x}, num_particles=3)).shape == (3, 6)


def test_the_first_prior_is_standard_and_the_others_follow_what_was_drawn() -> None:
    pair = pv.NVAE(fam.Bernoulli((9, 7)), **SMALL)
    run = pv.terms(pair, {"x": torch.ones(4, 9, 7)}, num_particles=2)
    top, below = run.sites["z1_1"].p, run.sites["z2_1"].p
    assert top is not None and below is not None
    assert not top.fn.mean.any() and (top.fn.variance == 1).all()
    assert not torch.equal(below.fn.mean[0], below.fn.mean[1])


@pytest.mark.slow
def test_the_kl_in_closed_form_is_that_of_the_draws_on_average() -> None:
    torch.manual_seed(0)
    pair = pv.NVAE(fam.Bernoulli((4, 4)), **SMALL).double()
    with torch.no_grad():
        for group in pair.parts.values():
            for parameter in group.of_both.parameters():
                parameter.mul_(8)
    batch = {"x": torch.bernoulli(torch.full((3, 4, 4), 0.5, dtype=torch.float64))}
    with torch.no_grad():
        several = [pv.terms(pair, batch, num_particles=2000) for _ in range(2)]
        drawn = torch.stack([pv.elbo(run).elbo for run in several])
        closed = torch.stack([pv.elbo(run, kl="analytic").elbo for run in several])
        spread = pv.log_weights(several[0]).sum(1).std() / 4000**0.5
    assert (drawn.mean() - closed.mean()).abs() < 5 * spread


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    pair = pv.NVAE(fam.Bernoulli((9, 7)), **SMALL, expansion=2)
    x = torch.bernoulli(torch.full((5, 9, 7), 0.5))
    together = pair.bottom_up(x)
    for i, one in enumerate(x):
        for whole, alone in zip(together, pair.bottom_up(one)):
            torch.testing.assert_close(whole[i], alone, rtol=1e-4, atol=1e-5)
    assert not any(True for _ in pair.bottom_up.buffers())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"family": fam.Bernoulli(784)}, pv.ShapeError, r"family of images.*got Bernoulli\(784\).*an image's shape"),
        ({"groups": (1, 1, 1)}, pv.OptionError, r"each of its 3 scales.*channels=\(4, 8\) and groups=\(1, 1, 1\)"),
        ({"groups": (1, 0)}, pv.OptionError, r"groups of NVAE must be a whole number from 1 .*got \(1, 0\)"),
        ({"groups": ()}, pv.OptionError, r"groups of NVAE must be a whole number from 1 .*got \(\)"),
        ({"channels": (4, 2.5)}, pv.OptionError, r"channels of NVAE must be a whole number from 1 .*got \(4, 2.5\)"),
        ({"latent_channels": 0}, pv.OptionError, "latent_channels of NVAE must be at least 1 .*got 0"),
        ({"cells": 0}, pv.OptionError, "cells of NVAE must be at least 1 .*got 0"),
        ({"expansion": -1}, pv.OptionError, "expansion of NVAE must be at least 0, got -1"),
        ({"rescale": 0}, pv.OptionError, "rescale of NVAE must be a positive number, got 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pv.NVAE(**{"family": fam.Bernoulli((9, 7)), **SMALL, **options})


def test_rows_of_another_shape_are_named() -> None:
    pair = pv.NVAE(fam.Bernoulli((9, 7)), **SMALL)
    with pytest.raises(pv.ShapeError, match=r"needs rows of shape \(\*batch, 9, 7\), got \(5, 63\)"):
        pair.bottom_up(torch.zeros(5, 63))


# --- cells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [EncoderCell, GenerativeCell], ids=lambda c: c.__name__)
@pytest.mark.parametrize("channels", [3, 8, 32])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
def test_cells_take_any_batch_and_start_near_the_identity(build: Any, channels: int, batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cell, x = build(channels), torch.randn(*batch, channels, 5, 4)
    out = cell(x)
    assert out.shape == x.shape
    rows, flat = out.reshape(-1, channels, 5, 4), x.reshape(-1, channels, 5, 4)
    for row, alone in zip(rows, flat):
        torch.testing.assert_close(row, cell(alone), rtol=1e-4, atol=1e-5)
        assert 0 < (row - alone).norm() < 0.2 * alone.norm()


# --- the penalty -----------------------------------------------------------------------------------------------------


def layer_of(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    return layer


@pytest.mark.parametrize("shape", [(5, 5), (8, 3), (3, 8), (1, 4), (4, 1), (6, 18), (6, 25)], ids=str)
def test_the_penalty_of_a_layer_is_its_largest_singular_value_with_its_gradient(shape: tuple[int, int]) -> None:
    layer = layer_of(torch.randn(shape, dtype=torch.float64))
    ours, true = pv.penalties.spectral_norm(1.0)(layer), torch.linalg.matrix_norm(layer.weight, 2)
    torch.testing.assert_close(ours, true)
    gradients = (torch.autograd.grad(value, layer.weight)[0] for value in (ours, true))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_layer_of_zeros_has_norm_zero_and_a_gradient_without_nan() -> None:
    layer = layer_of(torch.zeros(3, 4))
    penalty = pv.penalties.spectral_norm(1.0)(layer)
    penalty.backward()
    assert penalty == 0 and layer.weight.grad is not None and torch.isfinite(layer.weight.grad).all()


def test_equal_singular_values_do_no_harm() -> None:
    torch.testing.assert_close(pv.penalties.spectral_norm(1.0)(layer_of(2 * torch.eye(4))).detach(), torch.tensor(2.0))


def test_the_penalty_is_the_sum_over_layers_that_two_share_once() -> None:
    pair = pv.NVAE(fam.Bernoulli((9, 7)), **SMALL)
    layers = [m for m in pair.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    by_hand = sum(torch.linalg.matrix_norm(m.weight.flatten(1), 2).item() for m in layers)
    assert pv.penalties.spectral_norm(0.5)(pair).item() == pytest.approx(0.5 * by_hand, rel=1e-3)
    plain = pv.Pair(pair.model, pair.guide)
    assert pv.penalties.spectral_norm(0.5)(plain).item() == pytest.approx(0.5 * by_hand, rel=1e-3)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert pv.penalties.spectral_norm(1.0)(tied).item() == pytest.approx(
        torch.linalg.matrix_norm(tied[0].weight, 2).item(), rel=1e-3
    )


@pytest.mark.slow
def test_a_heavy_penalty_shrinks_the_layers_and_is_recorded() -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    sizes = []
    for weight in (0.0, 1e4):
        torch.manual_seed(0)
        pair = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
        penalty = pv.penalties.spectral_norm(weight)
        fitted = pv.fit(pair, x, epochs=10, batch_size=20, penalty=penalty, learning_rate=1e-2, seed=0, engine="traced")
        assert fitted.settings["engine"] == "traced"
        again = from_spec(fitted.settings["penalty"])
        assert isinstance(again, pv.penalties.spectral_norm) and again.weight == weight
        assert to_spec(again) == fitted.settings["penalty"]
        sizes.append(pv.penalties.spectral_norm(1.0)(pair).item())
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_must_be_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(pv.OptionError, match="weight of spectral_norm must be a number of at least 0"):
        pv.penalties.spectral_norm(weight)


def test_a_pair_without_layers_is_told() -> None:
    with pytest.raises(pv.PairError, match="the modules of this pair have none"):
        pv.penalties.spectral_norm(1.0)(pv.priors.StandardNormal(2))


def test_of_a_transposed_convolution_the_outputs_are_the_rows() -> None:
    layer = nn.ConvTranspose2d(3, 5, 2)
    exact = torch.linalg.matrix_norm(layer.weight.transpose(0, 1).reshape(5, -1), 2)
    torch.testing.assert_close(pv.penalties.spectral_norm(1.0)(layer), exact, rtol=1e-4, atol=0)
