"""Does what holds on the CPU hold on another device? One command:

    python benchmarks/device_checks.py --device cuda
    python benchmarks/device_checks.py --device cuda --only levels,groups

Fits, resumes, evaluates, generates, saves and loads on the device, in every engine that it has; on CUDA every step runs under
PyTorch's check that raises when the host waits for the device. Prints a line for each check, and exits with 1 if one fails.

Writes benchmarks/results/device_checks_DEVICE.json: the machine, the versions, and the result of each check that was run.
With --only, results of other checks stay in that file if they come from the same machine and versions.
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.engine import compiled as engine


def vae(family: fam.Family | None = None, prior: Any = None) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(
        prior or pv.priors.StandardNormal(5),
        pv.mlp(5, family or fam.BetaBinomial(30, 9), hidden=(64,)),
        pv.mlp(30, fam.Normal(5), hidden=(64,)),
    )


def vqvae(codes: pv.nets.Quantiser) -> pv.VQVAE:
    torch.manual_seed(0)
    return pv.VQVAE(
        prior=pv.priors.Autoregressive(codes.num_codes, codes.index_shape, width=16, layers=1),
        likelihood=pv.Conditional(
            pv.nets.Behind(pv.nets.Flat((3, 4)), pv.nets.MLP(12, fam.BetaBinomial(30, 9).param_shape)),
            fam.BetaBinomial(30, 9),
        ),
        encoder=pv.nets.MLP(30, (codes.width, *codes.grid)),
        codes=codes,
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


class Classes(nn.Module):
    """p(y) p(x | y) with a guide q(y | x) that is summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.rates, self.classifier = nn.Parameter(torch.randn(3, 30)), nn.Linear(30, 3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)))
            pyro.sample("x", dist.Poisson(self.rates[y].exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.classifier(x)), infer={"enumerate": "parallel"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="checks whose names contain one of these, by commas")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    x = counts()
    options: dict[str, Any] = {"epochs": 4, "batch_size": 64, "seed": 0, "device": device, "clip_norm": 10.0}
    options["schedule"] = [pv.schedules.one_cycle(1e-2), pv.schedules.kl_warmup(2)]
    results: dict[str, str] = {}
    kept: dict[str, str] = {}
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = Path(__file__).parent / "results" / f"device_checks_{device.type}.json"
    about = {"device": machine, "torch": str(torch.__version__), "pyro": pyro.__version__}
    if arguments.only and out.is_file():
        before = json.loads(out.read_text())
        if {name: before.pop(name, None) for name in about} == about:
            kept = before
    names = ["eager", "traced", "compiled", *(["graphed"] if device.type == "cuda" else [])]

    def check(name: str, run: Callable[[], str]) -> None:
        if arguments.only and not any(part in name for part in arguments.only.split(",")):
            return
        began = time.perf_counter()
        torch.manual_seed(0)  # the same numbers whatever ran before
        try:
            said = run()
            results[name] = f"ok: {said}"
        except Exception as error:  # every failure is a line of the report
            results[name] = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name:32} {results[name]}  ({time.perf_counter() - began:.1f} s)", flush=True)
        # after each check, so that a run that is cut short leaves its results
        out.write_text(json.dumps({**about, **kept, **results}, indent=1) + "\n")

    def on_device() -> str:
        fitted = pv.fit(vae(), x, **options)
        assert fitted.device.type == device.type
        return f"ELBO {fitted.history[-1]['elbo']:.3f} nats per row"

    def bare_params() -> str:
        one = pv.fit(plain_functions(), torch.randn(500, 30), **{**options, "schedule": None})
        return f"bare params on {one.device}: ELBO {one.history[-1]['elbo']:.3f}"

    def no_waiting() -> str:
        """Every step as an engine runs it; the comparison at an epoch's first step, which waits, is left out."""

        @contextlib.contextmanager
        def forbidden() -> Iterator[None]:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")

        def watched(inner: Any) -> Any:
            def step(*args: Any) -> Tensor:
                first = getattr(args[0], "_stale", False) or not getattr(args[0], "_bound", True)
                with contextlib.nullcontext() if first else forbidden():
                    return inner(*args)

            return step

        kinds = (engine.Eager, engine.Traced)
        steps = [kind.step for kind in kinds]
        count = 0
        try:
            for kind in kinds:
                kind.step = watched(kind.step)  # type: ignore[method-assign]
            for name in names:
                families = (
                    fam.BetaBinomial(30, 9),
                    fam.Binomial(30, 9),
                    fam.Normal(30),
                    fam.Normal(30, scale="shared"),
                )
                for family in families if name in ("eager", "traced") else families[:1]:
                    pv.fit(vae(family), x, **options, engine=name)
                    count += 1
                pv.fit(vae(), x, **options, engine=name, loss=pv.Trace_ELBO(num_particles=3))
                pv.fit(vae(), x, **options, engine=name, loss=pv.IWELBO(3))
                mixture = pv.priors.MixtureOfNormals(5)
                binary = pv.transforms.Binarize()
                pv.fit(vae(fam.Bernoulli(30), mixture), x / 9, **options, engine=name, transform=binary)
                pv.fit(vqvae(pv.nets.FSQ((5, 4, 3), 4)), x, **options, engine=name)
                count += 4
                if name != "eager" and find_spec(
                    "vector_quantize_pytorch"
                ):  # eager steps ask whether the codes have started
                    pv.fit(vqvae(pv.nets.VQ(30, 3, 4)), x, **options, engine=name)
                    count += 1
        finally:
            for kind, step in zip(kinds, steps):
                kind.step = step  # type: ignore[method-assign]
        return f"{count} fits, every step" if device.type == "cuda" else f"{count} fits (the check itself needs CUDA)"

    def engines() -> str:
        """All from one seed, with the eager noise: the same losses."""
        found = {}
        with torch._inductor.config.patch(fallback_random=True):
            for name in names:
                fitted = pv.fit(vae(), x, **options, engine=name)
                assert fitted.settings["engine"] == name and "engine_notes" not in fitted.settings, fitted.settings
                found[name] = fitted.history[-1]["elbo"]
        worst = max(abs(value - found["eager"]) / abs(found["eager"]) for value in found.values())
        assert worst < 1e-4, found
        return f"{', '.join(found)} differ by at most {worst:.1e}"

    def enumerated() -> str:
        elbos = []
        for name in names:
            torch.manual_seed(0)
            elbos.append(pv.fit(Classes(), x, **{**options, "epochs": 30}, engine=name).history[-1]["elbo"])
        assert max(elbos) - min(elbos) < 0.5, elbos
        return f"classes summed out: ELBO {', '.join(f'{e:.2f}' for e in elbos)}"

    def grouped() -> str:
        """Few labels: rows that know y and rows that do not are two batches of one step."""
        y = torch.arange(len(x)) % 3
        y[30:] = -1
        elbos = []
        for name in names:
            torch.manual_seed(0)
            pair = pv.SSVAE(
                label_prior=pv.priors.Categorical(3),
                prior=pv.priors.StandardNormal(5),
                likelihood=pv.mlp((5, 3), fam.BetaBinomial(30, 9), hidden=(64,)),
                encoder=pv.mlp((30, 3), fam.Normal(5), hidden=(64,)),
                classifier=pv.mlp(30, fam.Categorical((), 3), hidden=(64,)),
                code=pv.nets.OneHot(3),
                alpha=10.0,
            )
            groups = {"": 50, "y": 10}
            fitted = pv.fit(pair, {"x": x, "y": y}, **options | {"epochs": 30}, engine=name, group_size=groups)
            elbos.append(fitted.history[-1]["elbo"])
        assert max(elbos) - min(elbos) < 0.5, elbos
        found = pv.classify(fitted, {"x": x}, num_samples=3)
        assert torch.isfinite(found.guide).all() and torch.isfinite(found.joint).all()
        return f"ELBO {', '.join(f'{e:.2f}' for e in elbos)}"

    def levels(kind: str) -> str:
        """Engines from one seed, with the eager noise in its order; bfloat16 beside them."""
        likelihood = fam.BetaBinomial(30, 9)
        images = torch.rand(128, 8, 8, generator=torch.Generator().manual_seed(0)).round()
        builds: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
            "bottom up": (lambda: pv.HierarchicalVAE.of_levels(likelihood, (8, 4, 2), (32, 16, 8)), x),
            "ladder": (lambda: pv.LadderVAE.of_levels(likelihood, (8, 4, 2), (32, 16, 8)), x),
            "NVAE": (lambda: pv.NVAE(fam.Bernoulli((8, 8)), channels=(8, 16), groups=(1, 2)), images),
        }
        build, rows = builds[kind]
        found = {}
        # draws that do not depend on each other may change places to save memory, and with them the noise
        same_noise = {"fallback_random": True, "reorder_for_peak_memory": False}
        for name, precision in [*((name, "float32") for name in names), (names[-1], "bfloat16")]:
            torch.manual_seed(0)
            with torch._inductor.config.patch(same_noise):
                fitted = pv.fit(build(), rows, **options, engine=name, precision=precision)
            assert fitted.settings["engine"] == name, fitted.settings
            found[name, precision] = [epoch["elbo"] for epoch in fitted.history]
        first = found[names[0], "float32"][-1]
        worst = {
            p: max(abs(e[-1] / first - 1) for (_, q), e in found.items() if q == p) for p in ("float32", "bfloat16")
        }
        assert worst["float32"] < 1e-3 and worst["bfloat16"] < 0.02, found
        assert torch.isfinite(pv.generate(fitted, 3)).all() and torch.isfinite(pv.log_likelihood(fitted, rows, 5)).all()
        return f"engines differ by at most {worst['float32']:.1e} (bfloat16 {worst['bfloat16']:.1e})"

    def half() -> str:
        name = names[-1]
        full, low = (pv.fit(vae(), x, **options, engine=name, precision=p) for p in ("float32", "bfloat16"))
        a, b = full.history[-1]["elbo"], low.history[-1]["elbo"]
        assert abs(a - b) < 0.02 * abs(a), (a, b)
        return f"{name}: ELBO {a:.3f} in float32, {b:.3f} with products in bfloat16"

    def streamed() -> str:
        loader = DataLoader(TensorDataset(x), batch_size=64, num_workers=1)
        one, two = vae(), vae()
        pv.fit(one, x, **options)
        pv.fit(two, loader, **options)
        worst = max((a - b).abs().max().item() for a, b in zip(one.parameters(), two.parameters()))
        assert worst < 1e-4, worst
        return f"streamed by way of pinned memory: weights differ by at most {worst:.1e} from the resident fit's"

    def drop_in() -> str:
        rows = x.to(device)
        ends = []
        for kind in (pyro.infer.SVI, pv.SVI):
            with pyro.get_param_store().scope():
                net = vae().to(device)
                pyro.module("vae", net)
                guide = AutoNormal(net.model)
                pyro.set_rng_seed(0)
                svi = kind(net.model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
                ends.append([svi.step(rows) for _ in range(20)][-1])
        return f"loss after 20 steps {ends[0]:.1f} with Pyro's SVI, {ends[1]:.1f} with ours"

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

    def estimators() -> str:
        """What is asked of a fit gives the same answers on the device as on the CPU, up to its Monte Carlo error."""
        torch.manual_seed(0)
        small = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Poisson(30)), pv.mlp(30, fam.Normal(2)))
        fitted = pv.fit(small, x, **options)
        with tempfile.TemporaryDirectory() as folder:
            pv.save(fitted, f"{folder}/run")
            cpu, rows = pv.load(f"{folder}/run", device="cpu"), x[:20]
        exact = [pv.quadrature(f, rows).log_likelihood for f in (cpu, fitted)]
        worst = (exact[0] - exact[1]).abs().max().item()
        assert worst < 1e-2, worst
        by_sampling = {
            "refined": pv.log_likelihood(fitted, rows, 2000, seed=0),
            "AIS": pv.ais(fitted, rows, seed=0).log_likelihood,
        }
        off = {name: (value - exact[0]).mean().item() for name, value in by_sampling.items()}
        assert all(abs(value) < 0.2 for value in off.values()), off
        gap = pv.bdmc(fitted, rows, num_temperatures=100, num_chains=4, seed=0).summary()["gap"]
        assert math.isfinite(gap), gap
        pv.refine(fitted, rows, seed=0)
        pv.posterior(fitted, rows, 3, moves=5)
        said = ", ".join(f"{name} {value:+.3f}" for name, value in off.items())
        return f"quadrature {worst:.1e} from the CPU's; {said} from it; gap of the bounds {gap:.3f}"

    def reports() -> str:
        fitted = pv.fit(vae(), x, **options)
        report = pv.criticise(fitted, x[:60], train=x[60:], seed=0)
        pv.to_arviz(fitted, x[:10])
        scores = pv.anomaly_score(fitted, x[:10]), pv.entry_densities(fitted, x[:10])
        assert scores
        return f"{len(report.findings)} findings"

    def missing() -> str:
        rows = x.clone()
        rows[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.2] = float("nan")
        torch.manual_seed(0)
        encoder = pv.Conditional(pv.nets.WithMask(pv.nets.MLP((30, 30), fam.Normal(5).param_shape)), fam.Normal(5))
        likelihood = pv.observed_only(pv.mlp(5, fam.BetaBinomial(30, 9)))
        fitted = pv.fit(pv.VAE(pv.priors.StandardNormal(5), likelihood, encoder), rows, **options)
        filled = pv.impute(fitted, rows[:50], num_samples=100, seed=0)
        means = torch.as_tensor(filled.mean)
        assert torch.isfinite(means).all()
        return f"{int(rows[:50].isnan().sum())} entries filled in"

    def commands() -> str:
        """Fits a table with texts and gaps and asks everything of it, as a user types it."""
        generator = torch.Generator().manual_seed(2)
        with tempfile.TemporaryDirectory() as folder:
            table, run = f"{folder}/table.csv", f"{folder}/run"
            lines = ["size,weight,kind,count"]
            for i in range(300):
                size, kind = torch.randn((), generator=generator).item(), "ab"[i % 2]
                weight = "" if i % 7 == 0 else f"{2 * size + (kind == 'a'):.3f}"
                lines.append(f"{size:.3f},{weight},{kind},{i % 5}")
            Path(table).write_text("\n".join(lines) + "\n")
            asked = [
                ("fit", table, "--out", run, "--epochs", "5"),
                ("evaluate", run),
                ("generate", run, "--out", f"{folder}/new.csv"),
                ("encode", run, "--out", f"{folder}/codes.npy"),
                ("impute", run, table, "--out", f"{folder}/full.csv"),
                ("outliers", run, table, "--out", f"{folder}/strange.csv"),
                ("check", run),
                ("fit", table, "--out", f"{run}2", "--epochs", "5", "--condition", "kind"),
                ("evaluate", f"{run}2"),
            ]
            for words in asked:
                command = [sys.executable, "-m", "pyrovae", *words, "--device", device.type]
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
                assert done.returncode in ((0, 1) if words[0] == "check" else (0,)), (words, done.stderr[-800:])
        return f"{len(asked)} commands"

    check("fit", on_device)
    check("bare params", bare_params)
    check("no step waits for the device", no_waiting)
    check("engines", engines)
    check("enumeration", enumerated)
    check("groups of rows", grouped)
    for kind in ("bottom up", "ladder", "NVAE"):
        check(f"levels, {kind}", lambda kind=kind: levels(kind))  # type: ignore[misc]
    check("bfloat16", half)
    check("stream", streamed)
    check("pyrovae.SVI", drop_in)
    check("resume", resumes)
    check("save, load, CPU and back", crosses)
    check("generate, reconstruct, posterior", questions)
    check("estimators", estimators)
    check("criticism", reports)
    check("missing entries", missing)
    check("command line", commands)
    if not results:
        parser.error(f"no check has a name with {arguments.only}")
    sys.exit(any(said.startswith("FAILED") for said in results.values()))


if __name__ == "__main__":
    main()
