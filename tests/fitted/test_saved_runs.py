"""Runs that version 0.1 left open, evaluate, resume and go on, wherever the classes that they name have moved since.

The folders under tests/data/runs were written by version 0.1 on torch 2.14.1: an interrupted and an uninterrupted fit of
the digits each, a fit in Python with hooks of every kind, and a labelling run of tests/data/table.csv.
"""

import inspect
import json
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.command import Command

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.fitted.spec import RENAMED, externals, from_spec, public_name, renamed, to_spec

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A copy of the saved runs."""
    return Path(shutil.copytree(DATA, tmp_path / "data")) / "runs"


def rows() -> dict[str, torch.Tensor]:
    y = torch.arange(60) % 3
    y[20:] = -1
    return {"x": torch.rand(60, 6, generator=torch.Generator().manual_seed(0)), "y": y}


def labelled_pair() -> pv.SSVAE:
    torch.manual_seed(0)
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(3),
        prior=pv.priors.MixtureOfNormals(2, 3),
        likelihood=pv.mlp((2, 3), fam.Columns([fam.Bernoulli(2), fam.Bernoulli(4)]), hidden=(4,)),
        encoder=pv.mlp((6, 3), fam.Normal(2), hidden=(4,)),
        classifier=pv.mlp(6, fam.Categorical((), 3), hidden=(4,)),
        code=pv.nets.OneHot(3),
        alpha=5.0,
    )


@pytest.mark.slow
def test_a_run_of_the_command_line_evaluates_to_what_it_printed(saved: Path, pyrovae: Command) -> None:
    code, out, err = pyrovae("evaluate", saved / "digits-finished", "--num-samples", 50)
    results = json.loads((saved / "digits-finished" / "run.json").read_text())["info"]["results"]
    assert code == 0, err
    assert f"{results['elbo']:.2f}" in out and f"{results['log_likelihood']:.2f}" in out
    assert pyrovae("generate", saved / "digits-finished")[0] == 0


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(saved: Path, pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", "--resume", saved / "digits-stopped")
    assert code == 0, err
    whole, again = (
        load_file(saved / f"digits-{name}" / "weights.safetensors") for name in ("uninterrupted", "stopped")
    )
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_with_hooks_opens_and_resumes_in_python(saved: Path) -> None:
    fitted = pv.load(saved / "hooks-finished")
    assert pv.log_likelihood(fitted, rows()["x"].round(), 100, proposal="guide", seed=0).mean().item() == pytest.approx(
        -4.3595, abs=0.01
    )
    assert isinstance(fitted.transform, pv.transforms.Binarize)
    again = pv.fit(
        labelled_pair(),
        rows(),
        epochs=4,
        batch_size=20,
        seed=0,
        device="cpu",
        loss=pv.Trace_ELBO(kl=pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.1))),
        schedule=[pv.schedules.one_cycle(1e-2), pv.schedules.kl_warmup(2)],
        transform=pv.transforms.Binarize(),
        penalty=pv.penalties.spectral_norm(0.1),
        validation=0.2,
        checkpoint=saved / "hooks-stopped",
        resume=True,
    )
    assert again.history[-1]["elbo"] == pytest.approx(fitted.history[-1]["elbo"], abs=1e-3)


def test_another_setting_is_still_refused(saved: Path) -> None:
    with pytest.raises(pv.CheckpointError, match="other .*penalty"):
        pv.fit(
            labelled_pair(),
            rows(),
            epochs=4,
            batch_size=20,
            seed=0,
            device="cpu",
            loss=pv.Trace_ELBO(kl=pv.kl.chain(pv.kl.balanced(), pv.kl.free_bits(0.1))),
            schedule=[pv.schedules.one_cycle(1e-2), pv.schedules.kl_warmup(2)],
            transform=pv.transforms.Binarize(),
            penalty=pv.penalties.spectral_norm(0.2),
            validation=0.2,
            checkpoint=saved / "hooks-stopped",
            resume=True,
        )


def test_a_labelling_run_goes_on(saved: Path, pyrovae: Command) -> None:
    options = ("--steps", 40, "--hidden", 8, "--latent", 2, "--passes", 3, "--run", saved / "labels", "--force")
    options += ("--neighbors", 0)  # as it was
    code, _, err = pyrovae("label", saved.parent / "table.csv", "--labels", saved.parent / "labels.csv", *options)
    assert code == 0, err
    assert "its weights are asked again" in " ".join(err.split())  # trained as it would be now: nothing to train
    before, now = (pd.read_csv(folder / "labels.csv") for folder in (DATA / "runs" / "labels", saved / "labels"))
    assert (before["predicted"] == now["predicted"]).all()
    assert (before["probability"] - now["probability"]).abs().max() < 1e-3


def classes() -> list[type]:
    """Every class of pyrovae that a run.json may name, and that users see."""
    homes = [
        pv,
        *(import_module(f"pyrovae.{name}") for name in ("families", "priors", "nets", "distributions", "models")),
    ]
    homes += [pv.transforms, pv.schedules, pv.kl, pv.penalties]
    found = {c for home in homes for c in vars(home).values() if inspect.isclass(c)}
    return sorted((c for c in found if c.__module__.startswith("pyrovae.")), key=lambda c: c.__qualname__)


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__qualname__)
def test_a_public_class_is_written_by_its_public_name(cls: type) -> None:
    name = public_name(cls)
    home, _, last = name.rpartition(".")
    found = pv
    for part in home.split(".")[1:]:
        found = getattr(found, part)
    assert getattr(found, last) is cls
    assert home.count(".") <= 1, f"{name} is the path of a file, which may move"


def test_every_name_of_version_0_1_is_known_and_leads_to_a_module_of_now() -> None:
    for home in set(RENAMED.values()):
        found = pv
        for part in home.split(".")[1:]:
            found = getattr(found, part)
    spec = {
        "class": "pyrovae.infer.kl.chain",
        "args": {"functions": {"tuple": [{"class": "pyrovae.infer.kl.balanced"}]}},
    }
    assert renamed(spec)["class"] == "pyrovae.kl.chain"
    assert renamed(spec)["args"]["functions"]["tuple"][0]["class"] == "pyrovae.kl.balanced"
    assert renamed({"class": "pyrovae.infer.kl.no_such_thing"}) == {"class": "pyrovae.infer.kl.no_such_thing"}


@pytest.mark.parametrize(
    "name", ["os.system", "pyrovae.training.fit.fit", "pyrovae.fit", "pyrovae.nets.mlp.nn.Linear", "pyrovae"]
)
def test_a_run_may_not_name_anything_else(name: str) -> None:
    with pytest.raises(pv.CheckpointError):
        from_spec({"class": name, "args": {}})


def test_a_class_of_ones_own_is_external() -> None:
    class Own:
        pass

    assert externals(to_spec(Own())) and public_name(Own).endswith("Own")
    assert pkgutil.resolve_name("pyrovae.families:Bernoulli") is fam.Bernoulli
