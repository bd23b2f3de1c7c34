"""Graphs by their names on the command line: every question to a run of each, and labels known, hidden and missing."""

import json
import math
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from support.command import Command

import pyrovae as pv
from pyrovae.app import models as recipes
from pyrovae.app import run as runs
from pyrovae.app import scores
from pyrovae.app.comparisons import measure_of
from pyrovae.app.decide import decide
from pyrovae.app.jobs.explore import Explorer
from pyrovae.app.options import Options
from pyrovae.app.results import remarks_on_results
from pyrovae.app.rows import make_rows, split_rows
from pyrovae.data import Dataset, load
from pyrovae.fitted.files import sealed

QUICK = ("--epochs", "2", "--hidden", "8", "--latent", "2", "--proposal", "guide", "--num-samples", "2")


def quick(*words: str) -> tuple[str, ...]:
    """Options of a short fit, but for the width of the nets where they are maps, and for draws where all are one."""
    unused = {"--hidden"} if {"nvae", "conv", "resnet"} & {*words} else set()
    unused |= {"--proposal", "--num-samples"} if "vqvae" in words else set()
    return tuple(word for pair in zip(QUICK[::2], QUICK[1::2]) if pair[0] not in unused for word in pair)


class Row(NamedTuple):
    """What a run of a model says: options beside its name, a line of its graph, and words of its table."""

    options: tuple[str, ...]
    graph: str
    told: tuple[str, ...]


MODELS = {
    "vae": Row((), "model  p(z) p(x | z)", ("log p(x), nats",)),
    "cvae": Row((), "model  p(z | c) p(x | z, c)", ("log p(x | c), nats",)),
    "m2": Row(
        ("--labelled", "40", "--prior", "mixture"),
        "guide  q(z | x, y)",
        ("log p(x), nats", "right classes by the guide", "right classes by the joint model"),
    ),
    "m1m2": Row((), "guide  q(z1 | x) q(y | z1) q(z2 | z1, y)", ("right classes by the guide",)),
    "adgm": Row(
        ("--labelled", "30"), "guide  q(a | x) q(y | a, x) q(z | a, y, x)", ("right classes by the joint model",)
    ),
    "sdgm": Row(
        ("--labelled", "30", "--norm", "batch"),
        "model  p(y) p(z) p(a | y, z) p(x | y, z, a)",
        ("right classes by the joint model",),
    ),
    "gmvae": Row(
        (),
        "guide  q(y | x) q(z | y, x)",
        ("log p(x), nats", "right classes by clusters' majorities", "clusters with training rows"),
    ),
    "vade": Row(("--clusters", "4"), "model  p(y) p(z | y) p(x | z)", ("right classes by clusters' majorities",)),
    "jointvae": Row(("--prior", "vamp"), "model  p(y) p(z) p(x | y, z)", ("right classes by clusters' majorities",)),
    "spatial": Row((), "guide  q(pose | x) q(z | pose, x)", ("log p(x), nats", "active units")),
    "hierarchical": Row((), "guide  q(z1 | x) q(z2 | z1)", ("active units of z1", "active units of z2")),
    "ladder": Row(
        ("--levels", "2,3,1", "--prior", "vamp"),
        "guide  q(z3 | x) q(z2 | z3, x) q(z1 | z2, x)",
        ("active units of z3",),
    ),
    "nvae": Row(("--groups", "1,1"), "guide  q(z1_1 | x) q(z2_1 | z1_1, x)", ("active units",)),
    "vqvae": Row((), "model  p(z) p(x | z)", ("log p(x), at least", "perplexity of codes")),
    "categorical": Row(("--categories", "3"), "guide  q(z | x)", ("log p(x), nats", "active units")),
}


ELSEWHERE = ("labels",)  # of a table with several columns of labels: test_several_labels.py


def test_every_model_has_a_row() -> None:
    assert list(MODELS) == [name for name in recipes.MODELS if name not in ELSEWHERE]


