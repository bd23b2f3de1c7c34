"""A fit on the command line that diverges: what it says, and its exit code."""

import pandas as pd
import pytest
import torch
from support.command import Command

QUICK = ("--epochs", 2, "--hidden", 8, "--latent", 2, "--proposal", "guide", "--num-samples", 30, "--search", "none")


@pytest.mark.digits(100)
@pytest.mark.filterwarnings("ignore:The fit diverged")
def test_a_fit_that_ends_with_finite_numbers_says_that_it_diverged(pyrovae: Command) -> None:
    code, out, err = pyrovae("fit", "digits", "--learning-rate", 1e6, *QUICK, "--out", "run")
    said = " ".join(out.split())
    assert code == 1 and "The fit diverged: its ELBO was" in said and "Lower --learning-rate" in said, err
    for wrong in ("raise it", "larger --num-samples", "collapsed", "Training rows have an ELBO"):
        assert wrong not in said, said
    code, out, _ = pyrovae("evaluate", "run", "--num-samples", 30)
    assert code == 0 and "The fit diverged: its ELBO was" in " ".join(out.split())
    assert pyrovae("fit", "digits", *QUICK, "--out", "other")[0] == 0


def test_a_loss_that_is_not_finite_is_told_with_options(pyrovae: Command) -> None:
    pd.DataFrame(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).numpy()).to_csv("rows.csv", index=False)
    code, _, err = pyrovae("fit", "rows.csv", "--learning-rate", 1e30, *QUICK, "--out", "run")
    said = " ".join(err.split())
    assert code == 2 and "Lower --learning-rate, set --clip-norm 10, or warm up the KL weight by --kl-warmup" in said, (
        said
    )
    assert "--on-nan rollback does" in said and "clip_norm" not in said and "on_nan" not in said, said
