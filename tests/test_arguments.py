"""A wrong argument of a public constructor or function is one PyrovaeError that says what came, and is never taken."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae._arguments import (
    as_choice,
    as_count,
    as_mapping,
    as_names,
    as_number,
    as_path,
    as_seed,
    as_several,
    as_widths,
)
from pyrovae.data import Split, sprites
from pyrovae.errors import PyrovaeError
from pyrovae.sklearn import VAEDensity, VAETransformer

THING = object()
NAN = math.nan
NO_NUMBER = ("ab", NAN, [1, "a"], {"a": 1}, THING, True)
NUMBER = (*NO_NUMBER, math.inf, -1.0)
SHARE = (*NUMBER, 2.5)
COUNT = (*NUMBER, 2.5, -1, (2,))
WIDTHS = (*NUMBER, 0, -3, 8.0, 10**12, ("a",), (2.5,), (-3,), (0,), (True,), ((4,),), {4})
SHAPE = (*NUMBER, 0, 8.0, 10**12, ("a",), (2.5,), (-3,), (0,), (True,), "")
SIZE = (*SHAPE, (), (4,))
LAYER = ("relu", 5, nn.ReLU(), torch.relu, nn.Linear, int, THING)
FAMILY = ("normal", 5, fam.Normal, torch.distributions.Normal, nn.Identity(), THING)
WORD = ("a word of no meaning", 5, NAN, True, ("a",), {"a": 1}, THING)

# what an argument may not be, by its name, wherever it has this name
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hidden", "channels", "flow_hidden", "levels", "groups", "hidden_layer_sizes"), WIDTHS),
    **dict.fromkeys(("event_shape", "out_shape", "in_shape", "image", "grid"), SHAPE),
    "in_features": (*SHAPE, ()),
    **dict.fromkeys(("width", "size", "num_classes", "latent", "context", "num_words", "length"), SIZE),
    **dict.fromkeys(("num_components", "rank", "total_count", "num_codes", "depth", "copied"), COUNT),
    **dict.fromkeys(("blocks", "cells", "layers", "heads", "transforms", "kernel", "latent_channels"), COUNT),
    **dict.fromkeys(("expansion", "parent"), COUNT),
    **dict.fromkeys(("scale", "floor", "df", "alpha", "rescale", "temperature", "gamma", "rotation", "shift"), NUMBER),
    **dict.fromkeys(("spread", "restart_below", "commitment", "epochs", "start", "end", "max_lr"), NUMBER),
    **dict.fromkeys(("p", "dropout", "most", "momentum", "decay", "ramp", "warmup", "sleep"), SHARE),
    **dict.fromkeys(("centre", "factor", "place"), NO_NUMBER),
    **dict.fromkeys(("num_particles", "steps", "cycles", "locations", "latent_size"), COUNT),
    **dict.fromkeys(("kind", "dispersion", "covariance", "missing"), WORD),
    "activation": LAYER,
    "family": FAMILY,
    "families": (*NUMBER, "", (), (5,)),
}
# modules, which are judged when the pair that they are parts of is run; flags, which are taken by their truth; and tensors
LATER = {
    *("net", "front", "encoder", "distribution", "base", "pose", "prior", "y", "x", "dtype", "pseudo_inputs"),
    *("hard", "learned", "mask"),
    *("angle", "right", "down"),  # of `Moves`, which is what a pose returns
    *("offset", "step", "low", "high"),  # of the columns of `RoundedNormal`, numbers or lists of them
}
NORMAL, NET = fam.Normal(2), pv.nets.MLP(4, 6, hidden=3)
IMAGES = {"in_shape": (1, 8, 8), "out_shape": 2, "channels": 4}
OF_IMAGES = {"in_features": 2, "out_shape": (1, 8, 8), "channels": 4}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mlp": (pv.mlp, {"in_features": 4, "family": NORMAL}),
    "conv": (pv.conv, {"in_features": (8, 8), "family": NORMAL, "channels": 4}),
    "resnet": (pv.resnet, {"in_features": 4, "family": NORMAL}),
    "flow": (pv.flow, {"in_features": 4, "latent": 2, "hidden": 3}),
    "HierarchicalVAE": (pv.HierarchicalVAE.of_levels, {"family": fam.Bernoulli(6), "levels": 2, "hidden": 3}),
    "LadderVAE": (pv.LadderVAE.of_levels, {"family": fam.Bernoulli(6), "levels": 2, "hidden": 3}),
    "DeepMarkovVAE": (pv.DeepMarkovVAE.of_sequences, {"family": NORMAL, "latent": 2, "hidden": 3, "width": 3}),
    "NVAE": (pv.NVAE, {"family": fam.Bernoulli((8, 8)), "channels": 4, "groups": 1}),
    "Trace_ELBO": (lambda num_particles=1: pv.Trace_ELBO(num_particles), {}),
    "IWELBO": (lambda num_particles: pv.IWELBO(num_particles), {"num_particles": 2}),
    "RWS": (pv.RWS, {"num_particles": 2}),
    **{
        f"schedules.{one.__name__}": (one, {})
        for one in (pv.schedules.kl_cycles, pv.schedules.lagging, pv.schedules.cooling)
    },
    "schedules.kl_warmup": (pv.schedules.kl_warmup, {"epochs": 2}),
    "schedules.one_cycle": (pv.schedules.one_cycle, {"max_lr": 0.1}),
    "weights.LowRank": (pv.weights.LowRank, {}),
    "nets.Behind": (pv.nets.Behind, {"front": NET, "net": NET}),
    "nets.BatchNormedHead": (pv.nets.BatchNormedHead, {"net": NET, "gamma": 0.5, "locations": 3}),
    "nets.CausalTransformer": (pv.nets.CausalTransformer, {"num_classes": 3, "length": 2, "width": 4}),
    "nets.ConvEncoder": (pv.nets.ConvEncoder, IMAGES),
    "nets.ResNetEncoder": (pv.nets.ResNetEncoder, IMAGES),
    "nets.ConvDecoder": (pv.nets.ConvDecoder, OF_IMAGES),
    "nets.ResNetDecoder": (pv.nets.ResNetDecoder, OF_IMAGES),
    "nets.GridEncoder": (pv.nets.GridEncoder, {"in_shape": (8, 8), "width": 2, "channels": 4, "cells": 0}),
    "nets.GridDecoder": (pv.nets.GridDecoder, {"width": 2, "out_shape": (8, 8), "channels": 4, "cells": 0}),
    "nets.MLP": (pv.nets.MLP, {"in_features": 4, "out_shape": 2}),
    "nets.ResidualMLP": (pv.nets.ResidualMLP, {"in_features": 4, "out_shape": 2}),
    "nets.Pose": (pv.nets.Pose, {"image": (8, 8)}),
    "nets.Posed": (pv.nets.Posed, {"net": pv.nets.MLP(2, (8, 8)), "pose": pv.nets.Pose((8, 8))}),
    "nets.Upright": (pv.nets.Upright, {"net": NET, "pose": pv.nets.Pose((8, 8))}),
    "nets.Moves": (pv.nets.Moves, dict.fromkeys(("angle", "right", "down", "size"), torch.zeros(1))),
    "nets.one_hot": (pv.nets.one_hot, {"y": torch.zeros(2), "num_classes": 2}),
    "nets.Words": (pv.nets.Words, {"num_words": 5, "width": 2}),
    "priors.Autoregressive": (pv.priors.Autoregressive, {"num_classes": 3, "event_shape": 2, "width": 4}),
    "priors.MixtureOfNormals": (pv.priors.MixtureOfNormals, {"event_shape": 2, "num_components": 2}),
    "families.Columns": (fam.Columns, {"families": [fam.Bernoulli(()), fam.Normal(())]}),
    "families.DiscretizedLogisticMixture": (fam.DiscretizedLogisticMixture, {"event_shape": (1, 2, 2), "levels": 4}),
    "families.LowRankNormal": (fam.LowRankNormal, {"event_shape": 3, "rank": 1}),
}
NUMBERS = {
    **{
        "num_words": 5,
        "num_classes": 3,
        "num_components": 2,
        "total_count": 4,
        "levels": 4,
        "num_codes": 4,
        "width": 2,
    },
    **{"size": 2, "rank": 1, "grid": 2, "in_features": 3, "hidden": 3, "channels": 4, "in_shape": 3, "factor": 2.0},
    **{
        "copied": 2,
        "event_shape": 3,
        "net": NET,
        "family": NORMAL,
        "pseudo_inputs": torch.zeros(2, 4),
        "encoder": pv.mlp(4, NORMAL),
    },
}


def public() -> Iterator[tuple[str, Any]]:
    """The classes and functions of the modules that make up models."""
    for module in (pv.nets, pv.priors, fam):
        home = module.__name__.rpartition(".")[2]
        for name in module.__all__:
            made = getattr(module, name)
            abstract = made in (fam.Elementwise, fam.Family, fam.Vector)
            if callable(made) and inspect.signature(made).parameters and not abstract:
                yield f"{home}.{name}", made


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Those with arguments that could be wrong, and a call of each that works."""
    found = dict(CALLS)
    for name, made in public():
        required = [p.name for p in inspect.signature(made).parameters.values() if p.default is p.empty]
        if name not in found and set(required) <= set(NUMBERS):
            found[name] = made, {argument: NUMBERS[argument] for argument in required}
    return found


