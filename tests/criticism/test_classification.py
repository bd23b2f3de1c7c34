"""p(y | x): against closed forms, against log-likelihoods of given labels, and where it must say no."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.pairs import ENUMERATED, PARALLEL, Row, described, unfitted
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.batching import chunks as chunking
from pyrovae.criticism import classification
from pyrovae.criticism import importance as importance_module
from pyrovae.fitted.fitted import FittedGroup
from pyrovae.objectives.weights import each_log_weight, guide_probabilities
from pyrovae.pair.handlers import PARTICLE_PLATE
from pyrovae.pair.layout import describe
from pyrovae.pair.parameters import param_scope

# Standard errors: false alarms 7e-6 a number compared, some 1e-3 for all comparisons below together.
BOUND = 4.5
C, D, L = 3, 6, 2


class Blobs(nn.Module):
    """y ~ Categorical, z | y ~ N(c_y, 1), x | z ~ N(z, 1). Guide: a linear q(y | x), and q(z | x, y) as told; or y only in the
    model, with q(z | x) a wide Normal."""

    def __init__(self, side: str = "guide", shift: float = 0.0, scale: float = 0.5**0.5) -> None:
        super().__init__()
        self.side, self.shift, self.scale = side, shift, scale
        self.logits = nn.Parameter(torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64))
        self.centres = nn.Parameter(torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64))
        self.classify = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=PARALLEL if self.side == "model" else {})
            z = pyro.sample("z", dist.Normal(self.centres[y], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.side == "model":
                pyro.sample("z", dist.Normal(x / 2, 1.5))
                return
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * self.classify), infer=PARALLEL)
            pyro.sample("z", dist.Normal((self.centres[y] + x) / 2 + self.shift, self.scale))

    def posterior(self, x: Tensor) -> Tensor:
        fit = dist.Normal(self.centres, 2**0.5).log_prob(x[:, None])
        return (self.logits.log_softmax(-1) + fit).softmax(-1).detach()


def rows(n: int = 40) -> Tensor:
    return 2 * torch.randn(n, dtype=torch.float64)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 7, 40])
def test_exact_where_the_guide_of_z_is(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constant weights: Bayes' rule comes out whatever q(y | x) is, with no error, and in chunks of any size."""
    if chunk is not None:
        monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", chunk)
        monkeypatch.setattr(importance_module, "WEIGHT_ELEMENTS", 100 * chunk)
    pair, x = Blobs(), rows()
    found = pv.classify(unfitted(pair, x), x, num_samples=5)
    wanted = pair.posterior(x)
    torch.testing.assert_close(found.joint, wanted, rtol=0, atol=1e-10)
    assert found.standard_error.max() < 1e-10
    logits = (x[:, None] * pair.classify).detach()
    torch.testing.assert_close(found.guide, logits.softmax(-1), rtol=0, atol=1e-12)
    assert (found.guide - found.joint).abs().max() > 0.1
    assert torch.equal(found.predicted, wanted.argmax(-1)) and found.site == "y"
    torch.testing.assert_close(found.entropy, dist.Categorical(probs=wanted).entropy(), rtol=0, atol=1e-9)


def test_guide_of_z_that_is_not_exact() -> None:
    pair, x = Blobs(shift=0.3, scale=1.0), rows()
    fitted, wanted = unfitted(pair, x), pair.posterior(x)
    found = pv.classify(fitted, x, num_samples=4000)
    assert ((found.joint - wanted).abs() < BOUND * found.standard_error + 1e-3).all()
    assert 1e-5 < found.standard_error.mean() < 0.02
    torch.testing.assert_close(found.joint.sum(-1), torch.ones(40, dtype=torch.float64))


@pytest.mark.slow
def test_standard_error_is_the_spread_of_repeated_estimates() -> None:
    # 60 repetitions: the sd of an sd is 9 %; over 40 rows' mean far less, but for rows of heavy tails
    pair, x = Blobs(shift=0.2, scale=1.0), rows()
    fitted = unfitted(pair, x)
    runs = [pv.classify(fitted, x, num_samples=400, seed=s) for s in range(60)]
    spread = torch.stack([r.joint for r in runs]).std(0)
    said = torch.stack([r.standard_error for r in runs]).mean(0)
    assert 0.85 < (spread.mean() / said.mean()).item() < 1.15


