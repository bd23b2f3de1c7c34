"""Every example runs with --smoke; a file that is not in the list fails."""

import functools
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
from sklearn.utils import Bunch

import pyrovae as pv

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "vae_digits.py": "active units: ",
    "bayesian_weights.py": "loadings whose sign is certain: ",
    "own_prior.py": "Student-t is better by ",
    "drop_in_svi.py": "largest relative difference of an epoch's loss: ",
    "swap_prior.py": "nsf and iaf",
    "swap_likelihood.py": "best on 20 held-out rows: ",
    "own_family.py": "saved and loaded, the largest difference is 0.0e+00",
    "label_few.py": "semi-supervised : ",
    "counts.py": "ZeroInflatedNegativeBinomial",
    "clustering.py": "clusters chosen, ",
    "collapse.py": "a bar a level: collapse.png",
    "joint_codes.py": "traversals in joint-codes-dear-z.png",
    "turned_images.py": "correlation with the moves given: angle ",
    "disentangle.py": "beta-TCVAE MIG ",
    "hierarchical.py": "IWELBO of 10 draws, 2 level(s): log p(x) ",
    "ladder.py": "samples with levels held in ladder-levels.png",
    "words.py": "images, as asked for: class ",
    "conditional.py": "of 500 digits asked for, a classifier of real ones reads ",
    "structured_output.py": "1 column     log p(x | c): network ",
    "mixed_table.py": "missing kind    guessed right: ",
    "semi_supervised.py": "SDGM     q(y|x) ",
    "two_stages.py": "two stages: q(y|x) ",
    "two_labels.py": "sex right, given the species: two labels ",
    "partly_measured.py": "grades off by, on average: SSVAE ",
    "sequences.py": "a Markov chain of codes  log p(x) ",
    "two_kinds.py": "conditional VAE",
    "vector_quantised.py": "uniform prior: log p(x) at least ",
    "discrete_codes.py": "summed out        log p(x) ",
    "nvae.py": "nats a group, coarsest first: ",
    "outliers.py": "false alarms among ordinary rows: ",
    "sklearn_pipeline.py": "best number of components: ",
    "impute.py": "high values missing: not-MIWAE RMSE ",
    "inpaint.py": "what may have been there, for each corruption: inpaint.png",
    "plain_functions.py": "probabilistic PCA in closed form: ",
}


DIGITS = functools.cache(sklearn.datasets.load_digits)


def few_digits(return_X_y: bool = False) -> Any:
    """Of the digits those that the examples train on, and 20 more to test on."""
    data, target = DIGITS().data[:1457], DIGITS().target[:1457]
    return (data, target) if return_X_y else Bunch(data=data, target=target)


def test_every_example_is_listed() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*k-hat:UserWarning", "ignore:.*effective:UserWarning")  # of proposals of few steps
@pytest.mark.parametrize("name", sorted(SAYS))
def test_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # for what an example writes
    monkeypatch.setattr(sys, "argv", [name, "--smoke"])
    monkeypatch.setattr(sklearn.datasets, "load_digits", few_digits)
    fit = pv.fit

    def short_fit(pair: Any, data: Any, **options: Any) -> pv.Fit:
        """Few steps, in larger minibatches than the example's, and so few that to trace one would take longer."""
        rows = len(next(iter(data.values())) if isinstance(data, dict) else data)
        batch_size = max(options.get("batch_size", 200), min(500, rows // 8))
        return fit(pair, data, **options | {"engine": "eager", "batch_size": batch_size})

    monkeypatch.setattr(pv, "fit", short_fit)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out