def refused(call: Callable[..., Any], given: dict[str, Any], argument: str, wrong: tuple[Any, ...]) -> list[str]:
    """What became of wrong values that were not refused by one clear error."""
    found = []
    for value in wrong:
        try:
            call(**{**given, argument: value})
        except PyrovaeError as error:
            if len(str(error)) < 20:
                found.append(f"{argument}={value!r}: says only {error}")
        except Exception as error:
            found.append(f"{argument}={value!r}: {type(error).__name__} {error}")
        else:
            found.append(f"{argument}={value!r} is taken")
    return found


@pytest.mark.parametrize("name", sorted(set(calls()) - {"nets.Moves"}))
def test_a_wrong_argument_of_a_part_is_one_clear_error(name: str) -> None:
    call, given = calls()[name]
    call(**given)
    wrong = {argument: WRONG[argument] for argument in inspect.signature(call).parameters if argument in WRONG}
    if "VQ" in name:
        del wrong["rotation"]  # a flag
    assert not [one for argument, values in wrong.items() for one in refused(call, given, argument, values)]


def test_every_argument_of_a_part_is_judged() -> None:
    known = calls()
    for name, made in public():
        arguments = set(inspect.signature(made).parameters)
        assert arguments <= set(WRONG) | LATER, f"{name} has an argument of which no test says what it may not be"
        assert name in known or arguments <= LATER, f"no test calls {name}"


