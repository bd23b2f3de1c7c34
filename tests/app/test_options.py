"""Options are declared once: flags, help, run.json and refusals follow from the declaration."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.cli.parameters import help_of
from pyrovae.app.decide import decide, models_taking
from pyrovae.app.models import MODELS
from pyrovae.app.options import OPTIONS, Options, offered
from pyrovae.app.run import _loss
from pyrovae.data import Dataset
from pyrovae.data.load import read
from pyrovae.errors import OptionError

COMMANDS = ("fit", "sweep", "label")


def test_every_field_is_declared_and_used_by_a_command() -> None:
    assert [f.name for f in fields(Options)] == list(OPTIONS)
    used = {option.name for command in COMMANDS for option in offered(command, hidden=True)}
    assert used == set(OPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_offers_its_options_with_their_defaults(pyrovae: Command, command: str) -> None:
    code, out, _ = pyrovae(command, "--help")
    said = "".join(out.split())
    assert code == 0
    for option in offered(command):
        assert option.flag in said and "".join(help_of(option, command).split()) in said
        default = option.shown(option.default_of(command))
        if default is False:
            default = f"no{option.flag[1:]}"  # as it is typed: --no-shared-prior
        assert default is None or f"[default:{default}]" in said
        assert "{" not in help_of(option, command)


def test_a_command_does_not_offer_the_options_of_others(pyrovae: Command) -> None:
    for command in COMMANDS:
        _, out, _ = pyrovae(command, "--help")
        for option in set(OPTIONS) - {o.name for o in offered(command)}:
            assert f"{OPTIONS[option].flag} <" not in out


@pytest.mark.parametrize("job", ["fit", "label"])
def test_options_are_the_same_after_json(job: str) -> None:
    for given in ({}, {"hidden": (30,), "seed": 3, "likelihood": "poisson"}):
        options = Options.of(job, **given)
        assert Options.from_json(json.loads(json.dumps(options.to_json(job))), job) == options
    with pytest.raises(pv.CheckpointError, match=f"was it made by `pyrovae {job}`"):
        Options.from_json({**options.to_json(job), "latnet": 3}, job)
    with pytest.raises(pv.CheckpointError, match="latent"):
        Options.from_json({k: v for k, v in options.to_json(job).items() if k != "latent"}, job)
    with pytest.raises(pv.CheckpointError, match="damaged or missing"):
        Options.from_json(None, job)


def test_options_that_a_run_is_older_than_have_their_defaults_or_what_was_done_then() -> None:
    recorded = {name: value for name, value in Options().to_json("fit").items() if not OPTIONS[name].later}
    assert len(recorded) < len(Options().to_json("fit"))
    assert Options.from_json(recorded, "fit") == Options(
        proposal="guide", keep="last", size_factor="none", search="none", kl="draws", dropout=0.0
    )


def test_the_options_of_a_labelling_run_of_version_0_1_are_read() -> None:
    path = Path(__file__).parents[1] / "data" / "runs" / "labels" / "run.json"
    options = Options.from_json(json.loads(path.read_text())["info"]["settings"], "label")
    assert options.hidden == (8,) and options.steps == 40 and options.alpha == 50 and options.likelihood == "normal"


def test_models_name_options_that_are_declared_for_them() -> None:
    by_model = {name for name, option in OPTIONS.items() if option.by_model}
    assert {name for model in MODELS.values() for name in model.takes} == by_model
    assert models_taking("clusters") == ["gmvae", "vade", "jointvae"] and models_taking("latent") == list(MODELS)


def test_a_label_run_has_one_hidden_layer(pyrovae: Command) -> None:
    Path("t.csv").write_text("a,label\n" + "1.5,x\n2.5,y\n" * 3 + "3.5,\n")
    code, _, err = pyrovae("label", "t.csv", "--hidden", "30,20")
    assert code == 2 and "--hidden is one width here" in err and not Path("runs").exists()


@pytest.mark.slow
def test_how_a_table_is_read_can_be_chosen_and_is_kept(pyrovae: Command) -> None:
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.permutation(900)[:30], rng.normal(size=(30, 4)).round(3)])
    Path("t.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in [[0.5, 400, 450, 500, 550], *rows]))
    quick = (
        "--epochs",
        "1",
        "--hidden",
        "4",
        "--latent",
        "2",
        "--proposal",
        "guide",
        "--num-samples",
        "2",
        "--device",
        "cpu",
    )
    code, _, err = pyrovae("fit", "t.csv", *quick, "--out", "run", "--header", "--id", "0", "--drop", "last")
    assert code == 0, err
    source = json.loads(Path("run/run.json").read_text())["info"]["data"]
    assert (source["header"], source["ids"], source["drop"], source["kind"]) == (True, "0.5", ["550"], "real")
    code, _, err = pyrovae("evaluate", "run", "--num-samples", "2")
    assert code == 0, err
    code, _, err = pyrovae("fit", "t.csv", *quick, "--out", "run2", "--drop", "nothing")
    assert code == 2 and "no column 'nothing'" in err
    code, _, err = pyrovae("fit", "digits", "--id", "0")
    assert code == 2 and "--id: for tables" in err


@pytest.mark.parametrize("command", ["fit", "sweep", "label"])
def test_what_was_found_in_a_table_is_said(pyrovae: Command, command: str) -> None:
    lines = [f"{10001 + i},{i / 7:.3f},{i % 5 / 3:.3f},{'ab'[i % 2] if i < 6 else ''}\n" for i in range(30)]
    Path("t.csv").write_text("patient_id,a,b,label\n" + "".join(lines))
    refused = ["--likelihood", "binomial"]  # after the table was read: the largest count is missing
    _, _, err = pyrovae(command, "t.csv", *([] if command == "label" else ["--label", "label"]), *refused)
    assert "Note: Column patient_id names the rows, and is left out; --id none" in err


def test_fits_of_small_tables_stop_early_unless_somebody_says_how_long_they_are(tmp_path: Path) -> None:
    lines = ["a,b", *(f"{i % 7 + i / 100},{i % 5 - i / 50}" for i in range(60))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    dataset = read(str(tmp_path / "table.csv"))

    def patience(num_rows: int = 42, **given: Any) -> int | None:
        return decide(Options.of("fit", **given), dataset, num_rows).patience

    decided = decide(Options.of("fit"), dataset, 42)
    assert decided.epochs == 1000 and patience() == decided.patience == 250
    assert decide(decided, dataset, 42) == decided  # as a run that is resumed
    assert patience(1500) == 64 and patience(2000) is None  # of 256 epochs, and a fit of many rows
    assert patience(patience=7) == 7
    for said in ({"epochs": 400}, {"keep": "last"}, {"kl_warmup": 3.0}, {"kl_cycles": 4}, {"validation_fraction": 0.0}):
        assert patience(**said) is None, said


def test_a_warm_up_of_no_epochs_is_one_that_was_asked_for() -> None:
    images = Dataset(name="squares", x=torch.rand(60, 64).round(), kind="binary", source={}, image_shape=(8, 8))
    nvae = {"model": "nvae", "epochs": 30}
    assert decide(Options.of("fit", **nvae), images, 42).kl_warmup == 10
    none = decide(Options.of("fit", **nvae, kl_warmup=0.0), images, 42)
    assert none.kl_warmup == 0 and decide(none, images, 42).kl_warmup == 0  # as a run that is resumed
    assert decide(Options.of("fit"), images, 42).kl_warmup == 0


def test_latent_dimensions_beside_levels_are_those_of_the_first() -> None:
    rows = Dataset(name="rows", x=torch.rand(60, 64).round(), kind="binary", source={})
    for model in ("hierarchical", "ladder"):
        levels = {"model": model, "levels": (3, 2)}
        with pytest.raises(OptionError, match="--latent 7 is not the first of --levels: leave --latent out"):
            decide(Options.of("fit", latent=7, **levels), rows, 42)
        decided = decide(Options.of("fit", **levels), rows, 42)
        assert decided.latent == 3 and decide(decided, rows, 42) == decided


@pytest.mark.parametrize("kl, wanted", [("auto", "analytic"), ("draws", None)])
def test_kl_terms_are_in_closed_form_unless_draws_are_asked_for(kl: str, wanted: str | None) -> None:
    torch.manual_seed(0)
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4)), pv.mlp(4, fam.Normal(2)))
    fitted = pv.fit(vae, torch.bernoulli(torch.full((6, 4), 0.5)), epochs=0, progress=False)
    found = []
    for loss in (_loss(Options.of("fit", kl=kl)) or pv.Trace_ELBO(), pv.Trace_ELBO(kl=wanted)):
        torch.manual_seed(1)
        found.append(loss(vae, fitted.batch(torch.ones(6, 4)), num_rows=6).objective.item())
    assert found[0] == found[1]