DRAWN = ("vae", "ladder", "jointvae")  # with pictures of all kinds; for the others, files are left empty
ASKED = [pytest.param(name, marks=pytest.mark.pictures) if name in DRAWN else name for name in MODELS]


@pytest.mark.slow
@pytest.mark.digits(100)
@pytest.mark.filterwarnings("ignore:Site 'z' has a codebook of 240 codes")  # and so few rows have fewer places
@pytest.mark.parametrize("name", ASKED)
def test_every_question_to_a_run_of_every_model(pyrovae: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    row, model, fit = MODELS[name], recipes.MODELS[name], runs.fit
    labelled = model.labels is not None

    def stopping(*args: Any, **kwargs: Any) -> Any:
        return fit(*args, **kwargs | {"callbacks": [lambda fitted: os.kill(os.getpid(), signal.SIGINT)]})

    monkeypatch.setattr(runs, "fit", stopping)
    code, _, err = pyrovae("fit", "digits", "--model", name, *row.options, *quick(name), "--out", "run")
    assert code == 130 and row.graph in err and f"model {name}" in " ".join(err.split()), err
    assert ("where y is known" in err) == (model.labels == "y")
    monkeypatch.setattr(runs, "fit", fit)
    code, out, err = pyrovae("fit", "--resume", "run")
    assert code == 0, err
    for words in row.told:
        assert words in out
    results = json.loads(Path("run/run.json").read_text())["info"]["results"]
    code, again, err = pyrovae("evaluate", "run", "--num-samples", 2)
    assert code == 0 and f"{results['log_likelihood']:.2f}" in again, err
    assert {"training.png", "reconstructions.png", "samples.png", "latent.png"} <= {
        p.name for p in Path("run").iterdir()
    }
    assert bool(list(Path("run").glob("graph-labelled.*"))) == (model.labels == "y")
    assert Path("run/levels.png").exists() == bool({"levels", "groups"} & {*model.takes})

    code, _, err = pyrovae("generate", "run", "-n", 12, "--out", "new.csv")
    assert code == 0, err
    new = pd.read_csv("new.csv")
    assert new.shape == (12, 64 + labelled) and new.iloc[:, :64].isin(range(17)).all().all()
    if labelled:
        assert new["label"].tolist() == [*range(10), 0, 1]
    assert pyrovae("generate", "run", "-n", 20, "--mean")[0] == 0 and Path("run/generated.png").exists()
    code, _, err = pyrovae("generate", "run", "-n", 3, "--class", "7", "--out", "seven.csv")
    assert (code == 0) == labelled, err
    if labelled:
        assert (pd.read_csv("seven.csv")["label"] == 7).all()
        code, _, err = pyrovae("generate", "run", "--class", "seven")
        assert code == 2 and "known: 0, 1, 2" in err
    else:
        assert code == 2 and "labelled classes" in " ".join(err.split())

    assert pyrovae("reconstruct", "run", "--out", "again.npy")[0] == 0 and np.load("again.npy").shape == (20, 64)
    explored = Explorer.open(Path("run"), device="cpu").start_from({"row": 99})
    assert explored["values"].keys() == explored["log_p"].keys() and math.isfinite(explored["total"])
    assert explored["shown"]["x"]["row"].startswith("data:image/png") and ("c" in explored["given"]) == (name == "cvae")
    assert ("y" in explored["values"]) == (model.labels == "y" or model.clusters)
    assert pyrovae("encode", "run", "--out", "z.csv")[0] == 0
    units = (
        8 if model.grouped else 6 if model.quantised or "categories" in model.takes else 2
    )  # two maps of 2 x 2, two codes of three, or two dimensions
    moves = ["angle", "right", "down"] if model.has_pose else []
    assert list(pd.read_csv("z.csv", index_col="row")) == [*(f"z{k}" for k in range(units)), *moves, "label"]


@pytest.mark.slow
def test_p_of_x_given_its_class_is_not_compared_with_p_of_x(pyrovae: Command) -> None:
    for name in ("cvae", "vade", "vae"):
        assert pyrovae("fit", "digits", "--model", name, *QUICK, "--out", name)[0] == 0
    quick = ("--proposal", "guide", "--num-samples", 5)
    code, _, err = pyrovae("compare", "vae", "cvae", *quick)
    assert code == 2 and "different things" in " ".join(err.split()) and "p(x | c)" in err
    code, out, err = pyrovae("compare", "vae", "vade", *quick)
    assert code == 0 and "log p(x)" in out and "by ELBO" in out, err
    # a run of a time when there were no other models
    path = Path("vae/run.json")
    run = json.loads(path.read_text())
    for option in ("model", "clusters", "labelled", "levels"):
        del run["info"]["options"][option]
    path.write_bytes(sealed(run))
    assert pyrovae("evaluate", "vae", *quick)[0] == 0
    assert str(measure_of(runs.open_run(Path("vae")))) == "log p(x): probability mass"


def test_labels_that_are_kept_are_equally_many_of_each_class() -> None:
    dataset = load("digits")
    options = decide(Options(model="m2", labelled=43), dataset, len(dataset.x))
    rows = make_rows(dataset, split_rows(dataset, options), options)
    y = rows.batch("train")["y"]
    assert torch.bincount(y[y >= 0], minlength=10).tolist() == [5, 5, 5, 4, 4, 4, 4, 4, 4, 4]
    truth = dataset.y[split_rows(dataset, options).train]  # type: ignore[index]
    assert (y[y >= 0] == truth[y >= 0]).all()
    assert "y" not in rows.batch("test") and rows.codes["test"] is not None and (rows.codes["test"] >= 0).all()
    again = make_rows(dataset, split_rows(dataset, options), options)
    assert torch.equal(y, again.batch("train")["y"])


def text_labels(path: Path, rows: int = 60) -> None:
    g = np.random.default_rng(0)
    frame = pd.DataFrame(g.normal(size=(rows, 4)), columns=list("abcd"))
    frame["kind"] = np.where(frame["a"] > 0, "up", "down")
    frame.loc[::9, "kind"] = ""
    frame.to_csv(path, index=False)


@pytest.mark.slow
def test_classes_keep_their_names_and_unknown_labels_stay_unknown(pyrovae: Command) -> None:
    text_labels(Path("t.csv"))
    code, out, err = pyrovae("fit", "t.csv", "--label", "kind", "--model", "m2", *QUICK)
    assert code == 0 and "right classes by the guide" in out, err
    assert pyrovae("generate", "runs/t", "-n", 4, "--out", "new.csv")[0] == 0
    new = pd.read_csv("new.csv")
    assert list(new.columns) == [*"abcd", "kind"] and new["kind"].tolist() == ["down", "up"] * 2
    code, _, err = pyrovae("generate", "runs/t", "-n", 4, "--class", "up", "--out", "up.csv")
    assert code == 0 and (pd.read_csv("up.csv")["kind"] == "up").all(), err


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown norm": (
        ("digits", "--model", "m2", "--norm", "group"),
        "norm 'group' is not known; known: none, layer, batch",
    ),
    "norm of a vae": (
        ("digits", "--norm", "batch"),
        "--norm batch does not go with --model vae; it is for m2, labels, adgm, sdgm",
    ),
    "unknown model": (
        ("digits", "--model", "gan"),
        "known: vae, cvae, m2, labels, m1m2, adgm, sdgm, gmvae, vade, jointvae",
    ),
    "no labels": (("plain.csv", "--model", "m2"), "needs labels .* --label"),
    "no labels for a condition": (("plain.csv", "--model", "cvae"), "needs labels .* --label"),
    "unknown condition": (("t.csv", "--label", "kind", "--model", "cvae"), "label of every row, and 7 rows"),
    "more labels than rows": (("digits", "--model", "m2", "--labelled", "5000"), "from 10, one row a class, to 210"),
    "fewer than a label a class": (("digits", "--model", "m2", "--labelled", "9"), "one row a class"),
    "more of a class than there are": (("digits", "--model", "adgm", "--labelled", "205"), "has .* in training"),
    "labelled without labels": (("digits", "--labelled", "100"), "--labelled 100 does not go with --model vae"),
    "one cluster": (("digits", "--model", "gmvae", "--clusters", "1"), "at least 2"),
    "clusters of a vae": (("digits", "--clusters", "5"), "it is for gmvae, vade, jointvae"),
    "levels of a vae": (("digits", "--levels", "4,2"), "--levels .*4, 2.* it is for hierarchical, ladder"),
    "levels that are no numbers": (("digits", "--model", "ladder", "--levels", "4;2"), "--levels takes whole numbers"),
    "an empty level": (("digits", "--model", "ladder", "--levels", "4,0"), "--levels must be positive, got 4,0"),
    "groups of a vae": (("digits", "--groups", "1,2"), "--groups .*1, 2.* it is for nvae"),
    "an empty group": (("digits", "--model", "nvae", "--groups", "1,0"), "--groups are whole numbers of at least 1"),
    "poses of a table": (("t.csv", "--label", "kind", "--model", "spatial"), "needs images, and the rows of t"),
    "maps of a table": (("t.csv", "--label", "kind", "--model", "nvae"), "needs images, and the rows of t"),
    "no level": (("digits", "--model", "hierarchical", "--levels", ""), "--levels must be positive, got none"),
    "two schedules of the KL weight": (("digits", "--kl-warmup", "2", "--kl-cycles", "2"), "choose one"),
    "a guide of its own": (("digits", "--model", "nvae", "--guide", "full"), "leave out --guide and --hidden"),
    "widths of maps": (("digits", "--model", "nvae", "--hidden", "9"), "--groups and --latent are its sizes"),
    "free bits of nothing": (
        ("digits", "--model", "hierarchical", "--levels", "3", "--free-bits", "1"),
        "spares z1 .* no other level",
    ),
    "free bits of draws": (("digits", "--free-bits", "1", "--kl", "draws"), "leave out --kl draws"),
    "a warm-up longer than the fit": (
        ("digits", "--kl-warmup", "3"),
        "--kl-warmup 3 is longer than the fit of 2 epochs",
    ),
    "a start longer than the fit": (("digits", "--lagging", "100"), "--lagging 100 is longer than the fit of 2"),
    "a largest count for nothing": (
        ("digits", "--likelihood", "poisson", "--total-count", "16"),
        "does not go with --likelihood poisson; it is for binomial",
    ),
    "patience with nothing to watch": (
        ("digits", "--validation-fraction", "0", "--patience", "2"),
        "give --validation-fraction 0.1",
    ),
    "negative free bits": (("digits", "--free-bits", "-1"), "--free-bits is nats a row, 0 for none"),
    "prior by class": (
        ("digits", "--model", "cvae", "--prior", "vamp"),
        "--model cvae has p.z . c., Normals: add --shared-prior",
    ),
    "codes behind a net of vectors": (
        ("digits", "--model", "vqvae", "--net", "resnet"),
        "--net resnet does not go with --model vqvae; choose mlp, or conv",
    ),
    "a line of codes for images": (
        ("digits", "--model", "vqvae", "--net", "conv", "--latent", "3"),
        "a quarter of each side of an image with --net conv. Leave it out",
    ),
    "free bits of a score": (
        ("digits", "--model", "categorical", "--estimator", "score", "--free-bits", "1"),
        "--free-bits needs draws with a gradient",
    ),
    "an estimator of real numbers": (("digits", "--estimator", "score"), "--estimator score .* it is for categorical"),
    "a single category": (("digits", "--model", "categorical", "--categories", "1"), "--categories must be at least 2"),
    "an unknown estimator": (("digits", "--model", "categorical", "--estimator", "rebar"), "known: relaxed, straight"),
    "net": (("digits", "--model", "m2", "--net", "conv"), "--net conv does not go with --model m2; it is for vae"),
}