def test_an_int_is_one_layer_of_that_width() -> None:
    for one, same in (
        (pv.mlp(4, NORMAL, hidden=5), pv.mlp(4, NORMAL, hidden=(5,))),
        (pv.mlp(4, NORMAL, hidden=np.int64(5)), pv.mlp(4, NORMAL, hidden=np.array([5]))),
        (pv.conv((8, 8), NORMAL, channels=4, hidden=5), pv.conv((8, 8), NORMAL, channels=(4,), hidden=(5,))),
        (pv.conv(2, fam.Bernoulli((8, 8)), channels=4), pv.conv(np.int64(2), fam.Bernoulli((8, 8)), channels=[4])),
        (pv.resnet(4, NORMAL, hidden=5), pv.resnet(4, NORMAL, hidden=[5])),
        (pv.priors.FlowPrior(2, hidden=5), pv.priors.FlowPrior(2, hidden=(5,))),
        (pv.flow(4, 2, hidden=5, flow_hidden=6), pv.flow(4, 2, hidden=(5,), flow_hidden=(6,))),
        (pv.NVAE(fam.Bernoulli((8, 8)), 4, 1), pv.NVAE(fam.Bernoulli((8, 8)), (4,), (1,))),
        (pv.LadderVAE.of_levels(fam.Bernoulli(6), 2, 5), pv.LadderVAE.of_levels(fam.Bernoulli(6), (2,), (5,))),
        (
            pv.HierarchicalVAE.of_levels(fam.Bernoulli(6), 2, 5),
            pv.HierarchicalVAE.of_levels(fam.Bernoulli(6), (2,), (5,)),
        ),
    ):
        shapes, others = ({name: tuple(p.shape) for name, p in each.named_parameters()} for each in (one, same))
        assert shapes == others and len(shapes) > 2
    assert pv.nets.MLP(4, 2, hidden=5).hidden == (5,)  # as it stands in what is saved


