"""`to_arviz` and `from_pyro_svi`: groups, dimensions and values against closed forms, and ArviZ's functions on the result."""

import inspect
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz_plots
import arviz_stats
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from support.pairs import GlobalMean, InnerPlate, LinearGaussian, linear_gaussian, unfitted
from support.programs import ROWS, binary, labels, some_labelled
from support.told import told
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.criticism import proposals
from pyrovae.criticism.proposals import refine_rows

BOUND = 4.5  # standard errors: false alarms 7e-6 for each number compared
DRAWS, PARTICLES = 120, 400


@pytest.fixture(scope="module")
def gaussian() -> tuple[LinearGaussian, Tensor, Any]:
    """A pair whose guide is displaced, its rows, and the tree: what it should say is known in closed form."""
    pair, x, fitted = linear_gaussian(rows=12, shift=0.5, spread=1.5)
    return pair, x, pv.to_arviz(fitted, x, num_samples=DRAWS, num_particles=PARTICLES, proposal="guide", seed=0)


def values(tree: Any, group: str, name: str) -> Tensor:
    """The values of a variable with the draws along the first dimension."""
    return torch.from_numpy(tree[group][name].values[0])


def close(found: Tensor, wanted: Tensor, scale: Tensor | float, count: float) -> None:
    assert ((found - wanted).abs() <= BOUND * torch.as_tensor(scale) / count**0.5).all()


# --- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_groups_dimensions_and_coordinates(gaussian: Any) -> None:
    _, x, tree = gaussian
    draws = {"chain": 1, "draw": DRAWS}
    rows = {**draws, "data": 12}
    wanted: dict[str, dict[str, Any]] = {
        "posterior": {"z": {**rows, "z_dim_0": 2}},
        "posterior_predictive": {"x": {**rows, "x_dim_0": 5}},
        "log_likelihood": {"x": rows},
        "sample_stats": dict.fromkeys(("log_joint", "log_guide", "log_weight"), rows)
        | dict.fromkeys(("log_p", "log_q"), draws)
        | {name: {"data": 12} for name in ("k_hat", "ess", "standard_error")},
        "prior": {"z": {**rows, "z_dim_0": 2}},
        "prior_predictive": {"x": {**rows, "x_dim_0": 5}},
        "observed_data": {"x": {"data": 12, "x_dim_0": 5}},
    }
    found = {g: {v: dict(tree[g][v].sizes) for v in tree[g].data_vars} for g in tree.children}
    assert found == wanted
    assert tree["posterior"]["data"].values.tolist() == list(range(12))
    assert tree["posterior"].attrs["inference_library"] == "pyrovae"
    assert torch.equal(torch.from_numpy(tree["observed_data"]["x"].values), x)


def test_the_posterior_is_that_of_the_model(gaussian: Any) -> None:
    pair, x, tree = gaussian
    exact = pair.posterior(x)
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    z = values(tree, "posterior", "z")
    # resampled from 400 draws worth some 200 (shift 0.5, spread 1.5): an error of both, so of 200 / 2 independent draws
    close(z.mean(0), exact.mean, sd, DRAWS / 2)
    close(z.std(0), sd.expand(12, -1), sd, DRAWS)
    close(z.mean(0), pv.posterior(unfitted(pair, x), x, 500, proposal="guide", seed=1).mean(0), sd, DRAWS / 3)


def test_predictions_are_those_of_the_model(gaussian: Any) -> None:
    pair, x, tree = gaussian
    exact, marginal = pair.posterior(x), pair.marginal()
    mean = exact.mean @ pair.weight.T + pair.bias
    variance = (pair.weight @ exact.covariance_matrix @ pair.weight.T).diagonal(dim1=-2, dim2=-1) + pair.noise**2
    close(values(tree, "posterior_predictive", "x").mean(0), mean, variance.sqrt(), DRAWS / 2)
    again, prior = values(tree, "prior_predictive", "x").flatten(0, 1), values(tree, "prior", "z").flatten(0, 1)
    close(again.mean(0), marginal.mean, marginal.stddev, len(again))
    close(again.var(0), marginal.variance, math.sqrt(2) * marginal.variance, len(again))
    close(prior.mean(0), torch.zeros(2), 1.0, len(prior))


