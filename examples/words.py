"""Words as a condition: ask for "a bold seven, leaning right" and get it.

Captions of handwritten digits tell the class, and how wide the strokes are, how they lean and how large the digit is, all of
which is measured in the image. A conditional VAE is given their words as a bag: the sum of a vector for each. Words are left
out at random in training, so that no caption is known by heart, and one may say as much or as little as one likes. What words
are worth is how much more probable they make held-out images. Whether images are as asked for is measured as the captions were
made, and the class is read by a classifier of real digits.
"""

import argparse

import torch
from sklearn.svm import SVC
from torch import Tensor

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.data import Captions, load

L, W, TRAIN = 10, 32, 1437
ASKED = (
    "a bold seven, leaning right",
    "thin seven",
    "large zero",
    "small thin zero",
    "thick one, leaning left",
    "bold",
    "",
)


def cvae(num_words: int, dropout: float) -> pv.CVAE:
    return pv.CVAE(
        condition=pv.nets.Words(num_words, W, dropout),
        prior=pv.flow(W, L, kind="coupling", hidden=(64,)),
        likelihood=pv.mlp((L, W), fam.BetaBinomial(64, total_count=16), hidden=(200,)),
        encoder=pv.mlp((64, W), fam.Normal(L), hidden=(200,)),
    )


def main(smoke: bool) -> None:
    digits = load("digits")
    assert digits.y is not None
    order = torch.randperm(len(digits.x), generator=torch.Generator().manual_seed(0))
    x, y = digits.x[order], digits.y[order]
    captions = Captions.of(x[:TRAIN].reshape(-1, 8, 8), digits.classes)
    words = captions.vocabulary
    written = captions.describe(x.reshape(-1, 8, 8), y)
    print("; ".join(caption for caption in written[:6] if caption))

    tokens = words.encode(written)
    data = {"x": x[:TRAIN], "c": tokens[:TRAIN]}
    held_out = x[TRAIN : TRAIN + 10] if smoke else x[TRAIN:]
    draws, epochs, schedule = (5, 1, None) if smoke else (500, 100, pv.schedules.one_cycle(4e-3))
    info = {
        "vocabulary": words.to_json()
    }  # which a saved run keeps: Vocabulary.from_json(pv.load("run").info["vocabulary"])
    for dropout in (0.0, 0.3):
        torch.manual_seed(0)
        pair = cvae(len(words), dropout)
        fitted = pv.fit(pair, data, epochs=epochs, batch_size=100, schedule=schedule, seed=0, info=info)
        rows = {"x": held_out, "c": tokens[TRAIN:][: len(held_out)]}
        score = pv.log_likelihood(fitted, rows, draws, proposal="guide", seed=0).mean()
        print(f"of words left out in training {dropout:.0%}: log p(x | caption) {score:.2f} nats")

    levels = {"class": y[TRAIN:], **captions.levels(x[TRAIN:].reshape(-1, 8, 8))}
    for told in ((), ("class",), ("class", "width"), ("class", "width", "slant"), tuple(levels)):
        said = [captions.say({name: int(levels[name][row]) for name in told}) for row in range(len(held_out))]
        rows = {"x": held_out, "c": words.encode(said)}
        score = pv.log_likelihood(fitted, rows, draws, proposal="guide", seed=0).mean()
        print(f"log p(x | {', '.join(told) or 'nothing'}): {score:.2f} nats")

    there = torch.stack([levels[name] for name in ("class", "width", "slant")], 1).unique(dim=0)
    wanted = there[: 3 if smoke else None].repeat_interleave(5, 0)
    said = [captions.say(dict(zip(("class", "width", "slant"), row))) for row in wanted.tolist()]
    made = pv.generate(fitted, len(said), given={"c": words.encode(said)}, mean=True, seed=0).cpu()
    found = captions.levels(made.reshape(-1, 8, 8))
    reader = SVC(gamma=0.001).fit(x[:TRAIN], y[:TRAIN])
    seen = torch.stack([torch.tensor(reader.predict(made)), found["width"], found["slant"]], 1)
    print(f"of {len(said)} images, as asked for: {shares(seen == wanted)}")

    tokens = words.encode(list(ASKED)).repeat(8, 1)
    images = pv.generate(fitted, len(tokens), given={"c": tokens}, mean=True, seed=0)
    names = [caption or "no words" for caption in ASKED]
    path = pv.plots.save(pv.plots.images(images, (8, 8), columns=len(ASKED), vmax=16, names=names), "words.png")
    print(f"eight images of each of {len(ASKED)} captions: {path}")


def shares(right: Tensor) -> str:
    """Of class, width and slant, (N, 3) bool."""
    return ", ".join(f"{name} {share:.0%}" for name, share in zip(("class", "width", "slant"), right.double().mean(0)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