def test_class_that_only_the_model_has() -> None:
    pair, x = Blobs("model"), rows()
    found = pv.classify(unfitted(pair, x), x, num_samples=4000)
    assert ((found.joint - pair.posterior(x)).abs() < BOUND * found.standard_error + 1e-3).all()
    # E_q[p(y | z)], by quadrature: p(y | x, z) = p(y | z) here
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    resp = (pair.logits.log_softmax(-1) + dist.Normal(pair.centres, 1.0).log_prob(grid[:, None])).softmax(-1)
    q = dist.Normal(x[:, None] / 2, 1.5).log_prob(grid).exp()
    wanted, second = ((q[..., None] * r).sum(1).detach() * (grid[1] - grid[0]) for r in (resp, resp**2))
    error = ((second - wanted**2).clamp_min(0) / 4000).sqrt()
    assert ((found.guide - wanted).abs() < BOUND * error + 1e-6).all()


def test_one_draw_has_no_error_to_tell() -> None:
    pair, x = Blobs(), rows(3)
    found = pv.classify(unfitted(pair, x), x, num_samples=1)
    assert torch.isnan(found.standard_error).all() and torch.isfinite(found.joint).all()


def test_seed() -> None:
    pair, x = Blobs(shift=0.3), rows(5)
    fitted, before = unfitted(pair, x), torch.get_rng_state()
    one, two, other = (pv.classify(fitted, x, seed=s).joint for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


# --- log_weights(keep=...) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ENUMERATED, ids=lambda row: row.name)
@pytest.mark.parametrize("particles", [1, 3])
def test_kept_values_sum_to_the_whole(row: Row, particles: int) -> None:
    with param_scope({}):
        pair, batch = row.build()
        layout = described(pair, batch)
        run = pv.terms(pair, batch, particles, layout=layout)
        whole = pv.log_weights(run)
        for name in run.enum_dims.values():
            term = run.sites[name]
            if {plate for plate, _ in term.either.plates} - {PARTICLE_PLATE} != {"data"}:
                with pytest.raises(pv.PairError, match="one value for each row"):
                    pv.log_weights(run, keep=name)
                if term.q is not None and not term.local:
                    each = each_log_weight(run, name)
                    torch.testing.assert_close(each.logsumexp(0), whole, rtol=1e-12, atol=1e-12)
                continue
            kept, q = pv.log_weights(run, keep=name), guide_probabilities(run, name)
            assert kept.shape == q.shape == (len(term.either.fn.enumerate_support(expand=False)), *whole.shape)
            torch.testing.assert_close(kept.logsumexp(0), whole, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(q.sum(0), torch.ones_like(whole), rtol=1e-12, atol=0)
            assert kept.std(0).min() > 1e-3  # values are not alike


def test_keep_names_an_enumerated_site() -> None:
    run = pv.terms(Blobs(), {"x": rows(4)})
    with pytest.raises(pv.PairError, match=r"'z' must be an enumerated site.*'y'"):
        pv.log_weights(run, keep="z")


# --- the graphs ------------------------------------------------------------------------------------------------------


def parts() -> dict[str, Any]:
    return {"prior": pv.priors.StandardNormal(L), "code": pv.nets.OneHot(C)}


def label_prior() -> Any:
    return dist.Categorical(logits=torch.tensor([0.3, 0.0, -0.3]))


def classifier(*inputs: int) -> nn.Module:
    return pv.mlp(inputs if len(inputs) > 1 else inputs[0], fam.Categorical((), C), hidden=(8,))


def ssvae() -> pv.SSVAE:
    return pv.SSVAE(
        label_prior(),
        likelihood=pv.mlp((L, C), fam.Bernoulli(D), hidden=(8,)),
        encoder=pv.mlp((D, C), fam.Normal(L), hidden=(8,)),
        classifier=classifier(D),
        **parts(),
    )


def gmvae() -> pv.GMVAE:
    return pv.GMVAE(
        label_prior(),
        prior=pv.mlp(C, fam.Normal(L), hidden=()),
        likelihood=pv.mlp(L, fam.Bernoulli(D), hidden=(8,)),
        encoder=pv.mlp((D, C), fam.Normal(L), hidden=(8,)),
        classifier=classifier(D),
        code=pv.nets.OneHot(C),
    )


def jointvae() -> pv.JointVAE:
    return pv.JointVAE(
        label_prior(),
        likelihood=pv.mlp((L, C), fam.Bernoulli(D), hidden=(8,)),
        encoder=pv.mlp(D, fam.Normal(L), hidden=(8,)),
        classifier=classifier(D),
        **parts(),
    )


def adgm() -> pv.ADGM:
    return pv.ADGM(
        label_prior(),
        likelihood=pv.mlp((L, C), fam.Bernoulli(D), hidden=(8,)),
        auxiliary=pv.mlp((D, L, C), fam.Normal(L), hidden=(8,)),
        auxiliary_encoder=pv.mlp(D, fam.Normal(L), hidden=(8,)),
        classifier=classifier(L, D),
        encoder=pv.mlp((L, D, C), fam.Normal(L), hidden=(8,)),
        **parts(),
    )


def vade() -> pv.VaDE:
    return pv.VaDE(
        label_prior(),
        prior=pv.mlp(C, fam.Normal(L), hidden=()),
        likelihood=pv.mlp(L, fam.Bernoulli(D), hidden=(8,)),
        encoder=pv.mlp(D, fam.Normal(L), hidden=(8,)),
        code=pv.nets.OneHot(C),
    )


def stretched(make: Callable[[], nn.Module], factor: float = 3.0) -> nn.Module:
    """Weights of such a size that classes, codes and data depend on one another."""
    pair = make()
    with torch.no_grad():
        for p in pair.parameters():
            if p.dim() > 1:
                p.mul_(factor)
    return pair


def wide(pair: nn.Module) -> nn.Module:
    """A guide that hardly looks at the data, and covers what it might miss: no heavy tails among the weights."""
    with torch.no_grad():
        for name, p in pair.named_parameters():
            if "encoder" in name or "auxiliary" in name:
                p.mul_(0.2)
            if "encoder" in name and name.endswith("rest.1.bias"):
                p[L:] = 1.0  # of the scale
    return pair


def binary(n: int = 30) -> Tensor:
    return torch.bernoulli(torch.full((n, D), 0.5))


@pytest.mark.parametrize("make", [ssvae, gmvae, jointvae])
def test_guide_is_the_classifier(make: Callable[[], nn.Module]) -> None:
    pair, x = stretched(make), binary()
    found = pv.classify(unfitted(pair, x), x, num_samples=20)
    with torch.no_grad():
        wanted = pair.classifier(x).logits.softmax(-1).double()
    torch.testing.assert_close(found.guide, wanted, rtol=0, atol=1e-6)
    assert wanted.std(0).min() > 0.01 and found.joint.shape == (30, C)


def test_guide_is_averaged_over_what_is_drawn_before() -> None:
    """ADGM: q(y | x) = E_q(a|x)[q(y | a, x)]."""
    pair, x = stretched(adgm), binary()
    found = pv.classify(unfitted(pair, x), x, num_samples=2000)
    with torch.no_grad():
        a = pair.auxiliary_encoder(x).sample((20_000,))
        each = pair.classifier(a, x.expand(20_000, -1, -1)).logits.softmax(-1).double()
    error = each.std(0) * (1 / 2000 + 1 / 20_000) ** 0.5
    assert ((found.guide - each.mean(0)).abs() < BOUND * error + 1e-6).all()
    assert error.max() > 1e-4


def test_vade_gives_the_responsibilities() -> None:
    pair, x = stretched(vade), binary()
    found = pv.classify(unfitted(pair, x), x, num_samples=2000)
    with torch.no_grad():
        z = pair.encoder(x).sample((20_000,))
        code = torch.eye(C)[:, None, None]
        log_p = label_prior().logits[:, None, None] + pair.prior(code).log_prob(z)
        each = log_p.softmax(0).double()
    error = each.std(1) * (1 / 2000 + 1 / 20_000) ** 0.5
    assert ((found.guide.T - each.mean(1)).abs() < BOUND * error + 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [ssvae, adgm])
def test_bayes_rule_over_given_labels(make: Callable[[], nn.Module]) -> None:
    """log p(x, y = c) of `log_likelihood`, label by label, makes the same posterior; other draws, so within their errors."""
    pair, x = wide(stretched(make, 1.5)), binary()
    fitted = unfitted(pair, x)
    found = pv.classify(fitted, x, num_samples=4000)
    given = [pv.importance(fitted, {"x": x, "y": torch.full((30,), c)}, 4000, seed=1) for c in range(C)]
    log_p, error = (torch.stack(v, 1) for v in zip(*[(g.log_likelihood, g.standard_error) for g in given]))
    p = log_p.softmax(-1)
    # d p_c / d log p(x, j) = p_c (1[c = j] - p_j)
    slopes = p[:, :, None] * (torch.eye(C) - p[:, None])
    total = ((slopes * error[:, None]).square().sum(-1) + found.standard_error**2).sqrt()
    assert ((found.joint - p).abs() < BOUND * total + 1e-3).all()
    assert total.mean() < 0.01 and p.std(0).min() > 0.02
    assert (found.joint - found.guide).abs().max() > 0.05  # the classifier was never trained


def test_labels_in_the_data_are_not_looked_at() -> None:
    pair, x = stretched(ssvae), binary()
    fitted = unfitted(pair, {"x": x, "y": torch.arange(30) % C})
    alone = pv.classify(fitted, x, num_samples=10)
    for y in (torch.arange(30) % C, torch.full((30,), -1), torch.full((30,), 7)):
        found = pv.classify(fitted, {"x": x, "y": y}, num_samples=10)
        assert torch.equal(found.joint, alone.joint) and torch.equal(found.guide, alone.guide)


def test_classifier_weight_does_not_count() -> None:
    pair, x = stretched(ssvae), binary()
    fitted = unfitted(pair, x)
    before = pv.classify(fitted, x).joint
    pair.alpha = 1.0
    assert torch.equal(before, pv.classify(fitted, x).joint)


# --- other pairs -----------------------------------------------------------------------------------------------------


class TwoLabels(nn.Module):
    """Two discrete sites, each observed where it is known, and a covariate that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[0.0, 1.0, 3.0], [5.0, 7.0, 7.5]]))
        self.link = nn.Parameter(torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.5, 1.0]]))

    def model(self, x: Tensor, s: Tensor | None = None, y: Tensor | None = None, t: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.Bernoulli(torch.tensor(0.4)), obs=s)
            y = pyro.sample("y", dist.Categorical(logits=self.link[s.long()]), obs=y)
            shift = 0.0 if t is None else t
            pyro.sample("x", dist.Normal(self.loc[s.long(), y] + shift, 1.0), obs=x)

    def guide(self, x: Tensor, s: Tensor | None = None, y: Tensor | None = None, t: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if s is None:
                s = pyro.sample("s", dist.Bernoulli(logits=x - 4), infer=PARALLEL)
            if y is None:
                pyro.sample("y", dist.Categorical(logits=self.link[s.long()]), infer=PARALLEL)

    def table(self, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """log p(s, y, x): (N, 2, 3)."""
        log_s = torch.tensor([0.6, 0.4]).log()[:, None]
        fit = dist.Normal(self.loc, 1.0).log_prob((x - shift)[:, None, None])
        return (log_s + self.link.log_softmax(-1) + fit).detach().double()


def test_other_arguments_stay() -> None:
    torch.manual_seed(1)
    pair, x = TwoLabels(), 4 * torch.rand(20)
    s, y, t = torch.arange(20) % 2, torch.arange(20) % 3, torch.randn(20)
    fitted = unfitted(pair, x)
    table = pair.table(x)
    for site, dims in (("s", 2), ("y", 1)):
        found = pv.classify(fitted, x, site=site, num_samples=2)
        torch.testing.assert_close(found.joint, table.logsumexp(dims).softmax(-1), rtol=0, atol=1e-6)
    # the other label is known, and so is the covariate; the label of the site itself is not looked at
    found = pv.classify(fitted, {"x": x, "s": s.float(), "y": y, "t": t}, site="y", num_samples=2)
    wanted = pair.table(x, t)[torch.arange(20), s].softmax(-1)
    torch.testing.assert_close(found.joint, wanted, rtol=0, atol=1e-6)
    # q(y) is averaged over q(s | x)
    found = pv.classify(fitted, {"x": x, "y": y}, site="y", num_samples=2)
    share = torch.sigmoid(x - 4)[:, None].double()
    q = pair.link.softmax(-1).detach().double()
    torch.testing.assert_close(found.guide, (1 - share) * q[0] + share * q[1], rtol=0, atol=1e-6)


def test_another_label_that_some_rows_have() -> None:
    torch.manual_seed(1)
    pair, x = TwoLabels(), 4 * torch.rand(20)
    s = (torch.arange(20) % 2).float()
    known = torch.arange(20) % 3 == 0
    found = pv.classify(unfitted(pair, x), {"x": x, "s": torch.where(known, s, float("nan"))}, site="y", num_samples=2)
    table = pair.table(x)
    given, summed = table[torch.arange(20), s.long()].softmax(-1), table.logsumexp(1).softmax(-1)
    torch.testing.assert_close(found.joint, torch.where(known[:, None], given, summed), rtol=0, atol=1e-6)


def test_several_sites_need_a_name() -> None:
    fitted = unfitted(TwoLabels(), rows(3).float())
    with pytest.raises(pv.PairError, match="has 's', 'y'; no name was given. Name one with site="):
        pv.classify(fitted, torch.zeros(3))
    with pytest.raises(pv.PairError, match="got 'x'"):
        pv.classify(fitted, torch.zeros(3), site="x")


def test_one_hot_values() -> None:
    """A site whose values are vectors."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.tensor([0.2, 0.8])))
            pyro.sample("x", dist.Normal(y @ torch.tensor([0.0, 2.0]), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", torch.ones(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OneHotCategorical(logits=x[:, None] * weight), infer=PARALLEL)

    x = torch.linspace(-2, 3, 6)
    found = pv.classify(unfitted(pv.Pair(model, guide), x), x, num_samples=1)
    log_p = torch.tensor([0.2, 0.8]).log() + dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(x[:, None])
    torch.testing.assert_close(found.joint, log_p.softmax(-1).double(), rtol=0, atol=1e-6)


def test_pair_without_a_class() -> None:
    vae = pv.VAE(
        pv.priors.StandardNormal(L), pv.mlp(L, fam.Bernoulli(D), hidden=()), pv.mlp(D, fam.Normal(L), hidden=())
    )
    with pytest.raises(pv.PairError, match="has none; no name was given. Mark a discrete site"):
        pv.classify(unfitted(vae, binary()), binary())


def test_impossible_rows_and_options() -> None:
    class Even(Blobs):
        """Only even counts, and none of class 0."""

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(logits=self.logits))
                z = pyro.sample("z", dist.Normal(self.centres[y], 1.0))
                never = (x % 2 == 1) | (y == 0)
                pyro.sample("x", dist.Poisson(z.exp()).mask(~never), obs=x)
                pyro.factor("even", torch.where(never, -torch.inf, 0.0))

    pair, x = Even(), torch.tensor([2.0, 3.0], dtype=torch.float64)
    with pytest.raises(pv.NotFiniteError, match="1 row has probability 0"):
        pv.classify(unfitted(pair, x[:1]), x, num_samples=50)
    found = pv.classify(unfitted(pair, x[:1]), x[:1], num_samples=50)
    assert found.joint[0, 0] == 0 and torch.isfinite(found.joint).all() and found.entropy > 0
    with pytest.raises(pv.OptionError, match="at least 1, got 0"):
        pv.classify(unfitted(pair, x[:1]), x[:1], num_samples=0)


@pytest.mark.slow
def test_pair_that_carries_no_particles() -> None:
    class Alone(Blobs):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=PARALLEL)
                z = pyro.sample("z", dist.Normal(self.centres[y], 1.0))
                pyro.sample("x", dist.Normal(z if z.dim() < 2 else z.flip(0), 1.0), obs=x)

    pair, x = Alone("model"), rows(4)
    with pytest.warns(UserWarning, match="one at a time"):
        found = pv.classify(unfitted(pair, x), x, num_samples=300)
    assert ((found.joint - pair.posterior(x)).abs() < BOUND * found.standard_error + 1e-2).all()


def test_traced_runs_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, x = stretched(ssvae), binary(60)
    fitted = unfitted(pair, x)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 4000)
    found = []
    for engine in ("eager", "traced"):
        fitted.settings["engine"] = engine
        monkeypatch.setattr(importance_module, "TRACE_FROM", 2)
        found.append(pv.classify(fitted, x, num_samples=50))
    torch.testing.assert_close(found[0].joint, found[1].joint, rtol=0, atol=1e-6)


# --- rows that a transform changes -----------------------------------------------------------------------------------


def noisy(pair: nn.Module, x: Tensor, transform: Any) -> pv.Fit:
    return pv.Fit(pair=pair, layout=describe(pair, {"x": x}), transform=transform)


def blurred(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": batch["x"] + 0.8 * torch.randn_like(batch["x"])}


def test_rows_are_judged_by_a_geometric_mean_over_draws_of_the_transform() -> None:
    """The weights are constant, so that Bayes' rule is exact at each draw, and so is the mean of its logarithms."""
    pair, x = Blobs(), rows()
    fitted = noisy(pair, x, blurred)
    draws = [fitted.parts(x, draw)[0].batch["x"] for draw in range(7)]
    assert torch.equal(draws[0], fitted.evaluation_batch(x)["x"]) and not torch.equal(draws[0], draws[1])
    found = pv.classify(fitted, x, num_samples=20, transform_draws=7)
    assert found.transform_draws == 7 and found.num_samples == 20
    wanted = torch.stack([pair.posterior(draw).log() for draw in draws]).mean(0).softmax(-1)
    torch.testing.assert_close(found.joint, wanted, rtol=0, atol=1e-10)
    logits = torch.stack(draws).mean(0)[:, None] * pair.classify.detach()  # linear in x
    torch.testing.assert_close(found.guide, logits.softmax(-1), rtol=0, atol=1e-12)
    (one,) = {pv.classify(fitted, x, num_samples=k, transform_draws=s).transform_draws for k, s in ((1, 7), (20, 1))}
    assert one == 1
    torch.testing.assert_close(
        pv.classify(fitted, x, num_samples=1).joint, pair.posterior(draws[0]), rtol=0, atol=1e-10
    )


def test_it_tends_to_what_the_model_says_of_the_row_as_given() -> None:
    """log p(y | x) is linear in x but for a constant, so that noise of mean 0 leaves it as it is; the error is as told."""
    pair, x = Blobs(shift=0.2, scale=0.9), rows()
    found = pv.classify(noisy(pair, x, blurred), x, num_samples=900, transform_draws=30)
    apart = found.joint - pair.posterior(x)
    assert (apart.abs() < BOUND * found.standard_error + 2e-3).all()
    # 40 rows of two free probabilities: the mean square of 80 standard normals is within 0.5 and 1.7 but for 1 in 10,000
    assert 0.5 < (apart / found.standard_error).square().mean() < 1.7
    single = pv.classify(noisy(pair, x, blurred), x, num_samples=30, transform_draws=1)
    assert (single.joint - pair.posterior(x)).abs().mean() > 3 * apart.abs().mean()


@pytest.mark.parametrize("transform", [lambda batch: {"x": 1 - batch["x"]}, pv.transforms.Binarize()])
def test_a_transform_that_changes_nothing_at_random_is_run_once(transform: Any) -> None:
    x = binary(20)
    pair = stretched(ssvae)
    found = pv.classify(noisy(pair, x, transform), x, num_samples=10)
    assert found.transform_draws == 1
    there = transform({"x": x})["x"]
    assert torch.equal(found.joint, pv.classify(unfitted(pair, there), there, num_samples=10).joint)


def test_draws_of_the_transform_do_not_depend_on_the_seed() -> None:
    fitted = noisy(stretched(ssvae), torch.rand(20, D), pv.transforms.Binarize())
    x = torch.rand(20, D)
    one, two = (pv.classify(fitted, x, num_samples=5, seed=s) for s in (0, 1))
    torch.testing.assert_close(one.guide, two.guide)
    assert one.transform_draws == 5 and not torch.equal(one.joint, two.joint)
    few = pv.classify(fitted, {"x": x, "y": torch.where(torch.arange(20) < 5, 1, -1)}, num_samples=5)
    torch.testing.assert_close(few.guide, one.guide)  # labels are not looked at
    with pytest.raises(pv.OptionError, match="transform_draws must be at least 1, got 0"):
        pv.classify(fitted, x, transform_draws=0)
    for wrong in (2.5, "3", None, True):
        with pytest.raises(pv.OptionError, match="num_samples must be a whole number"):
            pv.classify(fitted, x, num_samples=wrong)


def test_what_a_transform_rarely_changes_is_averaged_too() -> None:
    """A row that two draws in ten change is the same in the first two, as two draws of what is not random are."""
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    ran = []

    class Training:
        only_in_training = True

        def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            raise AssertionError("not in evaluation")

    def rarely(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"x": torch.where(torch.rand(len(batch["x"]), 1) < 0.2, batch["x"].flip(-1), batch["x"])}

    def never(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        ran.append(len(batch["x"]))
        return {"x": 1 - batch["x"]}

    fitted = noisy(stretched(ssvae), x, rarely)
    draws = torch.cat([fitted.parts(x, draw)[0].batch["x"] for draw in range(10)])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[:1].expand_as(draws), draws)
    assert pv.classify(fitted, x, num_samples=10).transform_draws == 10
    assert pv.classify(noisy(fitted.pair, x, never), x, num_samples=10).transform_draws == 1
    assert pv.classify(noisy(fitted.pair, x, Training()), x, num_samples=10).transform_draws == 1
    assert len(ran) <= 4  # and what draws no random numbers is not run again for each draw


def test_draws_may_have_arguments_and_shapes_of_their_own() -> None:
    one, two = torch.zeros(3, 2), torch.zeros(3, 4)
    part, longer, more = (FittedGroup(torch.arange(3), b, None) for b in ({"x": one}, {"x": two}, {"x": one, "y": two}))  # type: ignore[arg-type]
    assert classification._differ([part], [longer]) and classification._differ([more], [part])
    assert classification._differ([part], [more]) and not classification._differ([more], [more])


def test_a_class_that_no_draw_allows_stays_impossible() -> None:
    each = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]], dtype=torch.float64)
    pooled, error = classification._pooled(each.log())
    assert pooled[0].tolist() == pytest.approx([0.75, 0.25, 0.0]) and (pooled[:, 2] == 0).all()  # odds of sqrt(1 * 9)
    assert torch.isfinite(pooled).all() and torch.isfinite(error).all() and pooled[1, 0] > 0.99


def test_logarithms_are_averaged_however_improbable_a_class_is_at_one_draw() -> None:
    """Odds of e^-2000, e^950 and e^1000, whose logarithms have the mean -50/3."""
    log_w = torch.tensor([[-2000.0, 0.0], [0.0, -950.0], [0.0, -1000.0]], dtype=torch.float64)
    logs = torch.stack([classification._class_probabilities(draw[:, None, None])[2] for draw in log_w])
    pooled, _ = classification._pooled(logs)
    torch.testing.assert_close(pooled[0], torch.tensor([-50.0 / 3, 0.0], dtype=torch.float64).softmax(0))