@pytest.mark.parametrize("case", list(MISTAKES.values()), ids=list(MISTAKES))
def test_a_mistake_with_a_model_gets_one_clear_error(pyrovae: Command, case: tuple[tuple[str, ...], str]) -> None:
    text_labels(Path("t.csv"))
    pd.read_csv("t.csv")[list("abcd")].to_csv("plain.csv", index=False)
    words, message = case
    code, out, err = pyrovae("fit", *quick(*words), *words)
    told = " ".join(err.split())
    assert code == 2 and "Traceback" not in err and not out.strip(), out + err
    assert re.search(message, told), told
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.all_digits
def test_a_collapsed_level_is_named_with_what_to_try(pyrovae: Command) -> None:
    options = ("--model", "hierarchical", "--levels", "4,2", "--hidden", "8", "--epochs", "6")
    code, out, err = pyrovae("fit", "digits", *options, "--proposal", "guide", "--num-samples", "30", "--out", "run")
    told = " ".join(out.split())
    assert code == 0 and "z2 has collapsed: it says next to nothing of x (KL 0.0" in told, out + err
    assert "z1 has collapsed" not in told and all(option in told for option in ("--free-bits", "--lagging"))
    history = pd.read_csv("run/history.csv")
    assert history["kl/z2"].iloc[-1] < 0.1 < history["kl/z1"].iloc[-1]


