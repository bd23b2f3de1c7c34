"""Run folders: nothing is lost or overwritten, nothing pickled is run, and what is damaged is said to be."""

import importlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from support.programs import ROWS, bare_functions, binary, reals, vae
from torch import nn

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.fitted.files import sealed
from pyrovae.fitted.spec import from_spec, to_spec


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fitted = pv.fit(vae(), binary(), epochs=1, batch_size=20, seed=0)
    return pv.save(fitted, tmp_path / "run")


def change(run: Path, **values: Any) -> None:
    """Another content of run.json, with the checksum of a whole one."""
    path = run / "run.json"
    path.write_bytes(sealed({**json.loads(path.read_text()), **values}))


def test_loading_unpickles_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert len(pv.load(run).history) == 1
    assert not [p for p in run.iterdir() if p.suffix not in (".json", ".csv", ".safetensors")]


def test_a_folder_is_never_overwritten_unless_asked(run: Path) -> None:
    fitted = pv.load(run)
    before = (run / "weights.safetensors").read_bytes()
    with pytest.raises(pv.CheckpointError, match="--force"):
        pv.save(fitted, run)
    with pytest.raises(pv.CheckpointError, match="--force"):
        pv.fit(vae(), binary(), epochs=1, batch_size=20, checkpoint=run)
    assert (run / "weights.safetensors").read_bytes() == before
    (run / "notes.txt").write_text("mine")
    pv.save(fitted, run, force=True)
    assert (run / "notes.txt").read_text() == "mine"


def test_force_does_not_touch_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(pv.CheckpointError, match="not a run folder"):
        pv.fit(vae(), binary(), epochs=1, batch_size=20, checkpoint=tmp_path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Any, str]] = {
    "no folder": (lambda run: [p.unlink() for p in run.iterdir()], "not a run folder"),
    "run.json cut": (lambda run: truncate(run / "run.json"), "damaged"),
    "run.json of something else": (lambda run: (run / "run.json").write_text("[1, 2]"), "damaged"),
    "run.json without its pair": (
        lambda run: (run / "run.json").write_text('{"format": 1, "weights_sha256": 0}'),
        "damaged",
    ),
    "weights cut": (lambda run: truncate(run / "weights.safetensors"), "damaged"),
    "weights changed": (lambda run: flip(run / "weights.safetensors"), "checksum"),
    "weights gone": (lambda run: (run / "weights.safetensors").unlink(), "has no weights.safetensors.*removed"),
    "newer": (lambda run: change(run, format=2, pyrovae="9.0"), r"newer pyrovae \(9.0, format 2\).*upgrade"),
    "format of another kind": (lambda run: change(run, format="x"), "newer|damaged"),
    "a class that is not there": (
        lambda run: change(run, pair={"class": "pyrovae.models.Nothing", "args": {}}),
        "does not have",
    ),
    "a class that must not be built": (
        lambda run: change(run, pair={"class": "subprocess.Popen", "args": {"args": {"tuple": ["true"]}}}),
        "not a class that a run folder may name",
    ),
    "a class that a module of ours imports": (
        lambda run: change(run, pair={"class": "pyrovae.data.sources.MNIST", "args": {"root": "x", "download": True}}),
        "not a class that a run folder may name",
    ),
    "a class that a part of ours imports": (
        lambda run: change(run, pair={"class": "pyrovae.families.base.Any", "args": {}}),
        "not a class",
    ),
    "no info": (lambda run: change(run, info=None, layout={"sites": []}), "damaged"),
    "a dtype that is none": (
        lambda run: change(run, layout={"sites": [], "plate_nesting": 1, "arguments": {"x": [[6], "sin"]}}),
        "damaged",
    ),
    "history cut": (lambda run: (run / "history.csv").write_text("epoch,elbo\n1,x"), "history.csv is damaged"),
    "changed by hand": (
        lambda run: (run / "run.json").write_text((run / "run.json").read_text().replace('"elbo"', '"ELBO"', 1) + " "),
        "changed by hand",
    ),
    "an activation that is none": (
        lambda run: change(run, pair={"type": "torch.nn.modules.module.OrderedDict"}),
        "not a class",
    ),
    "a part of torch.distributions that is no distribution": (
        lambda run: change(
            run, pair={"class": "torch.distributions.constraint_registry.ConstraintRegistry", "args": {}}
        ),
        "not a class",
    ),
    "a function of this package": (
        lambda run: change(run, pair={"class": "pyrovae.app.cli.main", "args": {}}),
        "not a class",
    ),
}


@pytest.mark.parametrize("case", list(DAMAGE.values()), ids=list(DAMAGE))
def test_damage_is_named(run: Path, case: tuple[Any, str]) -> None:
    damage, message = case
    damage(run)
    with pytest.raises(pv.CheckpointError, match=message):
        pv.load(run)


def test_weights_of_another_pair_are_refused(run: Path) -> None:
    with pytest.raises(pv.CheckpointError, match="do not fit the pair|pass the pair that was fitted"):
        pv.load(run, pair=vae(fam.Normal(6)))
    with pytest.raises(pv.CheckpointError, match="do not fit the pair"):
        pv.load(run, pair=bare_functions())


