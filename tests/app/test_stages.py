"""M1+M2 in two stages from the command line: one folder, resumed in either stage to the weights of an uninterrupted fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import Command
from torch import Tensor

import pyrovae as pv
from pyrovae.app import run as runs
from pyrovae.app.options import Options
from pyrovae.app.run import Run, fit_run, open_run, resume_run
from pyrovae.data import load
from pyrovae.fitted.files import read_run, sealed

OPTIONS: dict[str, Any] = {"model": "m1m2", "epochs": 2, "hidden": (8,), "latent": 2, "labelled": 40, "stages": 2}
HOW: dict[str, Any] = {"engine": "eager", "progress": False}


def fit_digits(folder: Path, **options: Any) -> Run:
    return fit_run(load("digits"), Options.of("fit", **OPTIONS | options), folder, **HOW)


def weights(pair: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pair.state_dict().items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_fit_that_was_stopped_in_a_stage_resumes(stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = weights(fit_digits(tmp_path / "straight").fitted.pair)
    fits, fit = [], runs.fit

    def stop(fitted: pv.Fit) -> None:
        raise KeyboardInterrupt

    def stopping(pair: Any, *args: Any, **kwargs: Any) -> pv.Fit:
        fits.append(type(pair).__name__)
        kwargs |= {"checkpoint_every": 0.0, "callbacks": [stop] if len(fits) == stage else []}
        return fit(pair, *args, **kwargs)

    monkeypatch.setattr(runs, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_digits(tmp_path / "run")
    assert fits == ["VAE", "StackedSSVAE"][:stage]
    with pytest.raises(pv.CheckpointError, match="--resume"):
        open_run(tmp_path / "run")
    monkeypatch.setattr(runs, "fit", fit)
    resumed = resume_run(tmp_path / "run", progress=False)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(resumed.fitted.pair).items())
    opened = open_run(tmp_path / "run")
    assert all(torch.equal(value, wanted[name]) for name, value in weights(opened.fitted.pair).items())


def test_the_second_stage_leaves_the_first_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firsts, fit = [], runs.fit

    def remembering(pair: Any, *args: Any, **kwargs: Any) -> pv.Fit:
        fitted = fit(pair, *args, **kwargs)
        firsts.append(
            (type(pair).__name__, args[0].keys(), weights(pair), read_run(tmp_path / "run")["info"].get("stage"))
        )
        return fitted

    monkeypatch.setattr(runs, "fit", remembering)
    run = fit_digits(tmp_path / "run")
    (name, rows, m1, stage), (joined, labelled, both, last) = firsts
    assert (name, list(rows), stage) == ("VAE", ["x"], 1) and (joined, list(labelled), last) == (
        "StackedSSVAE",
        ["x", "y"],
        None,
    )
    shared = [name for name in both if name in m1]
    assert {name.partition(".")[0] for name in shared} == {"likelihood", "encoder"}
    assert all(torch.equal(both[name], m1[name]) for name in shared)
    pair: Any = run.fitted.pair
    assert {n.partition(".")[0] for n, p in pair.named_parameters() if not p.requires_grad} == {"likelihood", "encoder"}
    # at the end of the first stage the folder holds no finished run
    run_json = tmp_path / "run" / "run.json"
    content = json.loads(run_json.read_text())
    content["info"]["stage"] = 1
    run_json.write_bytes(sealed(content))
    with pytest.raises(pv.CheckpointError, match="first of its two stages"):
        open_run(tmp_path / "run")
    del content["info"]["stage"]
    for damaged in (3, "two", [2], None, True, 2.0):
        content["info"]["options"]["stages"] = damaged
        run_json.write_bytes(sealed(content))
        for read in (open_run, resume_run):
            with pytest.raises(pv.CheckpointError, match=rf"{tmp_path.name}.*stages"):
                read(tmp_path / "run")


def test_one_stage_fits_all_at_once_as_runs_of_before_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, fit = [], runs.fit
    monkeypatch.setattr(runs, "fit", lambda pair, *a, **k: (fits.append(pair), fit(pair, *a, **k))[1])
    run = fit_digits(tmp_path / "run", stages=1)
    pair: Any = run.fitted.pair
    assert len(fits) == 1 and all(p.requires_grad for p in pair.parameters())
    path = tmp_path / "run" / "run.json"  # as before there were stages
    content = json.loads(path.read_text())
    del content["info"]["options"]["stages"]
    path.write_bytes(sealed(content))
    again = resume_run(tmp_path / "run", progress=False)
    assert len(fits) == 2 and again.fitted.history == run.fitted.history


def test_stages_are_for_the_model_that_has_two(pyrovae: Command) -> None:
    code, _, err = pyrovae("fit", "digits", "--model", "m2", "--stages", "2")
    assert code == 2 and "--stages 2 does not go with --model m2; it is for m1m2" in " ".join(err.split())
    code, _, err = pyrovae("fit", "digits", "--model", "m1m2", "--stages", "3")
    assert code == 2 and "--stages must be 1 or 2, got 3" in " ".join(err.split())
