"""A measurement that few rows have: semi-supervised regression, of a number and of an ordered grade.

442 diabetes patients have ten columns each; their progression after a year is known for 40 of 342 training rows. Unknown
numbers are NaN, unknown grades -1. Columns are standardised by the training rows. The comparison is with ridge and logistic
regression on the 40 rows, which are hard to beat here.
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import Tensor, nn

import pyrovae as pv
from pyrovae import families as fam

D, L, KNOWN, TRAIN, GRADES = 10, 8, 40, 342, 4
STANDARD = pv.priors.StandardNormal


def regression() -> nn.Module:
    return pv.SSRegression(
        label_prior=STANDARD(()),
        prior=STANDARD(L),
        likelihood=pv.mlp((L, 1), fam.Normal(D, scale="column"), hidden=(32,)),
        encoder=pv.mlp((D, 1), fam.Normal(L), hidden=(32,)),
        regressor=pv.mlp(D, fam.Normal(()), hidden=()),
        code=pv.nets.Column(),
        alpha=50.0,
    )


def grades() -> nn.Module:
    return pv.SSVAE(
        label_prior=pv.priors.Categorical(GRADES),
        prior=STANDARD(L),
        likelihood=pv.mlp((L, GRADES - 1), fam.Normal(D, scale="column"), hidden=(32,)),
        encoder=pv.mlp((D, GRADES - 1), fam.Normal(L), hidden=(32,)),
        classifier=pv.mlp(D, fam.OrderedLogistic((), GRADES), hidden=()),
        code=pv.nets.Thermometer(GRADES),  # neighbouring grades have similar codes
        alpha=50.0,
    )


def main(smoke: bool) -> None:
    torch.manual_seed(0)
    x, y = (torch.as_tensor(part).float() for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    x = (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0)
    y = (y - y[:KNOWN].mean()) / y[:KNOWN].std()  # by the known values
    grade = torch.bucketize(y, y[:KNOWN].quantile(torch.tensor([0.25, 0.5, 0.75])))
    x_test, epochs = x[TRAIN:], 5 if smoke else 300

    def fit(pair: nn.Module, labels: Tensor, unknown: float) -> pv.Fit:
        labels = labels[:TRAIN].clone()
        labels[KNOWN:] = unknown
        schedule = pv.schedules.one_cycle(3e-3)
        return pv.fit(pair, {"x": x[:TRAIN], "y": labels}, epochs=epochs, batch_size=100, schedule=schedule, seed=0)

    def error(found: Tensor) -> str:
        return f"{(found - y[TRAIN:]).square().mean().sqrt():.3f}"

    ridge = RidgeCV(alphas=torch.logspace(-2, 3, 30).numpy()).fit(x[:KNOWN], y[:KNOWN])
    found = pv.encode(fit(regression(), y, float("nan")), {"x": x_test}, site="y").cpu()
    print(f"root mean square error: ridge {error(torch.as_tensor(ridge.predict(x_test)))}, SSRegression {error(found)}")

    logistic = LogisticRegression(max_iter=1000).fit(x[:KNOWN], grade[:KNOWN])
    graded = pv.classify(fit(grades(), grade, -1), {"x": x_test}, num_samples=50)
    for name, guess in {
        "logistic": torch.as_tensor(logistic.predict(x_test)),
        "SSVAE": graded.guide.argmax(-1),
    }.items():
        print(f"grades off by, on average: {name} {(guess - grade[TRAIN:]).abs().double().mean():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds only, to see that it runs")
    main(parser.parse_args().smoke)
