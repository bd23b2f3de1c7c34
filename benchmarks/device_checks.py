"""Does what holds on the CPU hold on another device? One command:

    python benchmarks/device_checks.py --device cuda

Fits, resumes, evaluates, generates, saves and loads on the device; on CUDA every step runs under PyTorch's check that raises
when the host waits for the device. Prints a line a check, exits with 1 if one fails, writes
benchmarks/results/device_checks_DEVICE.json.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.infer import engine


def vae(family: fam.Family | None = None, prior: Any = None) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        prior or pv.priors.StandardNormal(5),
        pv.mlp(5, family or fam.BetaBinomial(30, 9), hidden=(64,)),
        pv.mlp(30, fam.Normal(5), hidden=(64,)),
    )


def counts() -> Tensor:
    return torch.randint(0, 10, (500, 30), generator=torch.Generator().manual_seed(0)).float()


def plain_functions() -> pv.Pair:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", lambda: 0.1 * torch.randn(2, 30))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(weight.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        weight = pyro.param("guide_weight", lambda: 0.1 * torch.randn(30, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 1.0).to_event(1))

    return pv.Pair(model, guide)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    x = counts()
    options: dict[str, Any] = {"epochs": 4, "batch_size": 64, "seed": 0, "device": device, "clip_norm": 10.0}
    options["schedule"] = [pv.schedules.one_cycle(1e-2), pv.schedules.kl_warmup(2)]
    results: dict[str, str] = {}

    def check(name: str, run: Callable[[], str]) -> None:
        began = time.perf_counter()
        try:
            said = run()
            results[name] = f"ok: {said}"
        except Exception as error:  # every failure is a line of the report
            results[name] = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name:32} {results[name]}  ({time.perf_counter() - began:.1f} s)", flush=True)

    def on_device() -> str:
        fitted = pv.fit(vae(), x, **options)
        assert fitted.device.type == device.type
        return f"ELBO {fitted.history[-1]['elbo']:.3f} nats per row"

    def bare_params() -> str:
        one = pv.fit(plain_functions(), torch.randn(500, 30), **{**options, "schedule": None})
        return f"bare params on {one.device}: ELBO {one.history[-1]['elbo']:.3f}"

    def no_waiting() -> str:
        step = engine.Eager.step

        def watched(self: engine.Eager, index: Tensor, weights: Any) -> Tensor:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                return step(self, index, weights)
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")

        engine.Eager.step = watched  # type: ignore[method-assign]
        try:
            for family in (
                fam.BetaBinomial(30, 9),
                fam.Binomial(30, 9),
                fam.Normal(30),
                fam.Normal(30, scale="shared"),
            ):
                pv.fit(vae(family), x, **options)
                pv.fit(vae(family), x, **{**options, "loss": pv.Trace_ELBO(num_particles=3)})
            for prior in (pv.priors.MixtureOfNormals(5), dist.Normal(torch.zeros(5), 1.0).to_event(1)):
                pv.fit(vae(prior=prior), x, **options)
            pv.fit(vae(fam.Bernoulli(30)), x / 9, **options, transform=pv.transforms.Binarize())
        finally:
            engine.Eager.step = step  # type: ignore[method-assign]
        return "11 fits, every step" if device.type == "cuda" else "11 fits (the check itself needs CUDA)"

    def resumes() -> str:
        with tempfile.TemporaryDirectory() as folder:
            whole = vae()
            pv.fit(whole, x, **options)
            pv.fit(vae(), x, **options, checkpoint=f"{folder}/run", callbacks=[lambda f: len(f.history) == 2])
            again = vae()
            pv.fit(again, x, **options, checkpoint=f"{folder}/run", resume=True)
            assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
        return "4 epochs stopped at 2 equal 4 epochs bit for bit"

    def crosses() -> str:
        with tempfile.TemporaryDirectory() as folder:
            fitted = pv.fit(vae(), x, **options)
            pv.save(fitted, f"{folder}/run")
            cpu, back = pv.load(f"{folder}/run"), pv.load(f"{folder}/run", device=device)
            difference = (pv.encode(cpu, x) - pv.encode(back, x).cpu()).abs().max().item()
            assert difference < 1e-3, difference
            assert torch.equal(pv.encode(back, x), pv.encode(fitted, x))
            a, b = (pv.log_likelihood(f, x, 2000, seed=0).mean().item() for f in (cpu, back))
            assert abs(a - b) < 0.1, (a, b)
        return f"codes differ by {difference:.1e}, log p(x) {a:.3f} on the CPU and {b:.3f} on the device"

    def questions() -> str:
        fitted = pv.fit(vae(), x, **options)
        made = [
            pv.generate(fitted, 7),
            pv.reconstruct(fitted, x),
            pv.posterior(fitted, x, 3),
            pv.decode(fitted, torch.zeros(4, 5)),
        ]
        assert all(m.device.type == device.type and torch.isfinite(m).all() for m in made)
        return ", ".join(str(tuple(m.shape)) for m in made)

    check("fit", on_device)
    check("bare params", bare_params)
    check("no step waits for the device", no_waiting)
    check("resume", resumes)
    check("save, load, CPU and back", crosses)
    check("generate, reconstruct, posterior", questions)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = Path(__file__).parent / "results" / f"device_checks_{device.type}.json"
    out.write_text(
        json.dumps({"device": name, "torch": torch.__version__, "pyro": pyro.__version__, **results}, indent=1) + "\n"
    )
    sys.exit(any(said.startswith("FAILED") for said in results.values()))


if __name__ == "__main__":
    main()