def test_densities_are_those_at_the_draws(gaussian: Any) -> None:
    pair, x, tree = gaussian
    z = values(tree, "posterior", "z")
    log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + pair.likelihood(z).log_prob(x)
    found = {name: values(tree, "sample_stats", name) for name in ("log_joint", "log_guide", "log_weight")}
    torch.testing.assert_close(found["log_joint"], log_p)
    torch.testing.assert_close(found["log_guide"], pair.proposal(x).log_prob(z))
    torch.testing.assert_close(found["log_weight"], found["log_joint"] - found["log_guide"])


def test_log_likelihood_integrates_the_latent_variables_out(gaussian: Any) -> None:
    pair, x, tree = gaussian
    log_likelihood, exact = values(tree, "log_likelihood", "x"), pair.marginal().log_prob(x)
    error = torch.from_numpy(tree["sample_stats"]["standard_error"].values)
    close(log_likelihood.mean(0), exact, error, 1)
    assert ((log_likelihood.std(0) / error - 1).abs() < 0.05).all()
    close(values(tree, "sample_stats", "log_p"), exact.sum(), error.square().sum().sqrt(), 1)
    assert tree["sample_stats"]["k_hat"].values.max() < 0.7


@pytest.fixture(scope="module")
def mean() -> tuple[Tensor, Any]:
    """A mean that all rows share, and a guide of it that is displaced and too wide."""
    torch.manual_seed(0)
    x = torch.randn(20) + 2
    pair = GlobalMean()
    precision = len(x) + 1 / 100
    with torch.no_grad():
        pair.loc.copy_(x.sum() / precision + 0.5 / precision**0.5)
        pair.log_scale.fill_(math.log(1.5 / precision**0.5))
    return x, pv.to_arviz(unfitted(pair, x), x, num_samples=250, seed=0, groups=["log_likelihood", "sample_stats"])


def exact_loo(x: Tensor) -> Tensor:
    """log p(x_i | the others) of rows N(theta, 1) with theta ~ N(0, 10^2)."""
    precision = len(x) - 1 + 1 / 100
    return dist.Normal((x.sum() - x) / precision, (1 + 1 / precision) ** 0.5).log_prob(x)


@pytest.fixture
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def approximate_loo(tree: Any, **options: Any) -> Any:
    stats = tree["sample_stats"]
    return arviz_stats.loo_approximate_posterior(
        tree, log_p=stats["log_p"], log_q=stats["log_q"], pointwise=True, **options
    )


@pytest.mark.slow
def test_leaving_a_row_out_with_a_global_site(mean: Any, quiet: None) -> None:
    """The guide's draws alone would be wrong by its displacement; their weights log_p - log_q make up for it."""
    x, tree = mean
    exact = exact_loo(x)
    found = torch.from_numpy(approximate_loo(tree).elpd_i.values)
    assert (found - exact).abs().max() < 0.1  # of 500 draws over 12 seeds 0.035 at most
    tree = xarray.DataTree.from_dict({**{g: tree[g].to_dataset() for g in tree.children}, "posterior": None})
    uncorrected = torch.from_numpy(arviz_stats.loo(tree, reff=1.0, pointwise=True).elpd_i.values)
    assert (uncorrected - exact).abs().max() > 0.25  # 0.36 at least