@pytest.mark.slow
def test_the_remedies_are_options_of_a_run(pyrovae: Command) -> None:
    options = ("--kl-cycles", "2", "--free-bits", "0.5", "--lagging", "1")
    code, out, err = pyrovae("fit", "digits", *options, *QUICK, "--batch-size", "32", "--out", "run")
    settings = json.loads(Path("run/run.json").read_text())["settings"]
    assert code == 0 and settings["loss"]["args"]["kl"]["args"] == {"nats": 0.5}, out + err
    assert all(name in json.dumps(settings["schedule"]) for name in ("kl_cycles", "lagging"))
    code, out, err = pyrovae("evaluate", "run", "--num-samples", "30")
    assert code == 0, out + err


def test_a_ladder_needs_something_to_go_up() -> None:
    with pytest.raises(pv.OptionError, match="at least one width"):
        decide(Options(model="ladder", hidden=()), load("digits"), 100)


def test_levels_are_counted_from_the_data_upwards() -> None:
    dataset = load("digits")
    for name in ("hierarchical", "ladder"):
        options = decide(Options(model=name, hidden=(8,), levels=(5, 3, 2)), dataset, 100)
        rows = make_rows(dataset, split_rows(dataset, options), options)
        layout = pv.check_pair(recipes.build(options, rows.train, rows.num_classes), rows.train[:4])
        assert {s.name: s.event_shape for s in layout.sites} == {"z1": (5,), "z2": (3,), "z3": (2,), "x": (64,)}
    assert decide(Options(model="ladder", latent=7), dataset, 100).levels == (7, 3)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["full", "iaf"])
