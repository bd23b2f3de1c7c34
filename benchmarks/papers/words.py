"""Images from words: of images that captions ask for, the share that has the class, the width and the slant asked for.

    python benchmarks/papers/words.py --data-root DIR
    python benchmarks/papers/words.py --data-root DIR --smoke

Captions of MNIST's training images by `pyrovae.data.captioned`: each of class, width, slant and size is told with probability
0.9, by one of several names, in random order. A CVAE of binarised pixels, drawn anew at every step, is given their words
(`nets.Words`). It is then asked for each class, width and slant, 20 images of each of the 90 combinations, by captions in
random words that tell these three, and "tilted" without a side now and then, which either side fulfils. The images are
E[x | z, c] at draws of p(z | c). Their class is what a network says that was trained on real images, 784-512-256-10, whose own
accuracy is told; their width and slant are measured as those of the training images were, and compared with the same limits.

Six combinations of class, width and slant (`LEFT_OUT`) have no training row, and are scored by themselves. Settings were chosen
by other six (`CHOSEN_BY`, --choose) at seed 1, and are measured at seed 0.

Writes benchmarks/results/words-DEVICE.json, and words-DEVICE.png, a picture of what some captions give.
"""

from __future__ import annotations

import argparse
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import Captions

D, SIDE, C, L = 784, 28, 10, 20
EACH = 20  # images of a combination
Combination = tuple[int, int, int]  # class; width: 0 thin, 1 medium, 2 bold; slant: 0 left, 1 upright, 2 right
LEFT_OUT: tuple[Combination, ...] = ((0, 0, 2), (2, 2, 1), (3, 1, 0), (5, 0, 1), (7, 2, 2), (9, 1, 1))
CHOSEN_BY: tuple[Combination, ...] = ((1, 2, 1), (2, 0, 2), (4, 1, 2), (6, 2, 2), (8, 0, 1), (9, 2, 0))
SHOWN = (
    "a bold seven, leaning right",
    "thin 7, tilted left",
    "a small thick zero",
    "upright four",
    "bold",
    "leaning left",
)