@pytest.fixture(scope="module")
def fitted() -> pv.Fit:
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(4), hidden=3), pv.mlp(4, NORMAL, hidden=3))
    return pv.fit(vae, ROWS, epochs=0, engine="eager", progress=False, seed=0)


ROWS = torch.zeros(12, 4)
DRAWS = {"num_samples": COUNT, "num_particles": COUNT, "moves": COUNT}
QUESTIONS: dict[Callable[..., Any], dict[str, tuple[Any, ...]]] = {
    pv.importance: {"num_samples": COUNT, "proposal": WORD},
    pv.posterior: DRAWS,
    pv.impute: DRAWS,
    pv.to_arviz: {
        "num_samples": COUNT,
        "groups": (5, "nothing"),
        "dims": (5, "ab"),
        "coords": (5, "ab"),
        "sample_dims": (5, "ab"),
    },
    pv.criticise: {
        "num_rows": COUNT,
        "num_samples": COUNT,
        "only": (5, "nothing", (5,)),
        "also": (5, "ab"),
        "seed": ("ab", 2.5),
    },
    pv.ais: {"num_chains": COUNT, "num_temperatures": COUNT, "num_leapfrog": COUNT, "start": WORD},
    pv.harmonic: {"num_samples": COUNT, "num_chains": (*COUNT, 1)},
    pv.quadrature: {"num_points": (*COUNT, 10)},
    pv.refine: {"num_samples": (*COUNT, 1)},
    pv.entry_densities: {"num_samples": COUNT, "num_particles": COUNT},
    pv.encode: {"num_samples": COUNT, "seed": ("ab", 2.5, True)},
    pv.swag: {"epochs": (*COUNT, 1), "rank": (*COUNT, 1), "learning_rate": NUMBER},
}


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_a_wrong_argument_of_a_question_is_one_clear_error(question: Callable[..., Any], fitted: pv.Fit) -> None:
    given = {"fitted": fitted, "data": ROWS}
    names = list(inspect.signature(question).parameters)[:2]
    for argument, wrong in QUESTIONS[question].items():
        assert not refused(question, dict(zip(names, given.values())), argument, wrong)


OPTIONS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("epochs", "batch_size", "patience", "steps"), COUNT),
    **dict.fromkeys(("learning_rate", "clip_norm"), NUMBER),
    **dict.fromkeys(("transform", "penalty", "optimizer"), (5, "ab", ())),
    **dict.fromkeys(("group_size", "group_weight", "info"), (5, "ab", (1,))),
    "checkpoint": (5, True, (1,)),
    "device": (2.5, True, (), "no such device"),
    "engine": (*WORD, []),
    "on_nan": WORD,
    "seed": (2.5, True, "ab"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_wrong_option_of_a_fit_is_one_clear_error(option: str, fitted: pv.Fit) -> None:
    given = {"pair": fitted.pair, "data": ROWS, "progress": False}
    if option != "epochs":
        given["epochs"] = 0
    assert not refused(pv.fit, given, option, OPTIONS[option])


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        ("lr", "use learning_rate"),
        ("n_epochs", "use epochs"),
        ("random_state", "use seed"),
        ("val_data", "use validation"),
        ("verbose", "use progress"),
        ("weight_decay", "use optimizer=.*AdamW"),
        ("bath_size", "did you mean batch_size"),
        ("zzz", "those that it has are .*learning_rate"),
    ],
)
def test_an_unknown_option_of_a_fit_says_which_one_is_meant(option: str, cure: str, fitted: pv.Fit) -> None:
    with pytest.raises(pv.OptionError, match=f"pv.fit has no option '{option}'.*{cure}"):
        pv.fit(fitted.pair, ROWS, **{option: 1})
    with pytest.raises(pv.OptionError, match=f"whose options swag takes, has no option '{option}'.*{cure}"):
        pv.swag(fitted, ROWS, epochs=2, **{option: 1})
    assert "learning_rate" in inspect.signature(pv.fit).parameters  # which tools and people read


