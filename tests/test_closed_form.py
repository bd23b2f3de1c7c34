"""Exact EM: scikit-learn's optimum, never a fall, a guide that is the posterior, and what it refuses."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA, FactorAnalysis
from torch import Tensor

import pyrovae as pv


@pytest.fixture(scope="module")
def rows() -> Tensor:
    """Two factors of six columns, in units that differ by a factor of ten thousand."""
    torch.manual_seed(0)
    x = torch.randn(150, 2) @ torch.randn(2, 6) + torch.linspace(0.3, 1.0, 6) * torch.randn(150, 6)
    return (x + 3) * torch.tensor([1e-3, 10.0, 1.0, 1.0, 0.1, 1.0])


def test_factor_analysis_is_that_of_scikit_learn(rows: Tensor) -> None:
    x = rows.double().numpy()
    found = pv.linear_em(rows, latent=2, tolerance=1e-9)
    units = x.std(0)  # scikit-learn's is not invariant to units, as it adds a small number to its variances
    theirs = FactorAnalysis(2, tol=1e-10, max_iter=5000, svd_method="lapack").fit(x / units).score(x / units)
    assert abs(found.history[-1]["elbo"] - (theirs - np.log(units).sum())) < 1e-5
    elbos = [row["elbo"] for row in found.history]
    assert all(b >= a - 1e-10 for a, b in itertools.pairwise(elbos)) and elbos[-1] > elbos[0] + 0.01


def test_one_noise_is_probabilistic_pca(rows: Tensor) -> None:
    found = pv.linear_em(rows, latent=2, noise="shared")
    assert abs(found.history[-1]["elbo"] - PCA(2).fit(rows.double().numpy()).score(rows.double().numpy())) < 0.02
    # scikit-learn divides by N - 1, which is not the maximum
    assert found.history[-1]["elbo"] >= PCA(2).fit(rows.double().numpy()).score(rows.double().numpy())


@pytest.mark.parametrize("noise", ["column", "shared"])
def test_the_guide_is_the_posterior(rows: Tensor, noise: str, tmp_path: Path) -> None:
    """All weights of a row are log p(x), so that few draws tell it; in float32, and after a run has been read again."""
    fitted = pv.linear_em(rows, latent=2, noise=noise)
    pv.save(fitted, tmp_path / "run")
    for one in (fitted, pv.load(tmp_path / "run")):
        found = pv.importance(one, rows, 4, proposal="guide", seed=0)
        assert (found.log_likelihood - found.elbo).abs().max() < 1e-2
        assert abs(found.log_likelihood.mean().item() - fitted.history[-1]["elbo"]) < 1e-2
        assert one.history == fitted.history


@pytest.mark.parametrize(
    ("data", "options", "error", "words"),
    [
        (torch.randn(5, 3), {"latent": 3}, pv.OptionError, "less than the 3 columns"),
        (torch.randn(5, 3), {"latent": 0}, pv.OptionError, "latent"),
        (torch.randn(5, 3), {"latent": 1, "noise": "net"}, pv.OptionError, "'column', 'shared'"),
        (torch.randn(5, 3), {"latent": 1, "epochs": 0}, pv.OptionError, "epochs"),
        (torch.randn(5, 3), {"latent": 1, "tolerance": "a"}, pv.OptionError, "tolerance"),
        (torch.randn(5, 3), {"latent": 1, "tolerance": float("nan")}, pv.OptionError, "tolerance"),
        (torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]), {"latent": 1}, pv.DataError, "without gaps"),
        (torch.randn(5), {"latent": 1}, pv.DataError, r"\(N, D\)"),
        (torch.stack([torch.randn(5), torch.full((5,), 0.1)], 1), {"latent": 1}, pv.DataError, r"\[1\] are constant"),
    ],
)
def test_what_is_refused(data: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pv.linear_em(data, **options)


@pytest.mark.parametrize("noise", ["column", "shared"])
def test_units_of_any_size(rows: Tensor, noise: str) -> None:
    """Scales in the thousands are those of incomes, or of the grey levels of pixels."""
    x = rows / rows.std(0)
    least, fitted = pv.linear_em(x, latent=2, noise=noise), pv.linear_em(1e4 * x, latent=2, noise=noise)
    shift = 6 * np.log(1e4)
    assert fitted.history[-1]["elbo"] == pytest.approx(least.history[-1]["elbo"] - shift, abs=1e-3)
    found = pv.importance(fitted, 1e4 * x, 4, proposal="guide", seed=0)
    assert found.log_likelihood.mean().item() == pytest.approx(fitted.history[-1]["elbo"], abs=1e-2)


def test_constant_columns_share_the_noise_of_the_others(rows: Tensor) -> None:
    x = torch.cat([rows / rows.std(0), torch.full((150, 1), 2.0)], 1)
    found, theirs = pv.linear_em(x, latent=2, noise="shared").history[-1]["elbo"], PCA(2).fit(x.double().numpy())
    assert abs(found - theirs.score(x.double().numpy())) < 0.02
    with pytest.raises(pv.DataError, match="constant"):
        pv.linear_em(torch.ones(5, 3), latent=1, noise="shared")


def test_fewer_rows_than_columns_never_fall(rows: Tensor) -> None:
    """Some columns come to lie on the factors, where their noise stays at its floor."""
    elbos = [row["elbo"] for row in pv.linear_em(rows[:4], latent=2, epochs=200).history]
    assert all(b >= a - 1e-10 for a, b in itertools.pairwise(elbos)) and np.isfinite(elbos).all()


def test_integers_and_arrays_are_rows_too() -> None:
    x = np.random.default_rng(0).integers(0, 17, (50, 4))
    assert pv.linear_em(x, latent=1).history[-1]["elbo"] == pytest.approx(
        pv.linear_em(torch.as_tensor(x).float(), latent=1).history[-1]["elbo"]
    )
