"""Denormals: flushed while a fit runs on a CPU, in torch's workers too, and only then."""

import math
import platform
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
import pyrovae.families as fam
from pyrovae.engine.denormals import flush_denormals, flushed_denormals, flushes_denormals

pytestmark = pytest.mark.auto_engine

supported = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64", "arm64", "aarch64"), reason="torch cannot flush here"
)


@supported
def test_denormals_are_flushed_inside_and_kept_outside() -> None:
    small = torch.full((8,), 1e-40)
    assert not flushes_denormals()
    with flushed_denormals(torch.device("cpu")):
        assert flushes_denormals()
        assert torch.equal(small * 1.0, torch.zeros(8))
    assert not flushes_denormals()
    assert not torch.equal(small * 1.0, torch.zeros(8))


@supported
def test_who_already_flushes_goes_on_doing_so() -> None:
    flush_denormals(True)
    try:
        with flushed_denormals(torch.device("cpu")):
            pass
        assert flushes_denormals()
    finally:
        flush_denormals(False)


@pytest.mark.slow
@supported
@pytest.mark.skipif(sys.platform != "linux", reason="workers of other OpenMP runtimes may stay as they are")
def test_workers_that_already_run_follow() -> None:
    """In a process of its own, with two threads that have worked before."""
    program = """
        import torch
        from pyrovae.engine.denormals import flush_denormals
        torch.set_num_threads(2)
        small = torch.full((1_000_000,), 1e-40)
        kept = lambda: ((small * 1.0) != 0).float().mean().item()
        found = [kept()]
        for flush in (True, False):
            flush_denormals(flush)
            found.append(kept())
        print(found)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[1.0, 0.0, 1.0]"


@supported
def test_a_fit_flushes_and_leaves_the_process_as_it_was() -> None:
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Bernoulli(6), (8,)), pv.mlp(6, fam.Normal(2), (8,)))
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    seen: list[bool] = []
    pv.fit(vae, x, epochs=2, batch_size=8, seed=0, callbacks=[lambda fitted: seen.append(flushes_denormals())])
    assert seen == [True, True]
    assert not flushes_denormals()


@supported
def test_svi_flushes_within_a_traced_step_and_leaves_the_process_as_it_was() -> None:
    """Small parameters stay where Pyro takes a step, and are zero where a traced one is taken."""
    weight = torch.nn.Parameter(torch.full((8,), 1e-40))

    def model(x: torch.Tensor) -> None:
        pyro.module("weights", torch.nn.ParameterList([weight]))
        pyro.sample("x", dist.Normal(weight * 1e38, 1.0).to_event(1), obs=x)  # 0.01, or 0 where the weight is flushed

    svi = pv.SVI(model, lambda x: None, lambda leaves: torch.optim.SGD(leaves, lr=0.0), engine="traced")
    with pyro.get_param_store().scope():
        losses = []
        for _ in range(4):
            losses.append(svi.update(torch.ones(8)).item())
            assert not flushes_denormals()
    constant = 8 * 0.5 * math.log(2 * math.pi)
    assert losses == pytest.approx([constant + 8 * 0.5 * 0.99**2] + [constant + 8 * 0.5] * 3, abs=1e-4)
