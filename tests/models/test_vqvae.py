"""The VQ-VAE: its bound in closed form, the gradient of its encoder, the terms of learned codebooks, and its second stage."""

import importlib.util
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.told import told

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.nets import FSQ, VQ, Quantiser, ResidualVQ, SimVQ
from pyrovae.objectives.codes import numbered

extra = pytest.mark.skipif(
    importlib.util.find_spec("vector_quantize_pytorch") is None, reason="needs vector-quantize-pytorch"
)
LEARNED: dict[str, Any] = {
    "VQ": lambda: VQ(6, 3, 2, commitment=0.7),
    "SimVQ": lambda: SimVQ(6, 3, 2),
    "ResidualVQ": lambda: ResidualVQ(6, 3, 2, depth=2),
}
ALL: list[Any] = [
    pytest.param(lambda: FSQ((5, 4, 3), 2), id="FSQ"),
    *(pytest.param(build, id=name, marks=extra) for name, build in LEARNED.items()),
]


def vqvae(codes: Quantiser, prior: Any = None) -> pv.VQVAE:
    net = pv.nets.Behind(pv.nets.Flat((codes.width, *codes.grid)), pv.nets.MLP(6, (2, 4), hidden=(8,)))
    return pv.VQVAE(
        prior=prior or pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape),
        likelihood=pv.Conditional(net, fam.Normal(4)),
        encoder=pv.nets.MLP(4, (codes.width, *codes.grid), hidden=(8,)),
        codes=codes,
    )


def started(build: Any, prior: Any = None) -> pv.VQVAE:
    """A pair whose codebook has seen rows, in evaluation mode."""
    pair = vqvae(build(), prior)
    pair.train()
    pair.guide(torch.randn(40, 4))
    return pair.eval()


@pytest.mark.parametrize("build", ALL)
def test_the_bound_is_log_p_of_x_given_the_codes_minus_log_k_a_code(build: Any) -> None:
    pair, x = started(build), torch.randn(7, 4)
    z = pair.codes(pair.encoder(x))
    log_p = pair.likelihood(pair.codes.vectors(z)).log_prob(x)
    by_hand = log_p - math.prod(pair.codes.index_shape) * math.log(pair.codes.num_codes)
    run = pv.terms(pair, {"x": x}, num_particles=3)
    torch.testing.assert_close(pv.log_weights(run), by_hand.expand(3, 7))
    torch.testing.assert_close(pv.elbo(run).elbo, by_hand.sum().detach())


@pytest.mark.parametrize("build", ALL)
def test_the_gradient_of_the_encoder_is_that_at_the_codes_and_the_commitment(build: Any) -> None:
    """By hand: log p(x | z) is differentiated at z, which is passed on to e, and learned codes add -2 beta (e - z)."""
    pair, x = started(build), torch.randn(7, 4)
    pair.codes.rotation = False  # type: ignore[assignment]
    pv.elbo(pv.terms(pair, {"x": x})).objective.backward()
    found = [parameter.grad.clone() for parameter in pair.encoder.parameters()]  # type: ignore[union-attr]
    pair.zero_grad()
    e = pair.encoder(x)
    z = pair.codes(e).detach()
    read = pair.codes.vectors(z).requires_grad_()
    (slope,) = torch.autograd.grad(pair.likelihood(read).log_prob(x).sum(), read)
    if isinstance(pair.codes, FSQ):
        steps, reach = pair.codes.steps, pair.codes.reach
        slope = slope * reach * (1 - torch.tanh(e.detach() + pair.codes.shift) ** 2) / steps
    else:
        levels = z if isinstance(pair.codes, ResidualVQ) else z.unsqueeze(1)
        left = e.detach()
        for level in levels.unbind(1):
            slope, left = slope - 2 * pair.codes.commitment * (left - level), left - level
    by_hand = torch.autograd.grad((e * slope).sum(), list(pair.encoder.parameters()))
    for one, two in zip(found, by_hand):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@extra
