"""VQ-VAE on CIFAR-10: normalised reconstruction error, perplexity of the codes, and bits per dimension.

    python benchmarks/papers/vqvae.py --data-root DIR --device cuda
    python benchmarks/papers/vqvae.py --data-root DIR --only fsq --steps 500 --prior-steps 500 --width 64

DIR/cifar10/cifar10_subset.npz has arrays `x_train` and `x_test`, (N, 32, 32, 3) of grey values from 0 to 255, the first 4,000
and 1,000 images of the two splits. The last 400 training images are for validation; the others are seen as they are and
mirrored. The networks are those of van den Oord et al. 2017, arXiv:1711.00937, section 4.1: two convolutions of stride 2 and
two residual blocks of --width units, and back; --depth codes of 512 at each of 8 x 8 places. Fits:

    squared   VQ and the squared error, weighted as in the notebook that has the published figures (Sonnet's vqvae_example):
              its objective is a Normal of fixed variance. Bits per dimension are not defined.
    vq        VQ and a discretised logistic likelihood of each colour, so that bounds are of probability masses
    fsq       8 x 8 x 8 levels, as many codes, and the same likelihood
    vae       a VAE with 64 latent numbers a place in place of codes: the same networks, likelihood, and steps

The codes follow their vectors by moving averages in `squared` and `vq`. Adam with a one-cycle schedule; the epoch with the best
bound of the validation rows is kept. Then, for `vq` and `fsq`, all is frozen, and a transformer over the code numbers is fitted
in a second stage, the best epoch kept again.

The reconstruction error is the mean squared difference of x and E[x | z], divided by the variance of the training images'
values; published are 0.056 and a perplexity of 326 after 10,000 steps of 32 images, both of one minibatch of the training rows.
Here they are of the test images and of the training images, and perplexity as well of groups of 32 of them.

Writes benchmarks/results/vqvae-DEVICE.json after each stage, and vqvae-FIT-DEVICE.png: test images, their reconstructions,
draws under the uniform prior, and draws under the learned one, two rows each. What is there is kept unless --again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.objectives.codes import perplexity

SHAPE, GRID, K = (3, 32, 32), (8, 8), 512
SHOWN = 16  # images of a kind in the picture


def cifar(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Training images, also mirrored, validation and test images, (N, 3, 32, 32); with --smoke noise."""
    if options.smoke:
        return tuple(torch.randint(256, (40, *SHAPE)).float() for _ in range(3))  # type: ignore[return-value]
    with np.load(options.data_root / "cifar10" / "cifar10_subset.npz", allow_pickle=False) as found:
        train, test = (torch.tensor(found[name]).float().movedim(-1, 1).contiguous() for name in ("x_train", "x_test"))
    train, valid = train[:-400], train[-400:]
    return torch.cat([train, train.flip(-1)]), valid, test


# --- networks ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """`h + W_2 a(W_1 a(h))`, W_1 of 3 x 3 and W_2 of 1 x 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        self.change = nn.Sequential(*parts)

    def forward(self, h: Tensor) -> Tensor:
        changed: Tensor = h + self.change(h)
        return changed