def test_a_transform_of_ones_own_is_passed_in(tmp_path: Path) -> None:
    def flip(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"x": 1 - batch["x"]}

    fitted = pv.fit(vae(), binary(), epochs=1, batch_size=20, transform=flip)
    pv.save(fitted, tmp_path / "run")
    with pytest.raises(pv.CheckpointError, match="transform="):
        pv.load(tmp_path / "run")
    loaded = pv.load(tmp_path / "run", transform=flip)
    x = binary()
    assert torch.equal(
        pv.log_likelihood(loaded, x, 5, seed=0, proposal="guide"),
        pv.log_likelihood(fitted, x, 5, seed=0, proposal="guide"),
    )


def test_resuming_with_other_data_or_settings_is_refused(tmp_path: Path) -> None:
    x = binary()
    options: dict[str, Any] = {"epochs": 4, "batch_size": 10, "seed": 0, "checkpoint": tmp_path / "run"}
    pv.fit(vae(), x, callbacks=[lambda f: len(f.history) == 2], **options)
    for changed, word in (({"batch_size": 20}, "batch_size"), ({"seed": 1}, "seed"), ({"clip_norm": 1.0}, "clip_norm")):
        with pytest.raises(pv.CheckpointError, match=word):
            pv.fit(vae(), x, resume=True, **{**options, **changed})
    with pytest.raises(pv.CheckpointError, match="other data"):
        pv.fit(vae(), 1 - x, resume=True, **options)
    with pytest.raises(pv.CheckpointError, match="other validation"):
        pv.fit(vae(), x, resume=True, validation=x, **options)
    with pytest.raises(pv.CheckpointError, match="other transform"):
        pv.fit(vae(), x, resume=True, transform=pv.transforms.Binarize(), **options)
    with pytest.raises(pv.CheckpointError, match="not a run folder"):
        pv.fit(vae(), x, resume=True, **{**options, "checkpoint": tmp_path / "nowhere"})
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"garbage")
    with pytest.raises(pv.CheckpointError, match="damaged"):
        pv.fit(vae(), x, resume=True, **options)


def test_a_fit_without_a_schedule_can_be_made_longer(tmp_path: Path) -> None:
    x = binary()
    torch.manual_seed(0)
    long = vae()
    pv.fit(long, x, epochs=6, batch_size=12, seed=0)
    torch.manual_seed(0)
    pv.fit(vae(), x, epochs=3, batch_size=12, seed=0, checkpoint=tmp_path / "run")
    resumed = vae()
    pv.fit(resumed, x, epochs=6, batch_size=12, seed=0, checkpoint=tmp_path / "run", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(long.parameters(), resumed.parameters()))


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    def stop(fitted: pv.Fit) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        pv.fit(vae(), binary(), epochs=4, batch_size=10, checkpoint=tmp_path / "run", callbacks=[stop])
    with pytest.raises(pv.CheckpointError, match="has not finished"):
        pv.load(tmp_path / "run")


def test_shared_modules_are_saved_once_and_tied_again(tmp_path: Path) -> None:
    square = pv.Conditional(nn_square(), fam.Normal(6, scale=1.0))
    tied = pv.VAE(pv.priors.StandardNormal(6), likelihood=square, encoder=square)
    fitted = pv.fit(tied, reals(), epochs=1, batch_size=20)
    pv.save(fitted, tmp_path / "run")
    saved = sum(t.numel() for t in load_file(tmp_path / "run" / "weights.safetensors").values())
    assert saved == sum(p.numel() for p in tied.parameters())
    loaded = pv.load(tmp_path / "run").pair
    assert loaded.encoder is loaded.likelihood
    assert sum(p.numel() for p in loaded.parameters()) == saved


def nn_square() -> nn.Module:
    return pv.mlp(6, fam.Normal(6, scale=1.0), hidden=()).net


def test_buffers_are_saved_and_their_updates_kept(tmp_path: Path) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = self.norm(x.reshape(-1, 6)).reshape(x.shape)
            return self.linear(flat).unflatten(-1, (2, 6))

    def build() -> pv.VAE:
        return pv.VAE(
            pv.priors.StandardNormal(6),
            pv.mlp(6, fam.Bernoulli(6), hidden=()),
            pv.Conditional(Normed(), fam.Normal(6)),
        )

    x = binary() + 0.0
    fitted = pv.fit(build(), x, epochs=2, batch_size=20)
    pv.save(fitted, tmp_path / "run")
    loaded = pv.load(tmp_path / "run", pair=build())
    assert loaded.pair.encoder.net.norm.num_batches_tracked.item() > 0
    assert torch.equal(pv.encode(loaded, x), pv.encode(fitted, x))
    assert loaded.pair.encoder.net.training is fitted.pair.encoder.net.training


