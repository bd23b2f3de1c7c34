"""Parts by their names on the command line: list, fit, sweep and compare."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from support.command import Command

import pyrovae as pv
from pyrovae.app.catalogue import GUIDES, LIKELIHOODS, PRIORS
from pyrovae.app.cli import tables
from pyrovae.app.comparisons import compare
from pyrovae.app.models import MODELS
from pyrovae.app.options import Options
from pyrovae.app.pictures import class_columns
from pyrovae.app.run import fit_run, open_run
from pyrovae.data import load
from pyrovae.distributions import ObservedOnly
from pyrovae.families import Categorical as CategoricalFamily
from pyrovae.families import Columns, Normal

pytestmark = pytest.mark.digits(100)

GUIDE = ("--proposal", "guide", "--num-samples", "30")
QUICK = ("--epochs", "2", "--hidden", "16", "--latent", "3", *GUIDE)


def test_list_names_every_part(pyrovae: Command) -> None:
    code, out, _ = pyrovae("list")
    assert code == 0
    words = out.split()
    for name in (*MODELS, *PRIORS, *LIKELIHOODS, *GUIDES):
        assert name in words


@pytest.mark.slow
@pytest.mark.pictures
def test_a_graph_of_picked_parts_is_printed_and_fitted(pyrovae: Command) -> None:
    code, out, err = pyrovae("fit", "digits", "--prior", "vamp", "--likelihood", "binomial", "--guide", "nsf", *QUICK)
    assert code == 0, err
    assert "model  p(z) p(x | z)" in err and "guide  q(z | x)" in err and "z ~ Flow (3)" in err
    assert "log p(x)" in out
    for question in (("evaluate", "--num-samples", 30), ("generate",), ("reconstruct",), ("encode",)):
        code, _, err = pyrovae(*question, "runs/digits")
        assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["sphere", "logistic-normal"])
def test_a_prior_brings_the_guide_that_it_needs(pyrovae: Command, prior: str) -> None:
    code, _, err = pyrovae("fit", "digits", "--prior", prior, *QUICK)
    assert code == 0, err
    assert f"guide {PRIORS[prior].guides[0]}" in " ".join(err.split())


# rows of each kind, by what a likelihood takes
ROWS = {
    "binary unit": lambda g: g.integers(0, 2, (60, 4)),
    "unit": lambda g: g.uniform(0.05, 0.95, (60, 4)),
    "real": lambda g: g.normal(size=(60, 4)),
    "table": lambda g: np.round(g.normal(size=(60, 4)), 1),
    "positive": lambda g: np.exp(g.normal(size=(60, 4))),
    "count": lambda g: g.poisson(2.0, (60, 4)).clip(0, 6),
    "count, largest count": lambda g: g.poisson(2.0, (60, 4)).clip(0, 6),
}


@pytest.mark.parametrize(
    "likelihood", [name if name == "normal" else pytest.param(name, marks=pytest.mark.slow) for name in LIKELIHOODS]
)
def test_every_likelihood_fits_a_file_of_its_kind(pyrovae: Command, likelihood: str, tmp_path: Path) -> None:
    part = LIKELIHOODS[likelihood]
    np.save(tmp_path / "rows.npy", ROWS[part.takes](np.random.default_rng(0)))
    bound = ("--total-count", "6") if part.needs_total else ()
    code, _, err = pyrovae("fit", "rows.npy", "--likelihood", likelihood, *bound, *QUICK)
    assert code == 0, err
    code, _, err = pyrovae("generate", "runs/rows", "-n", "5")
    assert code == 0, err


@pytest.mark.slow
def test_a_sweep_ends_in_one_table_and_goes_on(pyrovae: Command) -> None:
    words = ("sweep", "digits", "--prior", "normal,mixture", "--likelihood", "binomial,beta-binomial", *QUICK)
    code, out, err = pyrovae(*words)
    assert code == 0, err
    folders = {p.name for p in Path("runs/digits-sweep").iterdir()}
    assert folders == {f"{p}+{x}+normal" for p in ("normal", "mixture") for x in ("binomial", "beta-binomial")}
    assert all(name in out for name in folders)
    assert "probability mass" in out and "±" in out
    stamps = {p: p.stat().st_mtime_ns for p in Path("runs/digits-sweep").glob("*/weights.safetensors")}
    code, again, err = pyrovae(*words)
    assert code == 0 and "there already" in err and again == out
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    fitted = pv.load("runs/digits-sweep/normal+binomial+normal")  # as if it had been killed before it was judged
    results = fitted.info.pop("results")
    pv.save(fitted, "runs/digits-sweep/normal+binomial+normal", force=True)
    code, _, err = pyrovae(*words)
    assert code == 0, err
    assert pv.load("runs/digits-sweep/normal+binomial+normal").info["results"] == results
    code, _, err = pyrovae(*words, "--seed", "1")
    assert code == 2 and "other options" in err


@pytest.mark.slow
def test_a_sweep_gives_the_largest_count_to_the_likelihoods_that_need_one(pyrovae: Command) -> None:
    code, _, err = pyrovae("sweep", "digits", "--likelihood", "binomial,poisson", "--total-count", "17", *QUICK)
    assert code == 0, err
    found = {p.parent.name: json.loads(p.read_text())["info"] for p in Path("runs/digits-sweep").glob("*/run.json")}
    counts = {name: info["options"]["total_count"] for name, info in found.items()}
    assert counts == {"normal+binomial+normal": 17, "normal+poisson+normal": None}


def test_a_sweeps_last_mistake_is_told_before_its_first_fit(pyrovae: Command) -> None:
    code, _, err = pyrovae("sweep", "digits", "--likelihood", "poisson", "--total-count", "16", *QUICK)
    assert code == 2 and "--total-count does not go with --likelihood poisson" in " ".join(err.split())
    code, _, err = pyrovae("sweep", "digits", "--prior", "normal,nonesuch", *QUICK)
    assert code == 2 and "nonesuch" in err and not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.all_digits
def test_masses_and_densities_are_not_compared_silently(pyrovae: Command) -> None:
    for likelihood in ("binomial", "normal"):
        code, _, err = pyrovae("fit", "digits", "--likelihood", likelihood, "--out", likelihood, *QUICK)
        assert code == 0, err
    code, _, err = pyrovae("compare", "binomial", "normal", *GUIDE)
    assert code == 2 and "different units" in err and "--dequantise" in err
    code, out, err = pyrovae("compare", "binomial", "normal", *GUIDE, "--dequantise")
    assert code == 0, err
    assert "≥" in out and "bounds the mass from below" in " ".join(out.split())
    table = compare([open_run(Path("binomial")), open_run(Path("normal"))], 30, dequantise=True)
    first, second = sorted(table, key=lambda row: row["rank_by_elbo"])
    assert first["elbo"] > second["elbo"] and all(row["elbo"] < row["log_likelihood"] for row in table)
    for share in ("stacking_weight", "wins"):
        assert sum(row[share] for row in table) == pytest.approx(1)
    bits = {row["run"]: row["bits_per_dimension"] for row in table}
    assert 0 < bits["binomial"] < bits["normal"]


@pytest.mark.slow
def test_rows_of_reals_are_never_made_whole(pyrovae: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).uniform(0.1, 0.9, (60, 4)))
    for likelihood in ("beta", "bernoulli"):
        code, _, err = pyrovae("fit", "rows.npy", "--likelihood", likelihood, "--out", likelihood, *QUICK)
        assert code == 0, err
    code, _, err = pyrovae("compare", "beta", "bernoulli", "--dequantise", *GUIDE)
    assert code == 2 and "binarised anew are other rows" in " ".join(err.split())


@pytest.mark.slow
def test_runs_of_other_rows_are_not_compared(pyrovae: Command) -> None:
    for seed in ("0", "1"):
        code, _, err = pyrovae("fit", "digits", "--seed", seed, "--out", seed, *QUICK)
        assert code == 0, err
    code, _, err = pyrovae("compare", "0", "1", *GUIDE)
    assert code == 2 and "other rows" in err
    code, _, err = pyrovae("compare", "0")
    assert code == 2 and "at least two" in err


def test_a_guide_without_the_priors_support_is_refused(pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", "digits", "--prior", "sphere", "--guide", "normal")
    assert code == 2 and "power-spherical" in err
    code, _, err = pyrovae("fit", "digits", "--guide", "iaf", "--net", "conv")
    assert code == 2 and "--net mlp" in err


@pytest.mark.slow
def test_options_of_a_run_are_recorded(pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", "digits", "--prior", "nsf", "--guide", "full", *QUICK)
    assert code == 0, err
    options = json.loads(Path("runs/digits/run.json").read_text())["info"]["options"]
    assert (options["prior"], options["guide"], options["likelihood"]) == ("nsf", "full", "beta-binomial")


PARTS = """
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn import functional as F

