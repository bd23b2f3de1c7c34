"""VQ-VAE on CIFAR-10: normalised reconstruction error, perplexity of the codes, and bits per dimension.

    python benchmarks/papers/vqvae.py --data-root DIR
    python benchmarks/papers/vqvae.py --data-root DIR --only fsq --steps 500 --prior-steps 500

DIR/cifar10/cifar10_subset.npz has arrays `x_train` and `x_test`, (N, 32, 32, 3) of grey values from 0 to 255, the first 4,000
and 1,000 images of the two splits. The last 400 training images are for validation. A grid of 8 x 8 codes of 512 (fsq has 8 x 8
x 8 levels, so as many), two halvings, residual cells, and a discretised logistic likelihood of each colour, so that bounds are
of probability masses. Adam with a one-cycle schedule; the epoch with the best bound of the validation rows is kept. Then all is
frozen, and a transformer over the 64 code numbers is fitted in a second stage. The model is that of van den Oord et al. 2017,
arXiv:1711.00937, but for its networks and its likelihood.

The reconstruction error is the mean squared difference of x and E[x | z], divided by the variance of the training images'
values; error, perplexity and bounds are those of the test images.

Writes benchmarks/results/vqvae-DEVICE.json, code by code; what is there is kept unless --again.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam

SHAPE = (3, 32, 32)


def cifar(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images, (N, 3, 32, 32); with --smoke noise."""
    if options.smoke:
        return tuple(torch.randint(256, (40, *SHAPE)).float() for _ in range(3))  # type: ignore[return-value]
    with np.load(options.data_root / "cifar10" / "cifar10_subset.npz", allow_pickle=False) as found:
        train, test = (torch.tensor(found[name]).float().movedim(-1, 1).contiguous() for name in ("x_train", "x_test"))
    return train[:-400], train[-400:], test


def quantiser(name: str, grid: torch.Size) -> pv.nets.Quantiser:
    return pv.nets.FSQ((8, 8, 8), grid) if name == "fsq" else pv.nets.VQ(512, 64, grid)


def build(name: str, channels: tuple[int, ...]) -> pv.VQVAE:
    codes = quantiser(name, torch.Size((8, 8)))
    family = fam.DiscretizedLogistic(SHAPE, 256)
    encoder = pv.nets.GridEncoder(SHAPE, codes.width, channels, rescale=1 / 127.5)
    decoder = pv.nets.GridDecoder(codes.width, family.param_shape, channels)
    prior = pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape)
    return pv.VQVAE(prior, pv.Conditional(decoder, family), encoder, codes)


def bits(fitted: pv.Fit, x: Tensor) -> float:
    elbo = pv.importance(fitted, x, 1, proposal="guide").elbo.mean().item()
    return round(-elbo / (math.prod(SHAPE) * math.log(2)), 3)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    train, valid, test = cifar(options)

    def how(steps: int) -> dict[str, Any]:
        epochs = max(1, round(steps * options.batch_size / len(train)))
        rate = pv.schedules.one_cycle(options.rate)
        return {
            "epochs": epochs,
            "batch_size": options.batch_size,
            "validation": valid,
            "keep_best": True,
            "schedule": rate,
        }

    first = harness.fit(
        lambda: build(name, options.channels), train, options, options.seed, clip_norm=1e4, **how(options.steps)
    )
    usage = pv.code_usage(first, test)
    error = (pv.reconstruct(first, test, num_samples=1).cpu() - test).square().mean() / train.var()
    found = {
        **{key: getattr(options, key) for key in ("batch_size", "rate", "channels", "seed")},
        "reconstruction_error": round(error.item(), 4),
        "perplexity": round(usage.perplexity.item(), 1),
        "codes_used": usage.used.item(),
        "codes": usage.num_codes,
        "bits_per_dimension_uniform_prior": bits(first, test),
        "first": harness.end(first),
        "engine": first.settings["engine"],
    }
    pair: Any = first.pair
    pair.requires_grad_(False)

    def second_stage() -> pv.VQVAE:
        prior = pv.priors.Autoregressive(pair.codes.num_codes, pair.codes.index_shape, width=128, layers=2)
        return pv.VQVAE(prior, pair.likelihood, pair.encoder, pair.codes)

    second = harness.fit(second_stage, train, options, options.seed, **how(options.prior_steps))
    found |= {"bits_per_dimension_learned_prior": bits(second, test), "second": harness.end(second)}
    return found


def main() -> None:
    parser = harness.parser(__doc__, only=("fsq", "vq"), engine="auto", batch_size=64, rate=1e-3)
    parser.add_argument("--steps", type=int, default=10_000, help="updates of the first stage")
    parser.add_argument("--prior-steps", type=int, default=3_000, help="updates of the second stage")
    parser.add_argument("--channels", type=harness.integers, default=(64, 128))
    parser.add_argument("--seed", type=int, default=0)
    options = harness.parse(parser, steps=1, prior_steps=1, channels=(4, 8), batch_size=20)
    done = harness.Kept(options, "vqvae")
    for name in options.only:
        done.entry(
            f"{name}, {options.steps} and {options.prior_steps} updates", lambda name=name: measure(name, options)
        )


if __name__ == "__main__":
    main()