def test_a_distribution_is_written_by_the_parameter_it_was_given() -> None:
    for given in (
        dist.Categorical(probs=torch.tensor([0.2, 0.8])),
        dist.Categorical(logits=torch.tensor([0.2, 0.8])),
        dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.eye(2) * 3),
    ):
        before = to_spec(given)
        for cached in ("probs", "logits", "scale_tril", "covariance_matrix", "precision_matrix"):
            getattr(given, cached, None)
        again = from_spec(json.loads(json.dumps(to_spec(given))))
        value = torch.zeros(2) if given.event_shape else torch.tensor(1)
        assert torch.allclose(again.log_prob(value), given.log_prob(value))
        if isinstance(given, dist.Categorical):
            assert to_spec(given) == before


def test_specifications_are_json_and_come_back_equal() -> None:
    for name in ("vae", "vae-mixture-prior", "vae-plain-distribution-prior", "vae-shared-scale"):
        pair = ROWS[name].build()
        spec = json.loads(json.dumps(to_spec(pair)))
        again = from_spec(spec)
        assert json.dumps(to_spec(again)) == json.dumps(spec)
        assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in pair.state_dict().items()}


def test_history_is_a_table(run: Path) -> None:
    lines = (run / "history.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,steps,elbo") and len(lines) == 2


def test_checks_leave_running_statistics_alone() -> None:
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.Unflatten(-1, (2, 2)))

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.reshape(-1, 6)).reshape(*x.shape[:-1], 2, 2)

    pair = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6)), pv.Conditional(Flat(), fam.Normal(2)))
    pv.check_pair(pair, binary())
    assert encoder[0].num_batches_tracked.item() == 0 and encoder.training
    pv.fit(pair, binary(), epochs=3, batch_size=20, validation=binary())
    assert encoder[0].num_batches_tracked.item() == 3 * 2  # a step each, nothing else


PARTS = """
import pathlib
import pyro.distributions as dist
import torch
from torch import nn

pathlib.Path("ran").touch()


class Prior(nn.Module):
    def __init__(self, latent, scale=1.0):
        super().__init__()
        self.latent, self.scale = latent, scale

    def forward(self):
        return dist.Normal(torch.zeros(self.latent), self.scale).to_event(1)


class Doubling(Prior):
    def __init__(self, latent, scale=1.0):
        super().__init__(latent, 2 * scale)


class Forgetful(Prior):
    def __init__(self, num):
        super().__init__(num)


class Deaf(Prior):
    @property
    def scale(self):
        raise RuntimeError("not now")

    @scale.setter
    def scale(self, value):
        pass

    def forward(self):
        return dist.Normal(torch.zeros(self.latent), 1.0).to_event(1)


def halved(batch):
    return {"x": (batch["x"] / 2).round()}
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's own, which leaves a file where it was imported."""
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_parts")
    sys.modules.pop("own_parts", None)


def saved_with(prior: nn.Module, **options: Any) -> pv.Fit:
    """A saved fit with a prior of the user's own, in a process that has not imported it."""
    fitted = pv.fit(vae(prior=prior), binary(), epochs=1, batch_size=20, seed=0, device="cpu", **options)
    pv.save(fitted, "run")
    sys.modules.pop("own_parts")
    Path("ran").unlink()
    return fitted


def test_a_part_of_ones_own_is_imported_for_one_who_trusts_it(parts: Any) -> None:
    fitted = saved_with(parts.Prior(2, scale=3.0), transform=parts.halved)
    with pytest.raises(pv.CheckpointError, match="transform=.*trust=True"):
        pv.load("run")
    with pytest.raises(pv.CheckpointError, match="pair=.*trust=True"):
        pv.load("run", transform=parts.halved)
    assert not Path("ran").exists()
    loaded = pv.load("run", trust=True)
    assert Path("ran").exists() and loaded.pair.prior.scale == 3.0
    x = binary()
    assert torch.equal(
        pv.log_likelihood(loaded, x, 5, seed=0, proposal="guide"),
        pv.log_likelihood(fitted, x, 5, seed=0, proposal="guide"),
    )
    assert torch.equal(
        pv.log_likelihood(
            pv.load("run", vae(prior=parts.Prior(2, 3.0)), transform=parts.halved), x, 5, seed=0, proposal="guide"
        ),
        pv.log_likelihood(fitted, x, 5, seed=0, proposal="guide"),
    )


@pytest.mark.parametrize(
    ("name", "said"), [("Doubling", "other attributes"), ("Forgetful", "cannot be"), ("Deaf", "cannot be")]
)
def test_a_part_that_does_not_keep_its_arguments_is_not_guessed(parts: Any, name: str, said: str) -> None:
    prior = getattr(parts, name)(2)
    saved_with(prior)
    with pytest.raises(pv.CheckpointError, match=f"{said}.*pair="):
        pv.load("run", trust=True)
    assert pv.load("run", vae(prior=prior)).pair.prior is prior


def test_a_part_that_is_gone_cannot_be_imported(parts: Any) -> None:
    saved_with(parts.Prior(2))
    Path("own_parts.py").unlink()
    shutil.rmtree("__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    with pytest.raises(pv.CheckpointError, match="own_parts.Prior cannot be imported.*pair="):
        pv.load("run", trust=True)