def test_the_codebook_follows_the_vectors_where_a_gradient_trains_it() -> None:
    """By hand: the gradient of -|e - z|^2 in the codes, with e held fixed."""
    pair, x = started(LEARNED["SimVQ"]), torch.randn(7, 4)
    parameter = pair.codes.sim.code_transform.weight  # type: ignore[union-attr]
    (found,) = torch.autograd.grad(pv.elbo(pv.terms(pair, {"x": x})).objective, [parameter])  # type: ignore[list-item]
    e = pair.encoder(x).detach()
    z = pair.codes.lookup(pair.codes.indices(pair.codes(e)))
    (by_hand,) = torch.autograd.grad(-(e - z).square().sum(), [parameter])  # type: ignore[list-item]
    torch.testing.assert_close(found, by_hand)


@extra
@pytest.mark.auto_engine
@pytest.mark.parametrize("kind", ["VQ", "ResidualVQ"])
def test_a_fit_starts_the_codes_or_says_why_not(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    x = torch.randn(40, 4)
    with pytest.raises(pv.OptionError, match=f"{kind} has no codes.*evaluation mode.*train"):
        pv.fit(vqvae(LEARNED[kind]()).eval(), x, epochs=1)
    for frozen in (False, True):
        pair = vqvae(LEARNED[kind]())
        pair.encoder.requires_grad_(not frozen)
        fitted = pv.fit(pair, x, epochs=2, batch_size=20)
        assert fitted.settings["engine"] == "traced" and "engine_notes" not in fitted.settings
        assert len(torch.unique(pv.encode(fitted, x))) > 3
    second = pv.fit(pair, x, epochs=2, batch_size=20)
    assert second.settings["engine"] == "traced" and "engine_notes" not in second.settings  # the codes stay
    assert not [w for w in recwarn if "trace" in str(w.message)]


@extra
@pytest.mark.parametrize("kind", ["VQ", "ResidualVQ"])
def test_a_traced_step_moves_the_codes_as_an_eager_one(kind: str) -> None:
    x, books = torch.randn(40, 4), []
    for engine in ("eager", "traced"):
        torch.manual_seed(0)
        fitted = pv.fit(vqvae(LEARNED[kind]()), x, epochs=4, batch_size=20, seed=0, engine=engine)
        assert "engine_notes" not in fitted.settings
        books.append(fitted.pair.codes.codebook)  # type: ignore[attr-defined]
    torch.testing.assert_close(*books)


@extra
def test_the_codes_start_from_some_rows_and_leave_all_else_as_it_was() -> None:
    """Rows in order of size, of which the first minibatch alone would start all codes among the small ones."""
    x = torch.linspace(-3, 3, 200).unsqueeze(-1).expand(200, 4)
    codes = VQ(6, 3, 2, restart_below=0.0)
    pair = vqvae(codes)
    norm = torch.nn.BatchNorm1d(4)
    pair.encoder = torch.nn.Sequential(norm, pair.encoder)
    pv.fit(pair, x, epochs=0, seed=0)
    assert not codes.started  # no step, no codes
    fitted = pv.fit(pair, x, epochs=1, batch_size=20, seed=0, engine="eager")
    assert norm.num_batches_tracked == 20  # the encoder runs twice in each of ten steps, and the start is none
    assert pv.code_usage(fitted, x).used.item() >= 5


@extra
def test_a_run_without_the_package_of_its_codebook_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pv.save(pv.fit(vqvae(LEARNED["VQ"]()), torch.randn(40, 4), epochs=1), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(pv.MissingPackageError, match="pip install"):
        pv.load(tmp_path / "run")


@extra
def test_the_terms_of_a_codebook_are_no_part_of_the_bound() -> None:
    pair, x = started(LEARNED["SimVQ"]), torch.randn(7, 4)
    run = pv.terms(pair, {"x": x})
    e, z = pair.encoder(x), run.sites["z"].value
    far = (e - z).square().sum((-1, -2))
    for name, weight in (("commitment", 0.25), ("codebook", 1.0)):
        term = run.sites[name]
        assert term.objective_only and term.p is not None
        torch.testing.assert_close(term.p.log_prob + weight * far, (term.p.log_prob + weight * far)[:1].expand(7))
    layout = pv.check_pair(pair, x)
    assert {s.name: s.objective_only for s in layout.sites if s.role == "observed"} == {
        "commitment": True,
        "codebook": True,
        "x": False,
    }
    with_fsq = pv.check_pair(vqvae(FSQ((5, 4, 3), 2)), x)
    assert [s.name for s in with_fsq.sites] == ["z", "x"]


@pytest.mark.parametrize("kind", [None, pytest.param("VQ", marks=extra)])
def test_the_second_stage_learns_the_prior_alone_and_raises_the_bound(kind: str | None, tmp_path: Path) -> None:
    codes = FSQ((3, 3, 3), 2) if kind is None else LEARNED[kind]()
    pair, x = vqvae(codes), torch.randn(80, 1) * torch.ones(4) + 0.1 * torch.randn(80, 4)
    first = pv.fit(pair, x, epochs=8, batch_size=40, learning_rate=0.02, seed=0, engine="eager")
    before = pv.importance(first, x, 1, proposal="guide").elbo
    kept = {name: value.clone() for name, value in pair.state_dict().items()}
    pair.requires_grad_(False)
    prior = pv.priors.Autoregressive(codes.num_codes, codes.index_shape, width=8, layers=1, heads=2)
    whole = pv.VQVAE(prior, pair.likelihood, pair.encoder, codes)
    second = pv.fit(whole, x, epochs=15, batch_size=40, learning_rate=0.02, seed=0, engine="eager")
    assert all(torch.equal(kept[name], value) for name, value in pair.state_dict().items())
    z = pv.encode(second, x)
    assert torch.equal(z, pv.encode(first, x))
    kl = -prior().log_prob(codes.indices(z)).detach()
    after = pv.importance(second, x, 1, proposal="guide").elbo
    uniform = math.prod(codes.index_shape) * math.log(codes.num_codes)
    torch.testing.assert_close(after - before, (uniform - kl).double(), rtol=1e-4, atol=1e-4)
    assert (after - before).mean() > 0.2 * uniform
    pv.save(second, tmp_path / "run")
    again = pv.load(tmp_path / "run")
    assert torch.equal(pv.generate(again, 9, seed=3), pv.generate(second, 9, seed=3))
    torch.testing.assert_close(pv.importance(again, x, 1, proposal="guide").elbo, after)


@pytest.fixture(scope="module")
def fitted() -> pv.Fit:
    torch.manual_seed(0)
    return pv.fit(vqvae(FSQ((4, 3, 3), 2)), torch.randn(40, 4), epochs=2, seed=0)


def test_all_questions_are_answered(fitted: pv.Fit) -> None:
    x = torch.randn(9, 4)
    codes: Any = fitted.pair.codes  # type: ignore[attr-defined]
    z = pv.encode(fitted, x)
    assert torch.equal(codes.lookup(codes.indices(z)), z)
    drawn = pv.simulate(fitted, 5, seed=0)
    assert torch.equal(codes.lookup(codes.indices(drawn["z"])), drawn["z"])
    assert torch.equal(pv.posterior(fitted, x, 2, proposal="guide"), z.expand(2, *z.shape))
    torch.testing.assert_close(pv.reconstruct(fitted, x), pv.decode(fitted, z))
    assert torch.equal(pv.kl_by_site(fitted, x)["z"], torch.full((9,), 2 * torch.tensor(36.0).log()))


def test_log_p_of_x_says_that_it_is_a_bound(fitted: pv.Fit) -> None:
    with pytest.warns(UserWarning, match="log p\\(x\\) is estimated by the ELBO, a lower bound") as said:
        found = pv.importance(fitted, torch.randn(5, 4), 30)
    assert len(told(said)) == 1 and found.proposal == "guide"
    assert "Check k_hat" not in str(said[0].message) and 'Pass proposal="guide"' in str(said[0].message)
    torch.testing.assert_close(found.log_likelihood, found.elbo)


def test_a_report_asks_nothing_of_the_spread_of_a_point(fitted: pv.Fit) -> None:
    report = pv.criticise(fitted, torch.randn(20, 4), only=("log_likelihood", "inference_gap", "symmetry"))
    said = {finding.name: (finding.verdict, finding.says) for finding in report.findings}
    assert "at least" in said["log p(x)"][1] and "all draws of the guide are one" in said["log p(x)"][1]
    for name in ("inference gap", "symmetry"):
        assert said[name][0] == "none" and "the guide is a single point" in said[name][1]


def test_values_that_are_no_codes_are_refused(fitted: pv.Fit) -> None:
    with pytest.raises(pv.DataError, match="outside the support of Codes .codes of FSQ"):
        pv.decode(fitted, torch.full((2, 3, 2), 0.1))
    with pytest.raises(pv.DataError, match=r"rows of shape \(3, 2\), got \(3, 4\)"):
        pv.decode(fitted, torch.zeros(2, 3, 4))


def test_use_of_codes_is_counted(fitted: pv.Fit) -> None:
    x = torch.randn(30, 4)
    codes: Any = fitted.pair.codes  # type: ignore[attr-defined]
    usage = pv.code_usage(fitted, x)
    chosen = codes.indices(pv.encode(fitted, x)).flatten()
    assert torch.equal(usage.counts, torch.bincount(chosen, minlength=36)[None])
    shares = torch.bincount(chosen) / len(chosen)
    shares = shares[shares > 0]
    torch.testing.assert_close(usage.perplexity, (-(shares * shares.log()).sum()).exp()[None])
    assert usage.used.item() == len(shares) and usage.num_codes == 36
    equal = pv.CodeUsage(torch.full((2, 5), 3))
    torch.testing.assert_close(equal.perplexity, torch.full((2,), 5.0))
    with pytest.raises(pv.PairError, match=r"numbers its values, .*: this pair has none; got 'y'"):
        pv.code_usage(fitted, x, site="y")


@extra
def test_use_of_codes_is_counted_level_by_level() -> None:
    fit = pv.fit(vqvae(LEARNED["ResidualVQ"]()), torch.randn(40, 4), epochs=2, seed=0, engine="eager")
    x = torch.randn(30, 4)
    k = fit.pair.codes.indices(pv.encode(fit, x))  # type: ignore[attr-defined]
    wanted = torch.stack([torch.bincount(k[:, level].flatten(), minlength=6) for level in range(2)])
    assert torch.equal(pv.code_usage(fit, x).counts, wanted)


class Coins(dist.Categorical):  # type: ignore[misc]
    """A user's own distribution of numbers, which says so."""

    num_codes = 4

    def numbers(self, value: torch.Tensor) -> torch.Tensor:
        return value.long()[..., None, None]


def one_in_each_plate(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("places", 2, dim=-2):
            k = pyro.sample("k", Coins(torch.ones(4)))
        pyro.sample("x", dist.Normal(k.sum(0).float(), 1.0), obs=x)


def one_in_each_guide(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1), pyro.plate("places", 2, dim=-2):
        pyro.sample("k", dist.Categorical(torch.ones(4)))


class Faulty(Coins):
    """Coins that number their values by any function."""

    def __init__(self, probs: torch.Tensor, by: Any, validate_args: Any = None) -> None:
        super().__init__(probs)
        self.by = by

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return Faulty(self.probs.expand(*batch_shape, 4), self.by)

    def numbers(self, value: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.by(value)
        return found


class CodeOfSome(torch.nn.Module):
    """A code k, of rows with y only, or of all; y is summed out where it is unknown."""

    def __init__(self, every: bool, prior: Any = Coins) -> None:
        super().__init__()
        self.every, self.prior, self.mean = every, prior, torch.nn.Parameter(torch.zeros(()))

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        has_code = self.every or y is not None
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), obs=y)
            k = pyro.sample("k", self.prior(torch.ones(4))) if has_code else 0.0
            pyro.sample("x", dist.Normal(self.mean + y + k, 1.0), obs=x)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            if self.every or y is not None:
                pyro.sample("k", dist.Categorical(torch.ones(4)))


def perplexity(numbers: torch.Tensor) -> float:
    shares = torch.unique(numbers, return_counts=True)[1] / numbers.numel()
    return float((-(shares * shares.log()).sum()).exp())


@pytest.mark.parametrize(
    ("build", "engine"),
    [
        pytest.param(lambda: FSQ((5, 4, 3), 2), "eager", id="FSQ-eager"),
        pytest.param(lambda: FSQ((5, 4, 3), 2), "traced", id="FSQ-traced"),
        pytest.param(LEARNED["ResidualVQ"], "eager", id="ResidualVQ", marks=extra),
    ],
)
def test_the_history_has_the_perplexity_of_the_codes_of_the_validation_rows(
    build: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of 3 of 7 rows, the last of which is filled up with rows that do not count."""
    monkeypatch.setattr(pv.Fit, "chunk_size", lambda *args, **options: 3)
    held_out = torch.randn(7, 4)
    seen: list[list[float]] = []

    def look(fitted: pv.Fit) -> None:
        codes: Any = fitted.pair.codes  # type: ignore[attr-defined]
        k = codes.indices(pv.encode(fitted, held_out))
        levels = k.unbind(1) if isinstance(codes, ResidualVQ) else [k]
        seen.append([perplexity(level) for level in levels])

    fit = pv.fit(
        vqvae(build()), torch.randn(40, 4), epochs=2, validation=held_out, engine=engine, seed=0, callbacks=[look]
    )
    names = ["perplexity/z"] if len(seen[0]) == 1 else ["perplexity/z/1", "perplexity/z/2"]
    for row, wanted in zip(fit.history, seen, strict=True):
        assert [name for name in row if name.startswith("perplexity")] == names
        assert [row[name] for name in names] == pytest.approx(wanted, rel=1e-5)
    assert max(map(max, seen)) > 2


def test_without_validation_rows_the_perplexity_is_that_of_training_rows(tmp_path: Path) -> None:
    x = torch.randn(40, 4)
    fit = pv.fit(vqvae(FSQ((4, 3, 3), 2)), x, epochs=1, seed=0)
    assert fit.history[0]["perplexity/z"] == pytest.approx(pv.code_usage(fit, x).perplexity.item())
    pv.save(fit, tmp_path / "run")
    assert pv.load(tmp_path / "run").history == fit.history


def test_any_distribution_that_numbers_its_values_is_counted_in_any_plate() -> None:
    run = pv.terms(pv.Pair(one_in_each_plate, one_in_each_guide), {"x": torch.zeros(5)}, 3)
    found = numbered(run)["k"]
    k = run.sites["k"].value  # (particles, places, rows)
    assert k.shape == (3, 2, 5) and found.numbers.shape == (5, 1, 6)
    assert torch.equal(found.numbers[:, 0].sort().values, k.reshape(6, 5).T.sort().values)
    assert torch.equal(found.counts(2)[0], torch.bincount(k[..., :2].flatten(), minlength=4))


def test_a_codebook_larger_than_the_data_is_told() -> None:
    for levels, rows, told_of in (((5, 5, 4), 49, True), ((5, 5, 4), 50, False)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pv.fit(vqvae(FSQ(levels, 2)), torch.randn(rows, 4), epochs=0)
        assert [str(w.message) for w in said if "codebook" in str(w.message)] == told_of * [
            "Site 'z' has a codebook of 100 codes, and the 49 training rows have 98 places for them in all, so that some can "
            "never be in use: take fewer codes, or more rows."
        ]
        assert all(w.filename == __file__ for w in said if "codebook" in str(w.message))  # at the call of fit


@pytest.mark.filterwarnings("ignore:Site 'k'")
def test_rows_whose_classes_are_summed_out_leave_the_history_without_a_perplexity() -> None:
    """Else it would be that of the rows with a label."""
    options: Any = {"epochs": 1, "engine": "eager", "progress": False}
    x, nan = torch.randn(8), math.nan
    for known, named in ((8, True), (3, False)):
        y = torch.where(torch.arange(8) < known, 1.0, nan)
        fit = pv.fit(CodeOfSome(every=True), {"x": x, "y": y}, **options)
        assert ("perplexity/k" in fit.history[0]) is named
        assert pv.code_usage(fit, {"x": x, "y": y}).counts.sum() == 8


def test_codes_that_some_rows_have_are_compared_with_the_places_of_these_rows() -> None:
    y = torch.where(torch.arange(8) < 3, 1.0, math.nan)
    with pytest.warns(UserWarning, match="codebook of 4 codes, and the 3 training rows have 3 places"):
        pv.fit(CodeOfSome(every=False), {"x": torch.randn(8), "y": y}, epochs=0, progress=False)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (lambda k: k, r"whole numbers of shape \(1, 8, Q, M\), .*, got torch.int64 of shape \(1, 8\)"),
        (lambda k: k[..., None, None].float(), r"got torch.float32 of shape \(1, 8, 1, 1\)"),
        (lambda k: k[:, None, None], r"got torch.int64 of shape \(1, 1, 1, 8\)"),  # of a batch without particles
        (lambda k: k.tolist(), r"got list of shape \(\)"),
        (lambda k: k[..., None, None] + 4, "numbered from 0 to 3, got [4567]"),
        (lambda k: k[..., None, None] * 0 - 1, "numbered from 0 to 3, got -1"),
    ],
)
def test_numbers_that_are_none_of_codes_are_told_before_the_first_step(by: Any, said: str) -> None:
    pair = CodeOfSome(every=True, prior=lambda probs: Faulty(probs, by))
    with pytest.raises(pv.PairError, match=f"Site 'k'.*{said}"):
        pv.fit(pair, {"x": torch.randn(8), "y": torch.ones(8)}, epochs=1, progress=False)


@pytest.mark.parametrize("validation", [None, 0.5])
def test_numbers_that_leave_their_range_later_leave_the_history_its_columns(validation: Any) -> None:
    """The fit goes on, and says so once; bounds and KL terms do not depend on numbers."""
    shift, rows = [0], {"x": torch.randn(8), "y": torch.ones(8)}
    pair = CodeOfSome(every=True, prior=lambda probs: Faulty(probs, lambda k: k[..., None, None] * 0 + shift[0]))

    def later(epoch: Any) -> None:
        shift[0] = 9

    with pytest.warns(UserWarning) as said:
        fit = pv.fit(pair, rows, epochs=3, validation=validation, callbacks=[later], engine="eager", progress=False)
    warned = [str(w.message) for w in said if "in the history" in str(w.message)]
    assert len(warned) == 1 and "numbered from 0 to 3, got 9" in warned[0]
    found = [row["perplexity/k"] for row in fit.history]
    assert found[0] == 1.0 and math.isnan(found[1]) and math.isnan(found[2])
    assert all(math.isfinite(row["kl/k"]) and math.isfinite(row["elbo"]) for row in fit.history)


def test_numbers_may_be_of_any_integers() -> None:
    pair = CodeOfSome(every=True, prior=lambda probs: Faulty(probs, lambda k: k[..., None, None].int() * 0))
    fit = pv.fit(pair, {"x": torch.randn(8), "y": torch.ones(8)}, epochs=1, engine="eager", progress=False)
    assert fit.history[0]["perplexity/k"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior": pv.priors.Categorical(60, event_shape=3)}, r"arrays \(2,\) of 60 classes.*got \(3,\) of 60"),
        ({"prior": pv.priors.Categorical(59, event_shape=2)}, r"arrays \(2,\) of 60 classes.*got \(2,\) of 59"),
        ({"prior": pv.priors.StandardNormal(4)}, r"arrays \(2,\) of 60 classes.*got \(4,\) of 60"),
        ({"encoder": pv.nets.MLP(4, (3, 4))}, r"encoder with out_shape=\(3, 2\).*got \(3, 4\)"),
        ({"codes": FSQ((5, 4, 3), 4)}, r"encoder with out_shape=\(3, 4\).*got \(3, 2\)"),
    ],
)
def test_parts_of_other_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    pair = vqvae(FSQ((5, 4, 3), 2))
    parts = {name: getattr(pair, name) for name in ("prior", "likelihood", "encoder", "codes")}
    with pytest.raises(pv.ShapeError, match=message):
        pv.VQVAE(**{**parts, **change})


@pytest.mark.parametrize("shape", [(3, 9, 7), (9, 7)])
def test_images_have_grids_of_codes(shape: tuple[int, ...]) -> None:
    encoder = pv.nets.GridEncoder(shape, width=3, channels=(4, 8), cells=1)
    codes = FSQ((5, 4, 3), encoder.grid)
    family = fam.Bernoulli(shape)
    decoder = pv.nets.GridDecoder(codes.width, family.param_shape, channels=(4, 8), cells=1)
    prior = pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape)
    pair = pv.VQVAE(prior, pv.Conditional(decoder, family), encoder, codes)
    layout = pv.check_pair(pair, torch.bernoulli(torch.full((5, *shape), 0.4)))
    assert {s.name: s.event_shape for s in layout.sites} == {"z": (3, 3, 2), "x": shape}