class Encoder(nn.Module):
    """Images (*batch, 3, 32, 32) to (*batch, *out_shape), out_shape ending in (8, 8)."""

    def __init__(self, out_shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.out_shape, self.width = torch.Size(out_shape), width
        self.net = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
            Block(width),
            Block(width),
            nn.ReLU(),
            nn.Conv2d(width, self.out_shape[:-2].numel(), 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((x.reshape(-1, *SHAPE) - 127.5) / 127.5)
        return out.reshape(*x.shape[:-3], *self.out_shape)


class Decoder(nn.Module):
    """(*batch, *in_shape), in_shape ending in (8, 8), to the parameters of images, (*batch, *out_shape)."""

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.width = torch.Size(in_shape), torch.Size(out_shape), width
        self.net = nn.Sequential(
            nn.Conv2d(self.in_shape[:-2].numel(), width, 3, padding=1),
            Block(width),
            Block(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, self.out_shape[:-2].numel(), 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.net(z.reshape(-1, self.in_shape[:-2].numel(), *GRID))
        return out.reshape(*z.shape[: z.dim() - len(self.in_shape)], *self.out_shape)


class GreyValues(nn.Module):
    """The means of a Normal of grey values by a network whose outputs are between -1 and 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = 127.5 * self.net(z) + 127.5
        return out


def build(name: str, options: argparse.Namespace, variance: float) -> nn.Module:
    family: fam.Family = fam.DiscretizedLogistic(SHAPE, 256)
    if name == "vae":
        z = fam.Normal((64, *GRID))
        encoder = pv.Conditional(Encoder(z.param_shape, options.width), z)
        decoder: nn.Module = Decoder(z.event_shape, family.param_shape, options.width)
        return pv.VAE(pv.priors.StandardNormal(z.event_shape), pv.Conditional(decoder, family), encoder)
    grid = GRID if options.depth == 1 else (options.depth, *GRID)
    codes: pv.nets.Quantiser = pv.nets.FSQ((8, 8, 8), grid)
    if name == "vq":
        codes = pv.nets.VQ(K, 64, grid, commitment=options.commitment)
    if name == "squared":
        codes = pv.nets.VQ(K, 64, grid, rotation=False)
        # there the means over elements of (x - m)^2 / variance and of (e - z)^2 / 4 are added
        share = codes.commitment / 0.25 * math.prod(codes.event_shape) / math.prod(SHAPE)
        family = fam.Normal(SHAPE, scale=math.sqrt(variance / share / 2))
    decoder = Decoder(codes.event_shape, family.param_shape, options.width)
    if name == "squared":
        decoder = GreyValues(decoder)
    prior = pv.priors.Categorical(codes.num_codes, event_shape=codes.index_shape)
    return pv.VQVAE(prior, pv.Conditional(decoder, family), Encoder(codes.event_shape, options.width), codes)


# --- measurements ------------------------------------------------------------------------------------------------------


def bits(fitted: pv.Fit, x: Tensor) -> float:
    elbo = pv.importance(fitted, x, 1, proposal="guide", seed=0).elbo.mean().item()
    return round(-elbo / (math.prod(SHAPE) * math.log(2)), 4)


def errors(fitted: pv.Fit, x: Tensor, variance: float) -> float:
    again = pv.reconstruct(fitted, x, num_samples=1, seed=0).cpu()
    return round(((again - x).square().mean() / variance).item(), 4)


def usage(fitted: pv.Fit, x: Tensor) -> dict[str, float]:
    codes: Any = fitted.pair.codes
    numbers = codes.indices(pv.encode(fitted, x)).flatten(1).cpu()
    groups = numbers[: len(numbers) // 32 * 32].reshape(-1, 32 * numbers.shape[1])
    in_groups = [perplexity(torch.bincount(group, minlength=codes.num_codes)).item() for group in groups]
    found = pv.code_usage(fitted, x)
    return {
        "perplexity": round(found.perplexity.item(), 1),
        "perplexity_of_32_images": round(sum(in_groups) / len(in_groups), 1),
        "codes_used": int(found.used.item()),
    }


def measure(name: str, options: argparse.Namespace, entry: dict[str, Any], keep: Callable[[], None]) -> None:
    train, valid, test = cifar(options)
    seen = train[: len(test)]
    variance = train.var().item()

    def how(steps: int, rate: float) -> dict[str, Any]:
        return {
            "epochs": max(1, round(steps * options.batch_size / len(train))),
            "batch_size": options.batch_size,
            "validation": valid,
            "keep_best": True,
            "schedule": pv.schedules.one_cycle(rate),
            "clip_norm": 1e4,
            "precision": options.precision,
        }

    first = harness.fit(
        lambda: build(name, options, variance), train, options, options.seed, **how(options.steps, options.rate)
    )
    chosen = ("steps", "prior_steps", "batch_size", "rate", "prior_rate", "width", "depth", "precision", "seed")
    entry |= {key: getattr(options, key) for key in chosen}
    if name == "vq":
        entry["commitment"] = options.commitment
    entry |= {"engine": first.settings["engine"], "first": harness.end(first)}
    entry |= {"error": errors(first, test, variance), "error_of_training_images": errors(first, seen, variance)}
    if name != "vae":
        entry |= {"codes": usage(first, test), "codes_of_training_images": usage(first, seen)}
    if name != "squared":
        entry["bits_per_dimension"] = bits(first, test)
        entry["bits_per_dimension_of_training_images"] = bits(first, seen)
    keep()
    shown = [test[:SHOWN], pv.reconstruct(first, test[:SHOWN], num_samples=1, seed=0)]
    shown.append(pv.generate(first, SHOWN, mean=True, seed=0))
    draw(name, options, shown)
    if name in ("squared", "vae"):
        return

    pair: Any = first.pair
    pair.requires_grad_(False)

    def second_stage() -> pv.VQVAE:
        prior = pv.priors.Autoregressive(
            K, pair.codes.index_shape, width=options.prior_width, layers=options.prior_layers
        )
        return pv.VQVAE(prior, pair.likelihood, pair.encoder, pair.codes)

    def decayed(leaves: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(leaves, lr=options.prior_rate, weight_decay=0.1, fused=True)

    second = harness.fit(
        second_stage, train, options, options.seed, optimizer=decayed, **how(options.prior_steps, options.prior_rate)
    )
    entry |= {"second": harness.end(second), "bits_per_dimension_learned_prior": bits(second, test)}
    # nats of an image's codes; each costs log2 K bits under the uniform prior
    nats = pv.kl_by_site(second, test, 1)["z"].mean().item() / pair.codes.index_shape.numel()
    entry |= {"bits_a_code": round(math.log2(K), 3), "bits_a_code_learned_prior": round(nats / math.log(2), 3)}
    keep()
    draw(name, options, [*shown, pv.generate(second, SHOWN, mean=True, seed=0)])


def draw(name: str, options: argparse.Namespace, shown: Sequence[Tensor]) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    ax = pv.plots.images(torch.cat([images.cpu() for images in shown]).clamp(0, 255), SHAPE, columns=8, vmax=255)
    depth = "" if options.depth == 1 else f"-{options.depth}"
    pv.plots.save(ax, options.out / f"vqvae-{name}{depth}-{options.device}.png")


def main() -> None:
    parser = harness.parser(
        __doc__, only=("vq", "fsq", "squared", "vae"), engine="auto", batch_size=128, rate=1e-3, precision="float32"
    )
    parser.add_argument("--steps", type=int, default=10_000, help="updates of the first stage")
    parser.add_argument("--prior-steps", type=int, default=3_000, help="updates of the second stage")
    parser.add_argument("--prior-rate", type=float, default=1e-3, help="peak learning rate of the second stage")
    parser.add_argument("--prior-width", type=int, default=128)
    parser.add_argument("--prior-layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="units of the networks' layers")
    parser.add_argument("--depth", type=int, default=1, help="codes a place")
    parser.add_argument("--commitment", type=float, default=0.25, help="weight of the commitment term of vq")
    parser.add_argument("--seed", type=int, default=0)
    options = harness.parse(parser, steps=1, prior_steps=1, width=8, batch_size=20, prior_width=8, prior_layers=1)
    done = harness.Kept(options, "vqvae")
    for name in options.only:
        key = name if options.depth == 1 else f"{name}, {options.depth} codes a place"
        whole = "first" if name in ("squared", "vae") else "second"
        if whole in done.get(key, {}):
            continue
        done[key] = {}

        def keep(key: str = key) -> None:
            done.keep(key)
            print(key, done[key], flush=True)

        measure(name, options, done[key], keep)


if __name__ == "__main__":
    main()
