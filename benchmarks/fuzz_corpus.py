"""The whole files that `fuzz.py` damages: tables, arrays, images, labels, and runs of Python and of the command line."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.options import Options
from pyrovae.app.run import fit_run
from pyrovae.data.load import read

FIT: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 0, "device": "cpu", "progress": False, "engine": "eager"}


def small_vae() -> Any:
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.MixtureOfNormals(2, num_components=3), pv.mlp(2, fam.Normal(4), (8,)), pv.mlp(4, fam.Normal(2), (8,))
    )


def small_vqvae() -> Any:
    codes = pv.nets.FSQ((5, 3), grid=2)
    return pv.VQVAE(
        prior=pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape),
        likelihood=pv.Conditional(pv.nets.Behind(pv.nets.Flat((2, 2)), pv.nets.MLP(4, (1, 4))), fam.Bernoulli(4)),
        encoder=pv.nets.MLP(4, (codes.width, *codes.grid)),
        codes=codes,
    )


def rows_of_numbers() -> torch.Tensor:
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def corpus(folder: Path) -> None:
    """The whole files."""
    draw = np.random.default_rng(0)
    table = pd.DataFrame(draw.normal(size=(40, 4)).round(3))
    table[3] = draw.integers(0, 3, 40)
    table.to_csv(folder / "table.csv", index=False)
    mixed = table.rename(columns=str).assign(
        day=pd.date_range("2020-01-01", periods=40).astype(str), city=["Oslo", "Rome"] * 20
    )
    mixed["sure"] = [True, False, None, True] * 10
    mixed.to_csv(folder / "mixed.csv", index=False)
    with contextlib.suppress(ImportError):
        mixed.to_parquet(folder / "table.parquet")
        numbers = table.rename(columns=str)
        numbers.to_parquet(folder / "numbers.parquet", row_group_size=15)
        numbers.to_feather(folder / "numbers.arrow")
    with contextlib.suppress(ImportError):
        mixed.to_excel(folder / "table.xlsx", index=False)
    np.save(folder / "rows.npy", draw.normal(size=(30, 3)).astype("f4"))
    np.savez(folder / "rows.npz", x=draw.integers(0, 9, (30, 3)), y=draw.integers(0, 2, 30))
    for name in ("a.png", "b.jpg", "c.gif", "d.tif", "e.webp", "f.bmp"):
        images = folder / f"images {name[2:]}"  # one that is whole beside it
        images.mkdir()
        Image.fromarray(draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(images / name)
        Image.fromarray(np.arange(432, dtype=np.uint8).reshape(12, 12, 3)).save(images / "whole.png")
    (folder / "rows.csv").write_text("id,a,b\n" + "".join(f"r{n},{n % 7},{n * 0.37:.2f}\n" for n in range(30)))
    (folder / "labels.csv").write_text("id,label\n" + "".join(f"r{n},{'ab'[n % 2]}\n" for n in range(12)))
    choices = [{"type": "choices", "from_name": "label", "value": {"choices": [name]}} for name in "ab"]
    tasks = [
        {"id": n, "data": {"pyrovae_row": f"r{n}"}, "annotations": [{"result": [choices[n % 2]]}]} for n in range(12)
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    pv.tables.infer(pd.read_csv(folder / "table.csv")).write(folder / "columns.yaml")
    (folder / "python").mkdir()
    pv.fit(small_vae(), rows_of_numbers(), checkpoint=folder / "python" / "run", **FIT)
    (folder / "codebook").mkdir()
    pv.fit(small_vqvae(), (rows_of_numbers() > 0).float(), checkpoint=folder / "codebook" / "run", **FIT)
    (folder / "app").mkdir()
    with contextlib.suppress(ImportError):
        mixed.to_parquet(folder / "app" / "mixed.parquet", row_group_size=15)
        mixed.to_feather(folder / "app" / "mixed.arrow")
    shutil.copy(folder / "mixed.csv", folder / "app" / "mixed.csv")
    options = Options.of("fit", epochs=2, hidden=(8,), latent=2, search="none")
    fit_run(
        read(str(folder / "app" / "mixed.csv"), label="city"),
        options,
        folder / "app" / "run",
        progress=False,
        engine="eager",
    )