from pyrovae import families as fam


class Cauchy(nn.Module):
    def __init__(self, latent):
        super().__init__()
        self.latent, self.log_scale = latent, nn.Parameter(torch.zeros(latent))

    def forward(self):
        return dist.Cauchy(torch.zeros_like(self.log_scale), self.log_scale.exp()).to_event(1)


class Geometric(fam.Elementwise):
    num_params = 1

    def link(self, logits):
        return dist.Geometric(logits=logits.clamp(-8, 8))


class Wrong:
    pass
"""


@pytest.mark.slow
def test_parts_of_ones_own_work_with_every_command(pyrovae: Command, tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    own = ("--prior", "parts.py:Cauchy", "--likelihood", "parts.py:Geometric")
    code, _, err = pyrovae("fit", "digits", *own, *QUICK)
    assert code == 0, err
    assert "z ~ Cauchy (3)" in err and "x ~ Geometric (64), observed" in err
    for question in ("evaluate", "generate", "reconstruct", "encode"):
        code, _, err = pyrovae(question, "runs/digits", "--trust")
        assert code == 0, err
    code, out, err = pyrovae(
        "sweep", "digits", "--prior", "normal,parts.py:Cauchy", "--likelihood", "parts.py:Geometric", *QUICK
    )
    assert code == 0, err
    assert "Cauchy+Geometric" in out and "probability mass" in out
    code, _, err = pyrovae("compare", "runs/digits", "runs/digits-sweep/normal+Geometric+normal", *GUIDE, "--trust")
    assert code == 0, err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prior", "nowhere.py:Cauchy"), "there is no file nowhere.py"),
        (("--prior", "parts.py:Nonesuch"), "has no class Nonesuch"),
        (("--likelihood", "parts.py:Cauchy"), "is no family"),
        (("--guide", "parts.py:Wrong"), "has no class Wrong that is a torch.nn.Module"),
        (("--prior", "broken.py:Cauchy"), "does not run (ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_ones_own_part_is_said(
    pyrovae: Command, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    code, _, err = pyrovae("fit", "digits", *words, *QUICK)
    assert code == 2 and said in " ".join(err.split()) and "Traceback" not in err


def test_a_sweep_knows_its_data(pyrovae: Command, tmp_path: Path) -> None:
    for seed, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "rows.npy", np.random.default_rng(seed).poisson(2.0, (60, 4)))
    words = ("--likelihood", "poisson", "--out", "both", *QUICK)
    assert pyrovae("sweep", "a/rows.npy", *words)[0] == 0
    code, _, err = pyrovae("sweep", "b/rows.npy", *words)
    assert code == 2 and "other data" in err


@pytest.mark.slow
def test_a_changed_file_of_a_part_is_noticed(pyrovae: Command, tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    assert pyrovae("fit", "digits", "--prior", "parts.py:Cauchy", *QUICK)[0] == 0
    (tmp_path / "parts.py").write_text(PARTS.replace("dist.Cauchy(", "dist.Normal("))
    code, _, err = pyrovae("evaluate", "runs/digits")
    assert code == 2 and "has changed since the fit" in err


@pytest.mark.slow
@pytest.mark.pictures
@pytest.mark.parametrize("likelihood", ["categorical", pytest.param("ordinal", marks=pytest.mark.slow)])
def test_classes_without_a_mean_are_drawn_in_pictures(pyrovae: Command, likelihood: str) -> None:
    code, _, err = pyrovae("fit", "digits", "--likelihood", likelihood, *QUICK)
    assert code == 0, err
    code, _, err = pyrovae("fit", "digits", "--likelihood", likelihood, "--total-count", "15", *QUICK)
    assert code == 2 and "outside the support" in err


CLINICAL = """
from pyrovae import families as fam