def test_a_guide_by_name_goes_with_every_model(guide: str) -> None:
    dataset = load("digits")
    for name in recipes.MODELS:
        if (
            recipes.MODELS[name].images or recipes.MODELS[name].own_guide or name == "labels"
        ):  # which digits have one of
            continue
        options = decide(Options(model=name, guide=guide, hidden=(8,), latent=2), dataset, 100)
        rows = make_rows(dataset, split_rows(dataset, options), options)
        pair = recipes.build(options, rows.train, rows.num_classes)
        batches = list(rows.examples().values())
        if len(batches) == 1:
            pv.check_pair(pair, batches[0])
        else:  # a row of each kind
            x, y = batches[1]["x"].repeat(2, 1), torch.tensor([0, 1, -1, -1])
            pv.check_pair(pair, {"x": x, "y": y})


def test_x_is_scaled_wherever_it_stands_among_parents() -> None:
    dataset = load("digits")
    options = decide(Options(model="adgm", hidden=(8,), latent=2), dataset, 100)
    rows = make_rows(dataset, split_rows(dataset, options), options)
    pair: Any = recipes.build(options, rows.train, rows.num_classes)
    a, x, code = torch.randn(5, 2), rows.train[:5], torch.eye(10)[:5]
    inner = pair.encoder.net.net.net  # behind the swap and the scale
    assert torch.equal(pair.encoder.net(a, x, code), inner(x / 16, a, code))