def test_densities_of_an_auto_guide() -> None:
    """log p - log q of draws of all global sites is constant where the guide is the posterior, whatever sites it draws."""
    torch.manual_seed(0)
    x = torch.randn(20) + 2
    precision = len(x) + 1 / 100

    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoDiagonalNormal(model)
    fitted = unfitted(pv.Pair(model, guide), x)
    with torch.no_grad():
        guide.loc.fill_(x.sum() / precision)
        guide.scale = torch.tensor([precision**-0.5])
    tree = pv.to_arviz(fitted, x, num_samples=20, seed=0, groups=["sample_stats"])
    difference = values(tree, "sample_stats", "log_p") - values(tree, "sample_stats", "log_q")
    covariance = torch.eye(20) + 100
    exact = dist.MultivariateNormal(torch.zeros(20), covariance).log_prob(x)
    assert (difference - exact).abs().max() < 1e-3


def test_a_draw_of_global_sites_takes_one_proposal_for_draws_and_densities(monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(0.3, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    asked: list[int] = []

    def counted(fitted: pv.Fit, rows: Any, *args: Any) -> Any:
        asked.append(len(rows["x"]))
        return refine_rows(fitted, rows, *args)

    monkeypatch.setitem(proposals.ADAPTED, "refined", counted)
    x = torch.randn(6, generator=torch.Generator().manual_seed(0))
    tree = pv.to_arviz(unfitted(pv.Pair(model, guide), x), x, num_samples=3, num_particles=400, seed=0)
    assert asked == [6, 6, 6]
    m = values(tree, "posterior", "m").reshape(-1, 1)  # and the densities are those given each draw
    exact = dist.Normal(m, 2**0.5).log_prob(x)
    assert (values(tree, "log_likelihood", "x").reshape(3, 6) - exact).abs().max() < 0.05


# --- any pair -----------------------------------------------------------------------------------------------------------

NAMES = ("classes-summed-out", "vade", "regime-summed-out", "global-and-local", "nvae", "regression", "cvae-label")


@pytest.mark.parametrize("name", NAMES)
def test_any_pair(name: str) -> None:
    """Each latent site has draws, each observed one predictions, and nothing is NaN."""
    row = ROWS[name]
    pair, data = row.build(), row.data()
    fitted = unfitted(pair, data)
    tree = pv.to_arviz(fitted, data, num_samples=3, num_particles=30, proposal="guide", seed=0)
    latent = {s.name for s in fitted.layout.sites if s.role == "latent"}
    observed = {s.name: s for s in fitted.layout.sites if s.role == "observed"}
    assert all(set(tree[g].data_vars) == latent for g in ("posterior", "prior") if latent)
    for group in ("posterior_predictive", "prior_predictive"):
        assert {n: v.shape for n, v in tree[group].items()} == {n: (1, 3, 40, *s.shape) for n, s in observed.items()}
    for group in tree.children:
        assert all(np.isfinite(v.values).all() for n, v in tree[group].items() if n not in ("k_hat", "ess")), group
    for site in fitted.layout.sites:
        if site.role == "latent":
            shape = (1, 3, *((40,) if site.local else ()), *site.shape)
            assert tree["posterior"][site.name].shape == tree["prior"][site.name].shape == shape
    assert ("c" in tree.get("constant_data", {})) == ("c" in fitted.layout.arguments)


@pytest.mark.slow
def test_rows_that_lack_a_label() -> None:
    row, data = ROWS["ssvae"], some_labelled()
    data["y"] = labels().flip(0)  # the rows that lack it are not the last ones
    known = data["y"] >= 0
    fitted = pv.fit(row.build(), data, epochs=1, engine="eager", progress=False)
    tree = pv.to_arviz(fitted, data, num_samples=8, num_particles=200, proposal="guide", seed=0)
    y, again = values(tree, "posterior", "y"), values(tree, "posterior_predictive", "y")
    assert (y[:, known] == data["y"][known]).all()
    assert set(y[:, ~known].flatten().tolist()) <= {0, 1, 2} and (y[:, ~known].float().std(0) > 0).any()
    assert torch.equal(again[:, ~known], y[:, ~known]) and (again[:, known] != y[:, known]).any()
    assert torch.equal(torch.from_numpy(tree["observed_data"]["y"].values), data["y"])
    assert list(tree["log_likelihood"].data_vars) == ["joint"]
    exact = pv.log_likelihood(fitted, data, 3000, proposal="guide", seed=1)
    error = torch.from_numpy(tree["sample_stats"]["standard_error"].values)
    # a standard error from 200 draws is itself known to a factor of two
    close(values(tree, "log_likelihood", "joint").mean(0), exact, 2 * error + 0.01, 1)


class Optional(nn.Module):
    """p(z) p(x1 | z) p(x2 | z), where rows may lack x2."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def model(self, x1: Tensor, x2: Tensor | None = None) -> None:
        with pyro.plate("data", len(x1)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x1", dist.Normal(z, 1.0), obs=x1)
            if x2 is not None:
                pyro.sample("x2", dist.Normal(z + self.loc[0], 1.0), obs=x2)

    def guide(self, x1: Tensor, x2: Tensor | None = None) -> None:
        with pyro.plate("data", len(x1)):
            pyro.sample("z", dist.Normal(x1 / 2 + self.loc[1], 0.8))


def test_what_a_row_lacks_is_predicted() -> None:
    x2 = torch.randn(10)
    x2[3:6] = torch.nan
    data = {"x1": torch.randn(10), "x2": x2}
    fitted = pv.fit(Optional(), data, epochs=1, engine="eager", progress=False)
    tree = pv.to_arviz(fitted, data, num_samples=5, num_particles=30, proposal="guide", seed=0)
    for group in ("posterior_predictive", "prior_predictive"):
        assert np.isfinite(tree[group]["x2"].values).all() and tree[group]["x2"].shape == (1, 5, 10)
    assert np.isnan(tree["observed_data"]["x2"].values).tolist() == x2.isnan().tolist()


def test_rows_of_two_kinds_and_one_warning() -> None:
    data = {"x1": torch.randn(10), "x2": torch.where(torch.arange(10) < 5, torch.randn(10), torch.nan)}
    fitted = pv.fit(Optional(), data, epochs=1, engine="eager", progress=False)
    with pytest.warns(UserWarning, match="worth fewer than") as caught:
        pv.to_arviz(fitted, data, num_samples=50, num_particles=4, proposal="guide", groups=["posterior"], seed=0)
    assert len(told(caught)) == 1 and [w.filename for w in caught if "worth fewer" in str(w.message)] == [__file__]


@pytest.mark.usefixtures("quiet")
def test_the_caller_decides_which_warnings_of_other_code_are_seen() -> None:
    """They keep their place: Python hides a library's deprecations, and would show them at the line of a script."""

    class Warns(Optional):
        def model(self, x1: Tensor, x2: Tensor | None = None) -> None:
            for category, module in (
                (DeprecationWarning, "hidden"),
                (DeprecationWarning, "seen"),
                (RuntimeWarning, "seen"),
            ):
                warnings.warn_explicit("of its own", category, f"{module}.py", 7, module=module)
            super().model(x1, x2)

    fitted = unfitted(Warns(), {"x1": torch.randn(10)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="hidden")
        pv.to_arviz(fitted, {"x1": torch.randn(10)}, num_samples=5, num_particles=4, proposal="guide", seed=0)
    found = [(w.category, w.filename, w.lineno) for w in caught if str(w.message) == "of its own"]
    assert found == [(DeprecationWarning, "seen.py", 7), (RuntimeWarning, "seen.py", 7)]


def test_an_inner_plate_and_names_of_dimensions() -> None:
    data = torch.randn(7, 4, dtype=torch.float64)
    names = {"coords": {"data": list("abcdefg")}, "groups": ["posterior", "posterior_predictive", "log_likelihood"]}
    tree = pv.to_arviz(unfitted(InnerPlate(), data), data, num_samples=2, num_particles=20, proposal="guide", **names)
    assert dict(tree["posterior_predictive"]["x"].sizes) == {"chain": 1, "draw": 2, "data": 7, "columns": 4}
    assert tree["posterior_predictive"]["x"].dtype == np.float64 and tree["posterior"]["y"].dtype == np.int64
    assert tree["log_likelihood"]["data"].values.tolist() == list("abcdefg")
    assert list(tree.children) == names["groups"]
    row = ROWS["nvae"]
    tree = pv.to_arviz(
        unfitted(row.build(), row.data()), row.data(), num_samples=2, num_particles=10, proposal="guide",
        sample_dims=["sample"], dims={"x": ["row", "column"]}, groups=["posterior_predictive"],
    )  # fmt: skip
    assert dict(tree["posterior_predictive"]["x"].sizes) == {"sample": 2, "data": 40, "row": 5, "column": 4}


NAMES = ["age", "bmi", "dose"]


def plain(columns: int = 3) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(pv.priors.StandardNormal(1), pv.mlp(1, fam.Normal(columns)), pv.mlp(columns, fam.Normal(1)))


def drawn(fitted: Any, data: Any, **how: Any) -> Any:
    return pv.to_arviz(fitted, data, num_samples=3, num_particles=10, proposal="guide", seed=0, **how)


def test_columns_of_a_table_have_their_names(tmp_path: Path) -> None:
    """Those of a DataFrame, those of the fit's DataFrame also after it was saved, and those of a schema."""
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=NAMES)
    how: dict[str, Any] = {"epochs": 1, "engine": "eager", "progress": False}
    fitted = pv.fit(plain(), table, **how)
    pv.save(fitted, tmp_path / "run")
    for one, data in ((fitted, table), (fitted, table.to_numpy()), (pv.load(tmp_path / "run"), table.to_numpy())):
        tree = drawn(one, data)
        for group in ("posterior_predictive", "prior_predictive", "observed_data"):
            assert tree[group]["x"].dims[-1] == "x_dim_0"
            assert tree[group]["x_dim_0"].values.tolist() == NAMES
        assert tree["posterior"]["z_dim_0"].values.tolist() == [0]
        assert tree["observed_data"]["x"].sel(x_dim_0="bmi").values == pytest.approx(table["bmi"].to_numpy(), rel=1e-6)
    assert "x[2, dose]" in arviz_stats.summary(drawn(fitted, table[:3]), group="posterior_predictive").index

    mixed = pd.DataFrame({"kind": list("ab") * 20, "age": table["age"]})
    schema = pv.tables.infer(mixed)
    rows = schema.encode(mixed)
    fitted = pv.fit(pv.tables.vae(schema, rows, hidden=(4,), prior="normal"), rows, **how)
    assert drawn(fitted, rows)["posterior_predictive"]["x_dim_0"].values.tolist() == ["age", "kind"]
    c = fam.Features(schema.family(rows), mask=False)(rows)
    given = pv.fit(pv.tables.cvae(schema, rows, c.shape[1], hidden=(4,)), {"x": rows, "c": c}, **how)
    assert drawn(given, {"x": rows, "c": c})["observed_data"]["x_dim_0"].values.tolist() == ["age", "kind"]


def test_what_the_caller_says_comes_before_the_names_of_columns() -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 3)), columns=NAMES)
    fitted = unfitted(plain(), table)
    tree = drawn(fitted, table, dims={"x": ["column"]})
    assert tree["observed_data"]["column"].values.tolist() == NAMES
    tree = drawn(fitted, table, dims={"x": ["column"]}, coords={"column": [7, 8, 9]})
    assert tree["observed_data"]["column"].values.tolist() == [7, 8, 9]
    twice = drawn(fitted, table.set_axis(["a", "a", "b"], axis=1))  # by which no column could be chosen
    assert twice["observed_data"]["x_dim_0"].values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("given", [5, ["a"], {"x": 5}, torch.zeros(2)], ids=["5", "list", "dict", "tensor"])