class Clinical(fam.Columns):
    def __init__(self, event_shape):
        super().__init__([fam.Normal(2), fam.Bernoulli(1), fam.Poisson(())])


class Robust(fam.Columns):
    def __init__(self, event_shape):
        super().__init__([fam.StudentT(2), fam.Bernoulli(1), fam.NegativeBinomial(())])
"""


def test_rows_of_masses_and_densities_are_compared_with_their_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.pair.graph.shutil.which", lambda name: None)
    said: list[str] = []
    (tmp_path / "parts.py").write_text(CLINICAL)
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.normal(size=(80, 2)), rng.integers(2, size=80), rng.poisson(3, 80)])
    np.savetxt(tmp_path / "rows.csv", table, delimiter=",", header="age,weight,sex,visits", comments="")
    dataset = load(str(tmp_path / "rows.csv"))
    runs = {}
    for name in (f"{tmp_path}/parts.py:Clinical", f"{tmp_path}/parts.py:Robust", "normal"):
        options = Options.of(
            "fit", likelihood=name, epochs=1, latent=1, hidden=(4,), proposal="guide", num_samples=5, seed=0
        )
        short = name.rpartition(":")[2]
        runs[short] = fit_run(
            dataset, options, tmp_path / short, device="cpu", engine="eager", progress=False, say=said.append
        )
    assert sum("dot is not installed" in line and "graph.gv" in line for line in said) == 3
    assert [row["rows"] for row in compare([runs["Clinical"], runs["Robust"]], 5, proposal="guide")] == [16, 16]
    both = r"density of 2 columns \(age, weight\) and probability mass of 2 columns \(sex, visits\)"
    with pytest.raises(pv.OptionError, match=f"different units.*{both}.*for the same columns"):
        compare([runs["Clinical"], runs["normal"]], 5)
    with pytest.raises(pv.OptionError, match="for the same columns"):
        compare([runs["normal"], runs["Clinical"]], 5, dequantise=True)


def test_columns_of_classes_are_known() -> None:
    table = Columns([Normal(2), CategoricalFamily((), 3)])
    mixed = table(torch.zeros(5, *table.param_shape))
    assert class_columns(mixed, 3) == class_columns(ObservedOnly(mixed), 3) == [False, False, True]
    codes = CategoricalFamily(2, 3)
    assert class_columns(codes(torch.zeros(5, *codes.param_shape)), 2) == [True, True]
    reals = Normal(2)
    assert class_columns(reals(torch.zeros(5, *reals.param_shape)), 2) is None


def test_a_comparison_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tables, "out", Console(width=80, markup=False, emoji=False))
    entry = {"log_likelihood": -1234.56, "log_likelihood_se": 12.34, "difference": -123.45, "difference_se": 12.34}
    entry |= {
        "bits_per_dimension": 12.345,
        "k_hat_threshold": 0.667,
        "k_hat_above_threshold": 0.35,
        "bound": True,
        "rows": 5000,
        "proposal": "guide",
        "elbo": -1240.12,
        "rank_by_elbo": 2,
        "wins": 0.4,
        "stacking_weight": 0.35,
    }
    folders = ("a/rather/long/folder/of/runs/with-a-long-name-at-its-end", "b")
    tables.print_comparison([{**entry, "run": run} for run in folders], "log p(x): probability mass")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = "\n".join(lines)
    assert "≥ -1234.56 ± 12.34" in rows and "-123.45 ± 12.34" in rows  # no number is broken
    folded = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert folders[0] in folded