@pytest.mark.parametrize("net", [(), ("--net", "conv"), ("--net", "resnet")])
def test_a_model_with_poses_has_the_network_that_was_asked_for(pyrovae: Command, net: tuple[str, ...]) -> None:
    """And by default perceptrons, in front of which images become vectors."""
    code, out, err = pyrovae("fit", "digits", "--model", "spatial", *quick(*net), *net, "--out", "run")
    assert code == 0 and "active units" in out, err
    run = runs.open_run(Path("run"))
    assert run.options.net == (net[1] if net else "mlp")
    assert any(isinstance(part, torch.nn.Conv2d) for part in run.fitted.pair.modules()) == bool(net)


def test_pixels_that_a_pose_moves_are_scaled_alike() -> None:
    x = torch.randn(60, 40, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 41)
    dataset = Dataset(name="colours", x=x, kind="real", source={}, image_shape=(2, 4, 5))
    for model, alike in (("spatial", True), ("vae", False)):
        options = decide(Options(model=model, net="conv"), dataset, 42)
        rows = make_rows(dataset, split_rows(dataset, options), options)
        assert rows.scaler is not None and rows.train.shape[1:] == (2, 4, 5)
        scale = rows.scaler.scale.view(2, 20)
        assert bool((scale == scale[:, :1]).all()) == alike and scale[0, 0] != scale[1, 0]
        over = (0, 2, 3) if alike else (0,)  # rows, and all pixels of a channel
        torch.testing.assert_close(rows.train.mean(over), torch.zeros_like(rows.train.mean(over)), rtol=0, atol=1e-5)
        torch.testing.assert_close(rows.train.std(over, correction=0), torch.ones_like(rows.train.mean(over)))
        torch.testing.assert_close(rows.restore(rows.train).flatten(1), x[split_rows(dataset, options).train])


def test_clusters_are_matched_on_training_rows_and_judged_on_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clusters told by the rows themselves; the third has no training row and so no class."""
    x = torch.tensor([0.0, 0, 0, 1, 1, 1])[:, None]
    train, test = torch.tensor([4, 4, 1, 1, 1, -1]), torch.tensor([4, 1, 1, 4, -1])

    class Found:
        def __init__(self, rows: torch.Tensor) -> None:
            self.guide = self.joint = torch.nn.functional.one_hot(rows[:, 0].long(), 3).double()

    monkeypatch.setattr(scores, "classify", lambda fitted, data, **_: Found(data["x"]))
    x_test = torch.tensor([0.0, 1, 0, 2, 1])[:, None]
    rows = SimpleNamespace(train=x, test=x_test, codes={"train": train, "test": test}, several=())
    run: Any = SimpleNamespace(rows=rows, model=recipes.MODELS["gmvae"], fitted=None)
    found = scores.accuracies(run, 10)
    assert found["accuracy_rows"] == 4 and found["clusters_used"] == 2
    assert found["accuracy_clusters"] == 0.5  # the third is a 1 among 4s, the fourth in a cluster without a class


def test_codes_are_not_advised_to_be_refined() -> None:
    """Where the guide is the only proposal, no advice names another one."""
    results = {"train_elbo": -80.0, "train_elbo_se": 0.1, "elbo": -90.0, "elbo_se": 0.1, "log_abs_det": 0.0}
    results |= {"k_hat_above_threshold": 0.5, "k_hat_threshold": 0.67, "proposal": "guide"}
    chosen, only = (" ".join(remarks_on_results({**results, "only_guide": only})) for only in (False, True))
    assert "--proposal refined" in chosen and "--guide" in chosen
    assert "above test rows" in only and "--num-samples" in only
    assert "--proposal" not in only and "--guide" not in only
