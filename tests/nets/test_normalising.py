"""Batch normalisation in hidden layers: torch's own where nothing is enumerated, and weighted by q(y|x) where y is."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import CLASSES, LATENT, SMALL, binary, labels
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae._weighing import Enumerated

NORMED: dict[str, Any] = {**SMALL, "activation": pv.nets.BatchNormed()}


def layer(net: nn.Module) -> Any:
    """The first batch normalisation of a network."""
    return next(part for part in net.modules() if hasattr(part, "running_mean"))


def sdgm() -> pv.SDGM:
    torch.manual_seed(0)
    return pv.SDGM(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(LATENT),
        auxiliary=pv.mlp((LATENT, CLASSES), fam.Normal(2), **NORMED),
        likelihood=pv.mlp((2, LATENT, CLASSES), fam.Bernoulli(6), **NORMED),
        auxiliary_encoder=pv.mlp(6, fam.Normal(2), **NORMED),
        classifier=pv.mlp((2, 6), fam.Categorical((), CLASSES), **NORMED),
        encoder=pv.mlp((2, 6, CLASSES), fam.Normal(LATENT), **NORMED),
        code=pv.nets.OneHot(CLASSES),
        alpha=2.0,
    )


def ssvae() -> pv.SSVAE:
    torch.manual_seed(0)
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(CLASSES),
        prior=pv.priors.StandardNormal(LATENT),
        likelihood=pv.mlp((LATENT, CLASSES), fam.Bernoulli(6), **NORMED),
        encoder=pv.mlp((6, CLASSES), fam.Normal(LATENT), **NORMED),
        classifier=pv.mlp(6, fam.Categorical((), CLASSES), **NORMED),
        code=pv.nets.OneHot(CLASSES),
        alpha=2.0,
    )


@pytest.fixture(scope="module")
def fitted() -> pv.Fit:
    data = {"x": binary(), "y": labels()}
    return pv.fit(sdgm(), data, epochs=2, batch_size=20, validation=0.2, engine="eager", progress=False, seed=0)


# --- the layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(7,), (3, 7), (2, 1, 5)])
def test_is_that_of_torch_where_nothing_is_enumerated(batch: tuple[int, ...]) -> None:
    """Values, gradients and running statistics, in training and then in evaluation, with g and b other than 1 and 0."""
    torch.manual_seed(0)
    ours, theirs = layer(pv.nets.BatchNormed(momentum=0.3)(4)).double(), nn.BatchNorm1d(4, momentum=0.3).double()
    with torch.no_grad():
        ours.weight.normal_(), ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for _ in range(3):
        u = (torch.randn(*batch, 4, dtype=torch.float64) * 3 + 1).requires_grad_()
        v = u.detach().flatten(0, -2).requires_grad_()
        one, two = ours(u), theirs(v)
        torch.testing.assert_close(one.flatten(0, -2), two)
        weights = torch.randn_like(two)
        found = torch.autograd.grad((one.flatten(0, -2) * weights).sum(), [u, ours.weight, ours.bias])
        wanted = torch.autograd.grad((two * weights).sum(), [v, theirs.weight, theirs.bias])
        torch.testing.assert_close([found[0].flatten(0, -2), *found[1:]], list(wanted))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours.eval()(u).flatten(0, -2), theirs.eval()(v))
    assert torch.equal(ours.running_mean, before)


def test_weights_are_probabilities_whatever_a_value_depends_on() -> None:
    """Two enumerated sites, y2 given y1, and a layer that sees y2 alone, which then has its marginal probability."""
    torch.manual_seed(0)
    first, second = torch.randn(2, 5).log_softmax(0), torch.randn(3, 2, 5).log_softmax(0)
    values = Enumerated()
    values.add(-2, 2, lambda: first, {-1: 5})
    values.add(-3, 3, lambda: second, {-1: 5})
    joint = first.exp() * second.exp()  # (3, 2, 5)
    for batch, wanted in (
        ((3, 2, 5), joint),
        ((3, 1, 5), joint.sum(1, keepdim=True)),
        ((2, 5), first.exp()),
    ):
        found, rows = values.weights(torch.Size(batch))
        assert found is not None and rows == 5
        torch.testing.assert_close(found, wanted / 5)
    found, rows = values.weights(torch.Size((3, 1, 1)))  # of what is the same for all rows
    assert found is not None and rows == 5
    torch.testing.assert_close(found[:, 0, 0], joint.sum(1).mean(-1))
    assert values.weights(torch.Size((1, 1, 5))) == (None, 5) and values.weights(torch.Size((5,))) == (None, 5)
    assert values.weights(torch.Size((4, 6))) == (None, 24)  # no dimension of values, but some of the network's own


def test_dimensions_of_the_network_itself_are_told_from_those_of_values() -> None:
    """A network that runs along the four steps of each row's sequence; rows are not values where there are as many of both."""
    q = torch.randn(3, 3).log_softmax(0)
    values = Enumerated()
    values.add(-2, 3, lambda: q, {-1: 3})
    found, rows = values.weights(torch.Size((3, 3, 4)))
    assert found is not None and rows == 12
    torch.testing.assert_close(found, q.exp()[..., None].expand(3, 3, 4) / 12)
    assert values.weights(torch.Size((3, 4))) == (None, 12)  # rows and steps
    found, rows = values.weights(torch.Size((3, 1, 4)))
    assert found is not None and rows == 12
    torch.testing.assert_close(found, q.exp().mean(1)[:, None, None].expand(3, 1, 4) / 4)