class Unconditional(nn.Module):
    """p(z | c) = N(z; 0, I): what c says, z need not."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pv.priors.StandardNormal(L)

    def forward(self, code: Tensor) -> Any:
        return self.prior()


def cvae(num_words: int, prior: str, dropout: float, width: int = 64) -> pv.CVAE:
    hidden = (512,)
    families: dict[str, Any] = {
        "standard": Unconditional,
        "linear": lambda: pv.mlp(width, fam.Normal(L), hidden=()),
        "mlp": lambda: pv.mlp(width, fam.Normal(L), hidden=(256,)),
        "mixture": lambda: pv.mlp(width, fam.MixtureOfNormals(L, 20), hidden=(256,)),
    }
    return pv.CVAE(
        condition=pv.nets.Words(num_words, width, dropout),
        prior=families[prior](),
        likelihood=pv.mlp((L, width), fam.Bernoulli(D), hidden=hidden),
        encoder=pv.mlp((D, width), fam.Normal(L), hidden=hidden),
    )


def levels_of(captions: Captions, rows: harness.Rows) -> Tensor:
    """Class, width and slant of each row, (N, 3)."""
    found = captions.levels(rows.x.reshape(-1, SIDE, SIDE))
    return torch.stack([rows.y, found["width"], found["slant"]], 1)


def among(levels: Tensor, combinations: tuple[Combination, ...]) -> Tensor:
    """Which rows have one of these combinations, (N,) bool."""
    return (levels[:, None] == torch.tensor(combinations)).all(-1).any(1)


def classifier(rows: harness.Rows, epochs: int, seed: int) -> nn.Module:
    """p(class | x) of grey images, by Adam with a one-cycle rate."""
    torch.manual_seed(seed)
    net = pv.nets.MLP(D, C, hidden=(512, 256))
    steps = epochs * max(1, len(rows.x) // 200)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        picked = torch.randint(len(rows.x), (200,))
        optimizer.zero_grad()
        F.cross_entropy(net(rows.x[picked]), rows.y[picked]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def right(captions: Captions, net: nn.Module, images: Tensor, asked: list[str]) -> Tensor:
    """Whether class, width and slant of images are those that captions ask for, (N, 3) bool."""
    with torch.no_grad():
        digit = net(images).argmax(-1)
    found = captions.levels(images.reshape(-1, SIDE, SIDE))
    seen = zip(digit.tolist(), found["width"].tolist(), found["slant"].tolist())
    wanted = [captions.read(caption) for caption in asked]
    names = ("class", "width", "slant")
    return torch.tensor([[got in want[n] for n, got in zip(names, row)] for row, want in zip(seen, wanted)])


def shares(correct: Tensor) -> dict[str, float]:
    found = dict(zip(("class", "width", "slant"), correct.double().mean(0).tolist()))
    return {
        name: round(value, 4) for name, value in {**found, "all three": correct.all(1).double().mean().item()}.items()
    }


def asking(captions: Captions, combinations: list[Combination], seed: int) -> list[str]:
    """Captions in random words that tell these combinations."""
    columns = torch.tensor(combinations).unbind(1)
    telling = Captions(captions.phrases, captions.limits, captions.noun, told=1.0, seed=seed)
    return telling.write(dict(zip(("class", "width", "slant"), columns)), stream=7)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    seed, held = (1, CHOSEN_BY) if options.choose else (0, LEFT_OUT)
    parts = harness.mnist(options, rows=options.rows)
    captions = Captions.of(parts.train.x.reshape(-1, SIDE, SIDE), range(C), seed=seed)
    kept = ~among(levels_of(captions, parts.train), held)
    x, y = parts.train.x[kept], parts.train.y[kept]
    words = captions.vocabulary
    c = words.encode(captions.describe(x.reshape(-1, SIDE, SIDE), y))
    net = classifier(parts.train, 1 if options.smoke else 8, seed)
    fitted = harness.fit(
        lambda: cvae(len(words), options.prior, options.dropout), {"x": x, "c": c}, options, seed,
        epochs=options.epochs, batch_size=options.batch_size, transform=pv.transforms.Binarize(),
        schedule=pv.schedules.one_cycle(options.rate),
    )  # fmt: skip
    rows = parts.valid if options.choose else parts.test
    real = captions.describe(rows.x.reshape(-1, SIDE, SIDE), rows.y, stream=1)
    some = {"x": rows.x[:1000], "c": words.encode(real)[:1000]}
    score = pv.log_likelihood(fitted, some, options.num_samples, proposal="guide", seed=0).mean().item()

    grid = [(k, w, s) for k in range(C) for w in range(3) for s in range(3)]
    found: dict[str, Any] = {}
    for name, combinations in (("seen", [one for one in grid if one not in held]), ("left out", list(held))):
        asked = asking(captions, [one for one in combinations for _ in range(EACH)], seed)
        images = pv.generate(fitted, len(asked), given={"c": words.encode(asked)}, mean=True, seed=seed).cpu()
        found[name] = shares(right(captions, net, images, asked))
        print(name, found[name], flush=True)
    with torch.no_grad():
        digit = net(rows.x).argmax(-1)
    return {
        **found,
        "classifier_accuracy": round((digit == rows.y).double().mean().item(), 4),
        "log_p_x_given_c": round(score, 3),
        "left_out_rows": int((~kept).sum()),
        **harness.end(fitted),
        "settings": f"prior {options.prior}, word dropout {options.dropout:g}, {options.epochs} epochs, rate {options.rate:g}",
        **picture(options, captions, fitted),
    }


def picture(options: argparse.Namespace, captions: Captions, fitted: pv.Fit) -> dict[str, Any]:
    """Ten images of each of some captions, in columns."""
    tokens = captions.vocabulary.encode(list(SHOWN)).repeat(10, 1)
    images = pv.generate(fitted, len(tokens), given={"c": tokens}, mean=True, seed=0)
    axes = pv.plots.images(images, (SIDE, SIDE), columns=len(SHOWN), names=list(SHOWN))
    options.out.mkdir(parents=True, exist_ok=True)
    pv.plots.save(axes, options.out / f"words-{options.device}.png")
    return {}


def main() -> None:
    parser = harness.parser(__doc__, batch_size=200, epochs=40, rate=2e-3, rows=None, num_samples=100, engine="auto")
    parser.add_argument("--prior", choices=("standard", "linear", "mlp", "mixture"), default="mixture")
    parser.add_argument("--dropout", type=float, default=0.0, help="of words")
    parser.add_argument(
        "--choose", action="store_true", help="measure on the rows and combinations for choosing settings"
    )
    options = harness.parse(parser, rows=300, epochs=1, num_samples=5)
    kept = harness.Kept(options, "words", "fits")
    kept.entry("chosen by" if options.choose else "words", lambda: measured(options))


if __name__ == "__main__":
    main()
