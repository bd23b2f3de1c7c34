"""The VAE of a table starts as a Gaussian mixture, and is compared with what scikit-learn's densities reach."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.mixture import GaussianMixture

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.errors import DataError, OptionError
from pyrovae.tables import recipe
from pyrovae.tables.recipe import NOISE


def two_clusters(num: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(0)
    group = random.integers(0, 2, num)
    x = random.normal(size=(num, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]]) + 6 * group[:, None]
    return pd.DataFrame({"a": 100 + 20 * x[:, 0], "b": x[:, 1], "kind": np.where(group == 1, "u", "v")})


@pytest.mark.slow
def test_without_training_it_is_the_mixture_that_scikit_learn_finds() -> None:
    """Within the noise of the decoder, which is part of each component's covariance: log p(x) by refined proposals."""
    table = two_clusters()[["a", "b"]]
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    torch.manual_seed(0)
    model = pv.tables.vae(schema, rows[:300], seed=0)
    with torch.no_grad():  # the networks beside the copies, which start small
        for net in (model.likelihood.likelihood.net.net, model.encoder.net.net.net):
            net.rest[-1].weight.zero_()
    fitted = pv.fit(model, rows[:300], epochs=1, learning_rate=1e-9, engine="eager", progress=False, seed=0)
    found = pv.importance(fitted, rows[300:], num_samples=100, seed=0)
    x = schema.family(rows[:300]).features(rows).double().numpy()
    mixture = GaussianMixture(2, n_init=2, random_state=0).fit(x[:300])
    exact = mixture.score_samples(x[300:]) - float(np.log(rows[:300].double().numpy().std(0)).sum())
    assert NOISE < 0.2 and abs(float(found.log_likelihood.mean()) - exact.mean()) < 0.05


def test_ordinal_columns_have_a_likelihood_of_ordered_classes_where_it_is_asked_for() -> None:
    """Encoders see them as numbers from -1 to 1, and other columns of classes as one-hot codes."""
    graded = pd.Categorical(list("abc") * 20, categories=list("cab"), ordered=True)
    table = two_clusters(60).assign(pain=graded, ache=graded, mood=pd.Categorical(list("pq" * 30), ordered=True))
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    family = schema.family(rows, ordered=True)
    assert [f"{type(one).__name__}{tuple(one.event_shape)}" for one in family.families] == [
        *("RoundedNormal(2,)", "Categorical()", "OrderedLogistic(2,)", "Categorical()")
    ]
    assert family.features(rows[:3])[:, 4].tolist() == family.features(rows[:3])[:, 5].tolist() == [0.0, 1.0, -1.0]
    each = fam.Columns([family.families[0], *(fam.Categorical((), n) for n in (2, 3, 3, 2))])
    assert [type(one) for one in schema.family(rows).families] == [type(one) for one in each.families]
    alone = [fam.OrderedLogistic((), 3)(torch.tensor([0.7])).log_prob(torch.tensor([k])) for k in (0, 1, 2)]
    params = torch.zeros(3, *family.param_shape)
    params[:, 6:8] = 0.7  # of the two ordinal columns, behind 2 x 2 of the numbers and 2 of `kind`
    found = family(params).log_prob_elements(torch.tensor([[0.0, 0.0, 0.0, k, k, 0.0] for k in (0.0, 1.0, 2.0)]))
    torch.testing.assert_close(found[:, 3:5], torch.stack(alone).expand(3, 2))
    for ordered, model in (
        (False, pv.tables.vae(schema, rows, prior="normal")),
        (True, pv.tables.vae(schema, rows, prior="normal", ordered=True)),
        (False, pv.tables.cvae(schema, rows, 2)),
        (True, pv.tables.cvae(schema, rows, 2, ordered=True)),
    ):
        found = [part.scale for part in model.modules() if isinstance(part, fam.OrderedLogistic)]
        assert set(found) == ({"net"} if ordered else set())
    assert schema.family(rows, ordered=True).families[2].scale == "column"


def test_ordered_probabilities_start_at_the_shares_of_each_column() -> None:
    """Of numbers, classes without an order, and two kinds of ordered ones with a gap, in this order."""
    table = pd.DataFrame(
        {
            "length": np.arange(40.0) ** 1.5,
            "kind": list("xyzz") * 10,
            "mood": pd.Categorical(list("aaabbcdd") * 5, categories=list("abcd"), ordered=True),
            "pain": pd.Categorical(list("cccccaab") * 5, categories=list("abc"), ordered=True),
        }
    )
    table.loc[0, "pain"] = None
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    family = schema.family(rows, ordered=True)
    names = [column.name for column in schema.modelled]
    for column, shares in {"mood": [15, 10, 5, 10], "pain": [10, 5, 24]}.items():
        at = names.index(column)
        for k, count in enumerate(shares):
            row = rows[1:2].clone()
            row[0, at] = k
            found = family(torch.zeros(1, *family.param_shape)).log_prob_elements(row)[0, at].exp().item()
            wanted = (count + 0.5) / (sum(shares) + 0.5 * len(shares))
            assert found == pytest.approx(wanted, abs=3e-4)  # gaps are at least 1e-4