def test_mistakes_are_named() -> None:
    wrong: Any
    for wrong in (0.0, 1.5, float("nan"), True, None, "0.1"):
        with pytest.raises(pv.OptionError, match="momentum of BatchNormed must be a number above 0 and at most 1"):
            pv.nets.BatchNormed(momentum=wrong)
    with pytest.raises(pv.OptionError, match="does not say how wide"):
        pv.nets.ConvEncoder((1, 8, 8), 3, activation=pv.nets.BatchNormed())
    with pytest.raises(pv.OptionError, match="does not say how wide"):  # the last dimension of an image has no units
        pv.nets.Activated(pv.nets.ConvDecoder(2, (1, 8, 8)), pv.nets.BatchNormed())
    for wrong, words in (
        (pv.nets.BatchNormed, "makes BatchNormed: write it with parentheses"),
        (nn.ReLU(), "this ReLU is"),
    ):
        with pytest.raises(pv.OptionError, match=words):
            pv.nets.MLP(4, 2, (8,), wrong)
    with pytest.raises(pv.ShapeError, match="Expected more than 1 row"):
        pv.nets.MLP(4, 2, (8,), pv.nets.BatchNormed())(torch.zeros(1, 4))
    with pytest.raises(pv.PairError, match="A step takes 1 of the 12 rows that have x, y"):
        pv.fit(ssvae(), {"x": binary(), "y": labels()}, epochs=1, group_size={"y": 1}, engine="eager", progress=False)


@pytest.mark.parametrize("kind", [pv.nets.MLP, pv.nets.ResidualMLP])
def test_every_hidden_layer_has_its_width(kind: Any) -> None:
    net = pv.nets.Activated(kind((4, 3), 6, (8, 5), pv.nets.BatchNormed()), pv.nets.BatchNormed(nn.Tanh))
    widths = [len(part.running_mean) for part in net.modules() if hasattr(part, "running_mean")]
    assert widths == ([8, 5, 6] if kind is pv.nets.MLP else [8, 8, 8, 5, 5, 5, 6])
    assert net(torch.randn(9, 4), torch.randn(9, 3)).abs().max() < 1


# --- in a pair -------------------------------------------------------------------------------------------------------


class Summed(nn.Module):
    """y only in the model, which is averaged with p(y) in the statistics of what decodes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pv.mlp(CLASSES, fam.Bernoulli(6), **NORMED)
        self.probs = torch.tensor([0.7, 0.2, 0.1])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(self.probs), infer={"enumerate": "parallel"})
            pyro.sample("x", self.net(pv.nets.one_hot(y, CLASSES)), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def moments(seen: Tensor, weights: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of the units, weighted, by hand."""
    shares = weights.expand(seen.shape[:-1])[..., None]
    shares = shares / shares.sum()
    dims = list(range(seen.dim() - 1))
    mean = (shares * seen).sum(dims)
    return mean, (shares * (seen - mean).square()).sum(dims) * rows / (rows - 1)


@pytest.mark.parametrize("particles", [1, 3])
def test_enumerated_values_count_as_far_as_they_are_probable(particles: int) -> None:
    """The decoder's running statistics after one pass, from its input and q(y|a,x) of each particle."""
    pair, x = sdgm().train(), binary(10)
    with torch.no_grad():
        for p in pair.classifier.parameters():
            p.mul_(4.0)
    normed = layer(pair.likelihood)
    seen: list[Tensor] = []
    normed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    run = pv.terms(pair, {"x": x}, particles, plate_nesting=1)
    (u,) = seen
    q = run.sites["y"].q
    assert q is not None and u.shape[0] == CLASSES
    probabilities = q.log_prob.detach().exp()
    mean, var = moments(u, probabilities, 10 * particles)
    torch.testing.assert_close(normed.running_mean, 0.1 * mean)
    torch.testing.assert_close(normed.running_var, 0.9 + 0.1 * var)
    plain, _ = moments(u, torch.ones_like(probabilities), 10)
    assert (plain - mean).abs().max() > 0.01  # where all classes count alike