@pytest.mark.parametrize("name", ["columns", "column_names"])
def test_an_attribute_of_a_pair_may_be_what_its_author_wants(name: str, given: Any) -> None:
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.mlp(6, fam.Normal(2)))
    setattr(vae, name, given)
    assert pv.fit(vae, binary(), epochs=0, progress=False).columns == {}


def test_conditions_have_their_names_and_one_dimension_has_those_of_one_variable() -> None:
    torch.manual_seed(0)
    regression = pv.Regression(torch.nn.Identity(), pv.mlp(3, fam.Normal(2), hidden=()))
    c = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 3)), columns=NAMES)
    data = {"x": c[["bmi", "dose"]] * 2, "c": c}
    tree = drawn(unfitted(regression, data), data)
    assert tree["constant_data"]["c_dim_0"].values.tolist() == NAMES
    assert tree["observed_data"]["x_dim_0"].values.tolist() == ["bmi", "dose"]


def test_a_model_that_reads_its_data_has_no_prior() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0))

    x = torch.randn(6)
    with pytest.warns(UserWarning, match="prior and prior_predictive are left out"):
        tree = pv.to_arviz(unfitted(Reads(), x), x, num_samples=2, num_particles=10, proposal="guide")
    assert "prior" not in tree and "posterior_predictive" in tree