@pytest.mark.slow
def test_a_fit_learns_the_classes_of_which_its_first_mixture_knows_nothing() -> None:
    """The class follows from the numbers, so that log 2 = 0.69 nats a row are to be gained; 0.5 are asked."""
    table = two_clusters(300)
    schema = pv.tables.infer(table)
    rows = schema.encode(table)

    def log_p(epochs: int, learning_rate: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = pv.tables.vae(schema, rows[:200], seed=0)
        how = {"batch_size": 50, "learning_rate": learning_rate, "progress": False, "engine": "eager", "seed": 0}
        fitted = pv.fit(model, rows[:200], epochs=epochs, **how)
        return pv.importance(fitted, rows[200:], num_samples=100, seed=0).log_likelihood

    assert (log_p(40, 3e-3) - log_p(1, 1e-9)).mean() > 0.5


@pytest.mark.slow
def test_gaps_are_left_out_of_the_density_and_told_to_the_encoder() -> None:
    table = two_clusters(200)
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    gaps = rows.clone()
    gaps[::3, 0], gaps[1::3, 2] = math.nan, math.nan
    model = pv.tables.vae(schema, gaps, hidden=(8,))
    fitted = pv.fit(model, gaps, epochs=2, engine="eager", progress=False, seed=0)
    assert math.isfinite(fitted.history[-1]["elbo"])
    filled = pv.impute(fitted, gaps[:6], 3, num_particles=500, seed=0)
    assert filled.draws[:, ~gaps[:6].isnan()].equal(gaps[:6][~gaps[:6].isnan()].expand(3, -1))
    assert not filled.draws.isnan().any() and set(filled.draws[:, 1, 2].tolist()) <= {0.0, 1.0}
    # a fit of whole rows takes gaps later, too
    whole = pv.fit(pv.tables.vae(schema, rows, hidden=(8,)), rows, epochs=1, engine="eager", progress=False, seed=0)
    assert pv.importance(whole, gaps[:4], num_samples=30, seed=0).log_likelihood.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [["kind"], ["a"], ["a", "kind"]])
@pytest.mark.parametrize("prior", ["mixture", "flow", "normal"])
def test_any_columns_make_a_model_that_is_saved_and_draws_tables(
    columns: list[str], prior: str, tmp_path: object
) -> None:
    table = two_clusters(60)[columns]
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    model = pv.tables.vae(schema, rows, hidden=(4,), prior=prior)
    fitted = pv.fit(model, rows, epochs=1, engine="eager", progress=False, seed=0)
    pv.save(fitted, f"{tmp_path}/run")
    again = pv.load(f"{tmp_path}/run")
    drawn = schema.decode(pv.generate(again, 5, seed=0))
    assert list(drawn.columns) == columns and len(drawn) == 5 and drawn.dtypes.equals(table.dtypes)
    torch.testing.assert_close(pv.encode(again, rows[:5]), pv.encode(fitted, rows[:5]))


@pytest.mark.slow
def test_densities_are_those_of_cells_and_of_classes() -> None:
    """Of independent columns with known densities: the class frequencies and a Normal, rounded to 0.5."""
    random = np.random.default_rng(0)
    x, kind = np.round(random.normal(size=1500) * 2) / 2, random.choice(["u", "v"], 1500, p=[0.3, 0.7])
    table = pd.DataFrame({"x": x, "kind": kind})
    schema = pv.tables.infer(table)
    schema = pv.tables.Schema((pv.tables.Column("x", "real", step=0.5), schema.columns[1]))
    rows = schema.encode(table)
    found = pv.tables.baselines(schema, rows[:1000], rows[1000:], names=("gaussian mixture", "kernel density"))
    cells = torch.special.ndtr(rows[1000:, 0].double() + 0.25) - torch.special.ndtr(rows[1000:, 0].double() - 0.25)
    exact = (cells / 0.5).log() + torch.tensor([0.3, 0.7], dtype=torch.float64).log()[rows[1000:, 1].long()]
    for name, log_p in found.items():  # they lose some by estimation, and where the classes' noise overlaps
        assert -0.3 < float((log_p - exact).mean()) < 0.05, name


def test_mistakes() -> None:
    table = two_clusters(30)
    schema = pv.tables.infer(table)
    rows = schema.encode(table)
    with pytest.raises(OptionError, match="prior to be one of 'mixture', 'flow', 'normal'"):
        pv.tables.vae(schema, rows, prior="vamp")
    with pytest.raises(OptionError, match="covariance to be 'full' or 'any', got 'tied'"):
        pv.tables.vae(schema, rows, covariance="tied")
    with pytest.raises(OptionError, match="baselines knows 'gaussian mixture'"):
        pv.tables.baselines(schema, rows, rows, names=("forest",))
    with pytest.raises(DataError, match="rows without gaps"):
        pv.tables.baselines(schema, rows.where(rows > 0, math.nan), rows)