class Stepwise(nn.Module):
    """Sequences of four numbers, each step of which is decoded, and encoded, by a network of its own rows."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = pv.mlp(4, fam.Categorical((), CLASSES), **SMALL)
        self.each, self.decoder = (pv.nets.MLP(size, 1, (8,), pv.nets.BatchNormed()) for size in (1, CLASSES))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(CLASSES)))
            code = pv.nets.one_hot(y, CLASSES)[..., None, :].expand(*y.shape[:-1], len(x), 4, CLASSES)
            mean = self.decoder(code + self.each(x[..., None])).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", self.classifier(x), infer={"enumerate": "parallel"})


@pytest.mark.parametrize("rows", [CLASSES, 5])
def test_steps_of_a_sequence_are_weighted_as_their_row(rows: int) -> None:
    torch.manual_seed(0)
    pair = Stepwise().train()
    seen: dict[str, Tensor] = {}
    for name in ("each", "decoder"):
        layer(getattr(pair, name)).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].detach())
        )
    run = pv.terms(pair, {"x": torch.randn(rows, 4)}, plate_nesting=1)
    q = run.sites["y"].q
    assert q is not None and seen["decoder"].shape == (CLASSES, rows, 4, 8) and seen["each"].shape == (rows, 4, 8)
    mean, var = moments(seen["decoder"], q.log_prob.detach().exp()[..., None], rows * 4)
    torch.testing.assert_close(layer(pair.decoder).running_mean, 0.1 * mean)
    torch.testing.assert_close(layer(pair.decoder).running_var, 0.9 + 0.1 * var)
    torch.testing.assert_close(layer(pair.each).running_mean, 0.1 * seen["each"].mean((0, 1)))


def test_values_that_only_the_model_enumerates_have_its_probabilities() -> None:
    pair = Summed().train()
    normed = layer(pair.net)
    seen: list[Tensor] = []
    normed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    pv.terms(pair, {"x": binary(4)}, plate_nesting=1)
    (u,) = seen
    assert u.shape == (CLASSES, 1, 8)  # the same for all rows
    torch.testing.assert_close(normed.running_mean, 0.1 * (pair.probs @ u[:, 0]))


def test_nothing_moves_in_evaluation_and_rows_stand_alone(fitted: pv.Fit) -> None:
    pair: Any = fitted.pair
    assert pair.training
    before = {name: value.clone() for name, value in pair.named_buffers() if "running" in name}
    assert len(before) == 10 and all((value != 0).any() and (value != 1).any() for value in before.values())
    x = binary(6)
    pv.check_pair(pair, {"x": x})
    assert pv.importance(fitted, x, num_samples=3, proposal="guide").log_likelihood.isfinite().all()
    pv.classify(fitted, x, num_samples=2)
    with fitted.scope():
        a, z = torch.randn(3, 6, 2), torch.randn(CLASSES, 3, 6, LATENT)
        code = torch.eye(CLASSES)[:, None, None]
        whole = pair.likelihood(a, z, code).mean
        torch.testing.assert_close(whole[1, 2, 4], pair.likelihood(a[2, 4], z[1, 2, 4], code[1, 0, 0]).mean)
    assert all(torch.equal(dict(pair.named_buffers())[name], value) for name, value in before.items())


@pytest.mark.auto_engine
def test_traced_steps_move_the_same_statistics() -> None:
    """Labelled and unlabelled rows, two particles: losses, weights and running statistics of both engines in float64."""
    found = []
    for engine in ("eager", "traced"):
        pair = ssvae().double()
        fitted = pv.fit(
            pair,
            {"x": binary().double(), "y": labels()},
            epochs=2,
            batch_size=14,
            learning_rate=0.01,
            loss=pv.Trace_ELBO(num_particles=2),
            engine=engine,
            progress=False,
            seed=0,
        )
        assert "engine_notes" not in fitted.settings
        found.append(([row["elbo"] for row in fitted.history], pair.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-7, atol=1e-9)
    assert (found[0][1]["likelihood.net.rest.0.0.running_mean"] != 0).all()


def test_a_saved_run_keeps_the_statistics(fitted: pv.Fit, tmp_path: Any) -> None:
    again = pv.load(pv.save(fitted, tmp_path / "run"))
    kept: Any = fitted.pair
    loaded: Any = again.pair
    for before, after in zip(kept.buffers(), loaded.buffers(), strict=True):
        assert torch.equal(before, after)
    x = binary()
    assert torch.equal(pv.encode(fitted, x, site="a"), pv.encode(again, x, site="a"))
