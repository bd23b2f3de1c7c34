"""Captions on the command line: `fit --condition captions`, `generate --given c="..."`, and every question to such a run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae.app.pictures import titled
from pyrovae.app.run import open_run
from pyrovae.data import Captions, load

QUICK = ("--epochs", 1, "--hidden", 8, "--latent", 2, "--proposal", "guide", "--num-samples", 5)


@pytest.mark.digits(100)
@pytest.mark.filterwarnings("ignore:.*k-hat:UserWarning", "ignore:.*effective:UserWarning")
def test_a_run_that_is_given_captions(pyrovae: Command) -> None:
    code, out, err = pyrovae("fit", "digits", "--condition", "captions", *QUICK, "--out", "run")
    assert code == 0, err
    told = " ".join(err.split())
    assert "model cvae given captions of" in told and "z ~ Flow (2)" in told and "log p(x | c), nats per row" in out
    recorded = json.loads(Path("run/run.json").read_text())["info"]["data"]["captions"]
    run = open_run(Path("run"))
    assert run.rows.given is not None and run.dataset.captions == Captions.from_json(recorded)

    assert pyrovae("generate", "run", "--given", "c=bold tilted seven", "-n", 3, "--out", "new.csv")[0] == 0
    new = pd.read_csv("new.csv")
    assert new["caption"].tolist() == ["bold tilted seven"] * 3
    c = run.dataset.captions.vocabulary.encode("bold tilted seven", 3)
    same = pv.generate(run.fitted, 3, given={"c": c}, seed=0)
    assert torch.equal(torch.tensor(new.drop(columns="caption").to_numpy()).float(), same)
    assert pyrovae("generate", "run", "-n", 5, "--out", "any.csv")[0] == 0  # captions of training rows
    captions = pd.read_csv("any.csv")["caption"].fillna("").tolist()
    assert len(captions) == 5 and all(
        run.dataset.captions.vocabulary.encode([caption]).shape[0] for caption in captions
    )
    assert pyrovae("generate", "run", "--given", "c=", "-n", 2, "--out", "none.csv")[0] == 0  # says nothing

    for words, wanted in (
        (("--given", "c=bold sevn"), "'sevn' (did you mean seven?) is not known"),
        (("--given", "bold seven"), 'write --given c="'),
        (("--given", "z=bold seven"), 'write --given c="'),
        (("--given", "c=thin", "-n", 0), "num must be at least 1"),
        (("--class", "7"), "--given c=..."),
    ):
        code, _, err = pyrovae("generate", "run", *words, "--force")
        assert code == 2 and wanted in " ".join(err.split()), err
    code, _, err = pyrovae("impute", "run", "new.csv")
    assert code == 2 and "given the caption of each row" in " ".join(err.split())
    for words in (("encode", "run"), ("reconstruct", "run", "--force"), ("evaluate", "run", "--num-samples", 5)):
        code, _, err = pyrovae(*words)
        assert code == 0, err

    # other rows get captions by the limits of the run, which tell no class where they have none
    np.savez("unlabelled.npz", x=load("digits").x.reshape(-1, 8, 8)[:30].numpy())
    for source, number in (("digits", 100), ("unlabelled.npz", 30)):
        code, out, err = pyrovae("outliers", "run", source, "--num-samples", 5, "--force")
        assert code == 0 and f"{number} rows" in out, err


@pytest.mark.pictures
def test_a_caption_in_a_title_is_no_formula(tmp_path: Path) -> None:
    axes = titled(pv.plots.images(torch.zeros(1, 4), (2, 2)), "rows drawn from the model, given c=$\\seven$")
    assert pv.plots.save(axes, tmp_path / "images.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("digits", "--condition", "captions,3"), "Images can have --condition captions, and no column"),
        (("digits", "--condition", "captions", "--size-factor", "sum"), "no column or --size-factor beside it"),
        (("digits", "--condition", "captions", "--model", "m2"), "does not go with --model m2"),
        (("table.csv", "--condition", "captions"), "no column 'captions'"),
    ],
)
def test_a_mistake_gets_one_clear_error(pyrovae: Command, words: tuple[str, ...], told: str) -> None:
    pd.DataFrame({"a": range(20), "b": range(20)}).to_csv("table.csv", index=False)
    code, _, err = pyrovae("fit", *words, *QUICK)
    assert code == 2 and told in " ".join(err.split()), err
    assert not Path("runs").exists()