def test_why_there_is_no_prior_is_said_by_the_line_of_the_model() -> None:
    """And not by what torch says of the NaN that stand for data."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.of_class = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(3))

        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.loc, 1.0))
                shift = torch.distributions.Normal(x, 1.0, validate_args=True).mean
                pyro.sample("x", dist.Normal(z + self.of_class[y] + 0 * shift, 1.0), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0))

    data = {"x": torch.randn(6), "y": torch.zeros(6, dtype=torch.long)}
    with pytest.warns(UserWarning, match="prior and prior_predictive are left out") as warned:
        pv.to_arviz(unfitted(Looks(), data), data, num_samples=2, num_particles=10, proposal="guide")
    said = str(warned[0].message)
    assert "test_to_arviz.py, line" in said and "shift = " in said and "an argument of its own" in said
    assert "Expected parameter" not in said and "constraint" not in said, said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["posteriors"]}, "groups must be some of posterior, "),
        ({"sample_dims": "sample"}, "sample_dims must be one name or two"),
        ({"num_samples": 0}, "must be at least 1, got 0"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    _, x, fitted = linear_gaussian(rows=3)
    with pytest.raises(pv.OptionError, match=message):
        pv.to_arviz(fitted, x, **options)
    if "num_particles" not in options:
        with pytest.raises(pv.OptionError, match=message):
            pv.from_pyro_svi(lambda: None, lambda: None, **options)


# --- ArviZ --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_keeps_everything(gaussian: Any, tmp_path: Path) -> None:
    tree = gaussian[2]
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as again:
        assert again.identical(tree)


def test_summary(gaussian: Any) -> None:
    tree = gaussian[2]
    found = arviz_stats.summary(tree, var_names=["z"], kind="stats", round_to="none")
    assert len(found) == 24
    z = values(tree, "posterior", "z").flatten(1)
    assert found["mean"].to_numpy() == pytest.approx(z.mean(0).numpy())


@pytest.mark.slow
def test_comparison_is_by_log_p_of_x(gaussian: Any, quiet: None) -> None:
    """A model and a worse one: the difference of ArviZ is that of the exact log p(x), row by row."""
    pair, x, tree = gaussian
    torch.manual_seed(1)
    other = LinearGaussian(spread=1.5)
    worse = pv.to_arviz(
        unfitted(other, x), x, num_samples=DRAWS, num_particles=PARTICLES, proposal="guide", seed=0,
        groups=["posterior", "log_likelihood", "sample_stats"],
    )  # fmt: skip
    exact = pair.marginal().log_prob(x) - other.marginal().log_prob(x)
    error = sum((t["sample_stats"]["standard_error"] ** 2).sum().item() for t in (tree, worse)) ** 0.5
    whole = (
        {"round_to": "none"} if "round_to" in inspect.signature(arviz_stats.compare).parameters else {}
    )  # ArviZ 1 rounds
    found = arviz_stats.compare({"true": tree, "other": worse}, **whole)
    assert list(found.index) == ["true", "other"]
    difference = abs(found.loc["other", "elpd_diff"])  # of which ArviZ 1 has changed the sign
    assert abs(difference - exact.sum().item()) < BOUND * error + 0.05
    assert abs(approximate_loo(tree).elpd - pair.marginal().log_prob(x).sum().item()) < BOUND * error + 0.05


def test_functions_of_arviz_that_fit_the_tree_and_those_that_do_not(gaussian: Any, quiet: None) -> None:
    """As the docstring says; and the place of each value under p(x), which it offers in place of `loo_pit`."""
    pair, x, tree = gaussian
    for fits in (arviz_stats.rhat, arviz_stats.ess, arviz_stats.loo):
        fits(tree)
    for does_not in (arviz_stats.loo_pit, arviz_stats.loo_expectations, arviz_stats.loo_score):
        with pytest.raises((IndexError, ValueError)):
            does_not(tree)
    pit = (tree["prior_predictive"]["x"] <= tree["observed_data"]["x"]).mean(["chain", "draw"])
    marginal = pair.marginal()
    sd = marginal.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    exact = dist.Normal(marginal.mean, sd).cdf(x)
    close(torch.from_numpy(pit.values), exact, (exact * (1 - exact)).sqrt() + 0.01, DRAWS)
    shown = xarray.DataTree.from_dict({"prior_sbc": pit.to_dataset(name="x")})
    arviz_plots.plot_ecdf_pit(shown, sample_dims=["data"], backend="matplotlib")
    plt.close("all")


def calibration(tree: Any) -> Any:
    """The ranks of the true latent values among the posterior draws, from 0 to 1, of rows that the model itself drew."""
    return (tree["posterior"]["z"] <= tree["true"]["z"]).mean(["chain", "draw"]).to_dataset(name="z")


def pictures(pair: LinearGaussian, x: Tensor, tree: Any) -> dict[str, Callable[[], Any]]:
    elpd = approximate_loo(tree)
    elpd.pareto_k = tree["sample_stats"]["k_hat"]
    drawn = pv.simulate(unfitted(pair, x), 40, seed=0)
    again = pv.to_arviz(unfitted(pair, x), drawn["x"], num_samples=50, num_particles=200, proposal="guide", seed=0)
    again["true"] = xarray.DataTree(xarray.Dataset({"z": (("data", "z_dim_0"), drawn["z"].numpy())}))
    ranks = xarray.DataTree.from_dict({"prior_sbc": calibration(again)})
    return {
        "ppc_dist": lambda: arviz_plots.plot_ppc_dist(tree, backend="matplotlib"),
        "ppc_pit": lambda: arviz_plots.plot_ppc_pit(tree, coords={"x_dim_0": 0}, backend="matplotlib"),
        "ecdf_pit": lambda: arviz_plots.plot_ecdf_pit(ranks, sample_dims=["data"], backend="matplotlib"),
        "khat": lambda: arviz_plots.plot_khat(elpd, backend="matplotlib"),
    }


@pytest.mark.slow
def test_pictures(gaussian: Any, tmp_path: Path, quiet: None) -> None:
    matplotlib.use("Agg")
    for name, draw in pictures(*gaussian).items():
        draw()
        axes = plt.gcf().axes
        assert axes and any(ax.lines or ax.collections for ax in axes), name
        plt.savefig(tmp_path / f"{name}.png")
        plt.close("all")
        assert (tmp_path / f"{name}.png").stat().st_size > 3000


# --- programs that never met fit ----------------------------------------------------------------------------------------


def schools(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + effect)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools_guide(y: Tensor, sigma: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(4.0))
    pyro.sample("mu", dist.Normal(loc, 3.5))
    with pyro.plate("school", len(y)):
        pyro.sample("effect", dist.Normal(0.0, 1.0))


Y, SIGMA = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]), torch.full((8,), 12.0)


def test_a_plain_program() -> None:
    tree = pv.from_pyro_svi(schools, schools_guide, model_args=(Y, SIGMA), num_samples=100, seed=0)
    pyro.clear_param_store()
    found = {g: {v: tuple(tree[g][v].dims[2:]) for v in tree[g].data_vars} for g in ("posterior", "log_likelihood")}
    assert found == {
        "posterior": {"mu": (), "effect": ("school",), "theta": ("school",)},
        "log_likelihood": {"y": ("school",)},
    }
    assert set(tree["prior"].data_vars) == {"mu", "effect", "theta"}
    assert tree["constant_data"]["sigma"].values.tolist() == SIGMA.tolist()
    assert tree["observed_data"]["y"].values.tolist() == Y.tolist()
    mu, effect, theta = (values(tree, "posterior", name) for name in ("mu", "effect", "theta"))
    torch.testing.assert_close(theta, mu[:, None] + effect)
    close(mu.mean(), torch.tensor(4.0), 3.5, 100)
    log_lik = dist.Normal(theta, SIGMA).log_prob(Y)
    torch.testing.assert_close(values(tree, "log_likelihood", "y"), log_lik)
    prior = dist.Normal(0.0, 5.0).log_prob(mu) + dist.Normal(0.0, 1.0).log_prob(effect).sum(-1)
    torch.testing.assert_close(values(tree, "sample_stats", "log_p"), (prior + log_lik.sum(-1)).double())
    q = dist.Normal(4.0, 3.5).log_prob(mu) + dist.Normal(0.0, 1.0).log_prob(effect).sum(-1)
    torch.testing.assert_close(values(tree, "sample_stats", "log_q"), q.double())
    assert tree["sample_stats"]["k_hat"].item() < 0.7
    close(values(tree, "posterior_predictive", "y").mean(0), torch.full((8,), 4.0), (3.5**2 + 1 + 144) ** 0.5, 100)
    close(values(tree, "prior_predictive", "y").mean(0), torch.zeros(8), (25 + 1 + 144) ** 0.5, 100)


@pytest.mark.slow
def test_leaving_a_school_out(quiet: None) -> None:
    tree = pv.from_pyro_svi(schools, schools_guide, model_args=(Y, SIGMA), num_samples=250, seed=0,
                            groups=["posterior", "log_likelihood", "sample_stats"])  # fmt: skip
    pyro.clear_param_store()
    variance = SIGMA[0] ** 2 + 1
    precision = 7 / variance + 1 / 25
    exact = dist.Normal((Y.sum() - Y) / variance / precision, (variance + 1 / precision).sqrt()).log_prob(Y)
    found = torch.from_numpy(approximate_loo(tree).elpd_i.values)
    assert (found - exact).abs().max() < 0.2  # of 400 draws over 12 seeds 0.076 at most
    assert set(tree.children) == {"posterior", "log_likelihood", "sample_stats"}


def test_a_program_that_draws_another_number_of_values() -> None:
    def model() -> None:
        n = int(torch.randint(1, 5, ()))
        with pyro.plate("any", n):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))

    with pytest.raises(pv.PairError, match="'z' must have one shape in all draws"):
        pv.from_pyro_svi(model, lambda: None, num_samples=20, seed=0)
    tree = pv.from_pyro_svi(model, lambda: None, num_samples=20, seed=0, groups=["log_likelihood"])
    assert dict(tree["log_likelihood"]["x"].sizes) == {"chain": 1, "draw": 20}


def test_the_random_state_and_the_data_stay_as_they_are() -> None:
    x = binary()
    before, state = x.clone(), torch.get_rng_state()
    row = ROWS["vae"]
    fitted = unfitted(row.build(), x)
    state = torch.get_rng_state()
    trees = [pv.to_arviz(fitted, x, num_samples=2, num_particles=20, proposal="guide", seed=3) for _ in range(2)]
    assert torch.equal(x, before) and torch.equal(state, torch.get_rng_state())
    assert all(trees[0][g].to_dataset().equals(trees[1][g].to_dataset()) for g in trees[0].children)