@pytest.mark.parametrize("kind", ["tied", "diag", "spherical"])
def test_of_any_covariances_bic_chooses_those_that_few_rows_can_say(kind: str) -> None:
    """Three clusters of 40 rows in 8 dimensions; the prior starts as the mixture that BIC finds."""
    random = np.random.default_rng(0)
    spread = {"spherical": np.eye(8), "diag": np.diag(np.geomspace(0.05, 3, 8))}.get(
        kind, np.cov(random.normal(size=(8, 20)))
    )
    x = np.concatenate([at + random.multivariate_normal(np.zeros(8), spread, 40) for at in (-6, 0, 6)])
    rows = torch.from_numpy((x - x.mean(0)) / x.std(0))
    found = recipe.mixture_of(rows, 0, recipe.COVARIANCES["any"])
    assert (found.covariance_type, found.n_components) == (kind, 3)
    assert recipe.mixture_of(rows, 0).covariance_type == "full"
    given = torch.from_numpy(found.covariances_)
    whole = {"tied": given.expand, "diag": lambda *_: torch.diag_embed(given)}.get(
        kind, lambda *_: given[:, None, None] * torch.eye(8, dtype=given.dtype)
    )
    assert torch.equal(recipe._full(found), whole(3, 8, 8))
    schema = pv.tables.Schema(tuple(pv.tables.Column(str(number), "real") for number in range(8)))
    prior = pv.tables.vae(schema, rows, covariance="any").prior()
    torch.testing.assert_close(
        prior.component_distribution.mean.double(), torch.from_numpy(found.means_), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("narrow", [False, True])
def test_a_column_that_others_determine_starts_as_narrow_as_it_is_asked_for(narrow: bool) -> None:
    """Of x, x + 0.04 e and a third column the density at the start is the mixture's own only with little noise."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(600, 3, generator=random, dtype=torch.float64)
    x[:, 1] = x[:, 0] + 0.04 * x[:, 1]
    rows = (x - x.mean(0)) / x.std(0)
    schema = pv.tables.Schema(tuple(pv.tables.Column(str(number), "real") for number in range(3)))
    model = pv.tables.vae(schema, rows[:300], narrow=narrow, seed=0).double()
    fitted = pv.fit(model, rows[:300], epochs=0, progress=False)
    lost = recipe.mixture_of(rows[:300], 0).score_samples(rows[300:].numpy()).mean()
    lost -= pv.log_likelihood(fitted, rows[300:], 100, seed=0).mean().item()
    assert -0.3 < lost < 0.3 if narrow else lost > 0.6


def test_the_normal_of_rows_with_gaps_is_that_of_their_likelihood() -> None:
    """Where only the second of two columns has gaps, the maximum is known: Anderson 1957, JASA 52(278)."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2, generator=random, dtype=torch.float64) @ torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double() + 3
    gaps = x[:, 0] > 3.2  # which depend on what is observed: means of the complete rows are biased
    holed = x.clone()
    holed[gaps, 1] = math.nan
    mean, covariance = recipe.normal_of_observed(holed)
    complete = x[~gaps]
    within = torch.cov(complete.T, correction=0)
    slope = within[0, 1] / within[0, 0]
    first = x[:, 0].var(correction=0)
    exact_mean = torch.stack([x[:, 0].mean(), complete[:, 1].mean() + slope * (x[:, 0].mean() - complete[:, 0].mean())])
    second = within[1, 1] + slope**2 * (first - within[0, 0])
    exact = torch.stack([torch.stack([first, slope * first]), torch.stack([slope * first, second])])
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=0.05)
    torch.testing.assert_close(covariance, exact, rtol=0.03, atol=0.0)  # one row more, of 400
    assert abs(complete[:, 1].mean() - exact_mean[1]) > 1  # which the mean of the complete rows is not


def test_gaps_are_filled_by_what_the_row_has_before_the_mixture() -> None:
    """Of two columns that are one, each gap is filled by the other; rows of nothing are left out, whole rows stay."""
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)).expand(300, 2).clone()
    assert recipe._without_gaps(x, 0) is x
    holed = x.clone()
    holed[:100, 0], holed[100:200, 1], holed[299] = math.nan, math.nan, math.nan
    before = holed.clone()
    filled = recipe._without_gaps(holed, 0)
    assert filled.shape == (299, 2) and filled.dtype == x.dtype
    torch.testing.assert_close(holed, before, rtol=0, atol=0, equal_nan=True)
    assert (filled[:, 0] - filled[:, 1]).abs().max() < 0.5
    apart = filled[:, 0] != filled[:, 1]
    assert int(apart.sum()) == 200
    torch.testing.assert_close(filled.std(0), x.std(0), rtol=0.1, atol=0.0)  # draws, and not means, keep the variance
    alone = torch.full((5, 3), math.nan)
    alone[:, 0] = 2.0  # columns without an entry, and constant ones
    assert recipe._without_gaps(alone, 0).isfinite().all()
