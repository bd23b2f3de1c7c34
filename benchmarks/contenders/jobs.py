"""Cases e and p: whole processes. argv: a JSON spec with "job", "data_root", "epochs", ...

Each prints one JSON line; its parent takes the time, imports and compilation included. All fit 784-400-20 with ReLU, Adam at
1e-3 and batches of 256. In e they go from MNIST's files to a fitted model; the others see gray pixels, as their scripts do,
ours binary ones: drawn once, as their work has it, or anew at every step, as is usual. In p one fit to the binary rows is
shared by several processes of one thread each, each with its share of the rows of every minibatch.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from contenders.cases import CASES, LEARNING_RATE

CASE = CASES["e"]


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    import torch

    import pyrovae as pv
    from pyrovae import families as fam
    from pyrovae.data import load

    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    data = load("mnist", data_root=spec["data_root"])
    z = CASE.latent
    vae = pv.VAE(pv.priors.StandardNormal(z), pv.mlp(z, fam.Bernoulli(784)), pv.mlp(784, fam.Normal(z)))
    began = time.perf_counter()
    once = spec.get("once", False)
    fitted = pv.fit(
        vae,
        (torch.rand_like(data.x) < data.x).float() if once else data.x,
        epochs=spec["epochs"],
        batch_size=CASE.batch,
        learning_rate=LEARNING_RATE,
        transform=None if once else pv.transforms.Binarize(),
        seed=spec["seed"],
        device=spec["device"],
        engine=spec["engine"],
        threads=None if spec.get("by_rule") else spec["threads"],
        progress=False,
    )
    seconds = time.perf_counter() - began
    return {
        "loss": -fitted.history[-1]["elbo"],
        "fit_seconds": seconds,
        "epochs": len(fitted.history),
        "ran_as": fitted.settings["engine"],
    }


def pyro_tutorial(spec: dict[str, Any]) -> dict[str, Any]:
    """What Pyro's VAE tutorial does: torchvision's MNIST behind a DataLoader, SVI, Trace_ELBO.

    It loads in one process more; `loaders=0` loads in its own, which may be faster where cores are few.
    """
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO
    from torch.utils.data import DataLoader
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    from contenders.with_pyro import VAE

    torch.set_num_threads(spec["threads"])
    pyro.set_rng_seed(spec["seed"])
    pyro.enable_validation(False)  # gray pixels are outside of a Bernoulli's support
    device = spec["device"]
    images = MNIST(spec["data_root"], train=True, transform=ToTensor())
    loader = DataLoader(images, CASE.batch, shuffle=True, num_workers=spec["loaders"], pin_memory=device == "cuda")
    pair = VAE(CASE, device)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), Trace_ELBO())
    began = time.perf_counter()
    for _ in range(spec["epochs"]):
        total = 0.0
        for x, _ in loader:
            total += svi.step(x.reshape(len(x), -1).to(device))
    return {
        "loss": total / len(images),
        "fit_seconds": time.perf_counter() - began,
        "epochs": spec["epochs"],
    }


def pythae_pipeline(spec: dict[str, Any]) -> dict[str, Any]:
    """What pythae's readme does: all images as one array of [0, 1] into a TrainingPipeline."""
    import torch
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from torchvision.datasets import MNIST

    from contenders.with_pythae import model_of

    torch.set_num_threads(spec["threads"])
    torch.manual_seed(spec["seed"])
    images = MNIST(spec["data_root"], train=True).data.reshape(-1, 784).float() / 255
    with tempfile.TemporaryDirectory(prefix="pyrovae-speed-") as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=spec["epochs"],
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=CASE.batch,
            optimizer_cls="Adam",
            seed=spec["seed"],
            no_cuda=spec["device"] == "cpu",
        )
        model = model_of(CASE, spec["device"])
        began = time.perf_counter()
        TrainingPipeline(model=model, training_config=config)(train_data=images)
        seconds = time.perf_counter() - began
    with torch.no_grad():
        loss = float(model.to("cpu")({"data": images[:10000]}).loss)
    return {"loss": loss, "fit_seconds": seconds, "epochs": spec["epochs"]}


def together(spec: dict[str, Any]) -> dict[str, Any]:
    """One fit by so many processes."""
    number = spec.get("processes", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="pyrovae-speed-") as folder:
        into = Path(folder) / "said.json"
        command = [sys.executable, __file__, json.dumps({**spec, "job": spec["by"] + "_rank", "into": str(into)})]
        ranks = [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
        running = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for env in ranks]
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError("a process failed")
        said: dict[str, Any] = json.loads(into.read_text())
    return said


def ours_rank(spec: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    import pyrovae as pv
    from pyrovae import families as fam

    torch.set_num_threads(1)
    torch.manual_seed(spec["seed"])
    z = CASE.latent
    vae = pv.VAE(pv.priors.StandardNormal(z), pv.mlp(z, fam.Bernoulli(784)), pv.mlp(784, fam.Normal(z)))
    x = torch.from_numpy(np.load(spec["rows"])).float()
    how = {"batch_size": CASE.batch, "learning_rate": LEARNING_RATE, "seed": spec["seed"], "device": "cpu"}
    began = time.perf_counter()
    history = pv.fit(vae, x, epochs=spec["epochs"], progress=False, **how).history
    return finished(spec, -history[-1]["elbo"], time.perf_counter() - began)


def ddp_rank(spec: dict[str, Any]) -> dict[str, Any]:
    """The loop that one writes with DistributedDataParallel, on rows in memory."""
    import numpy as np
    import torch
    from torch import distributed, nn
    from torch.nn.parallel import DistributedDataParallel

    from contenders import by_hand

    torch.set_num_threads(1)
    torch.manual_seed(spec["seed"])
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    x = torch.from_numpy(np.load(spec["rows"])).float()
    nets, loss_function = by_hand.loss_of(CASE)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nets

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return loss_function(self.nets, rows)

    module = DistributedDataParallel(Loss())
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)
    shuffled = torch.Generator().manual_seed(spec["seed"])
    began = time.perf_counter()
    for _ in range(spec["epochs"]):
        total, batches = 0.0, torch.randperm(len(x), generator=shuffled).split(CASE.batch)
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = module(x[batch.tensor_split(size)[rank]])
            loss.backward()
            optimizer.step()
            total += loss.item()
    seconds = time.perf_counter() - began
    distributed.barrier()
    distributed.destroy_process_group()
    return finished(spec, total / len(batches), seconds)


def finished(spec: dict[str, Any], loss: float, seconds: float) -> dict[str, Any]:
    """What a rank says; the first leaves it for the process that has started it."""
    said = {"loss": loss, "fit_seconds": seconds, "epochs": spec["epochs"]}
    if os.environ["RANK"] == "0":
        Path(spec["into"]).write_text(json.dumps(said))
    return said


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print("\n" + json.dumps(globals()[given["job"]](given)), flush=True)