@pytest.mark.parametrize(
    ("call", "given", "wrong"),
    [
        (
            Split,
            {"num_rows": 9},
            {"num_rows": COUNT, "test_fraction": SHARE, "validation_fraction": SHARE, "seed": COUNT},
        ),
        (sprites, {"num_rows": 2, "size": 8}, {"num_rows": COUNT, "size": (*COUNT, 10**12), "seed": COUNT}),
        (pv.benjamini_hochberg, {"p_values": [0.5], "rate": 0.1}, {"p_values": ("ab", THING), "rate": SHARE}),
        (
            pv.conformal_p_values,
            {"calibration": [0.5], "scores": 0.1},
            {"calibration": ("ab", THING), "scores": ("ab", THING)},
        ),
        (
            pv.pool,
            {"estimates": [1.0, 2.0], "variances": [1.0, 1.0]},
            {"estimates": (5, "ab", THING), "df": (*NO_NUMBER, -1.0)},
        ),
        (pv.corruptions.Blur, {"width": 1.0, "sd": 1.0}, {"width": NUMBER, "sd": NO_NUMBER}),
        (pv.corruptions.Downsample, {"factor": 2}, {"factor": COUNT, "sd": NO_NUMBER}),
        (pv.corruptions.Clip, {"low": 0.0}, {"low": NO_NUMBER, "high": NO_NUMBER}),
        (pv.k_hat_threshold, {"num_samples": 9}, {"num_samples": COUNT}),
        (
            pv.calibration.share_interval,
            {"share": 0.5, "total": 4},
            {"share": SHARE, "total": NO_NUMBER, "level": SHARE},
        ),
        (
            pv.plots.images,
            {"x": torch.zeros(2, 4), "image_shape": (2, 2)},
            {"columns": COUNT, "image_shape": WIDTHS, "vmax": NUMBER},
        ),
        (pv.tracking.JSONLines, {"path": "log.jsonl"}, {"path": (5, True, ())}),
        (pv.tables.infer, {}, {"table": (5, "rows.csv", np.zeros((3, 2)))}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_wrong_argument_of_a_function_is_one_clear_error(
    call: Callable[..., Any], given: dict[str, Any], wrong: dict[str, tuple[Any, ...]]
) -> None:
    assert not [one for argument, values in wrong.items() for one in refused(call, given, argument, values)]


@pytest.mark.parametrize("estimator", [VAETransformer, VAEDensity])
def test_a_wrong_option_of_an_estimator_is_one_clear_error(estimator: Callable[..., Any]) -> None:
    wrong = {
        **dict.fromkeys(("n_components", "max_iter", "batch_size", "n_draws", "n_iter_no_change"), COUNT),
        **{"hidden_layer_sizes": (*WIDTHS, None), "learning_rate_init": NUMBER, "validation_fraction": SHARE},
        "random_state": ("ab", -1, 2.5, THING),
    }
    rows = np.zeros((12, 3))

    def fit(**options: Any) -> None:
        estimator(**options).fit(rows)

    assert not [one for argument, values in wrong.items() for one in refused(fit, {}, argument, values)]


def test_what_is_right_is_taken_as_pythons_own() -> None:
    whole = as_count("n", np.int32(3))
    assert (whole, type(whole)) == (3, int) and as_seed(np.uint8(7)) == 7 and as_seed(-(2**63)) == -(2**63)
    assert as_number("x", np.float32(0.5), above=0) == 0.5 and as_number("x", torch.tensor(2.0)) == 2.0
    assert as_widths("hidden", []) == () and as_widths("hidden", torch.tensor([4, 2])) == (4, 2)
    assert as_choice("kind", "a", {"a": 1}) == "a" and as_mapping("given", None, "values") == {}
    assert (
        as_names("only", "z") == ("z",)
        and as_names("only", None) is None
        and as_several("parts", (1, 2), "parts") == [1, 2]
    )
    assert as_path("to", "rows.npy").name == "rows.npy"
    for call in (
        lambda: as_number("x", 10**400),
        lambda: as_widths("hidden", np.array(2.5)),
        lambda: as_widths("hidden", [], some=True),
    ):
        with pytest.raises(pv.OptionError):
            call()
