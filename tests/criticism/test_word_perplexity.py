"""Perplexity of documents is that of their words in one order, whatever orders log p(x) counts."""

import math

import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae.errors import DataError, ShapeError


def test_perplexity_is_that_of_the_words_one_by_one() -> None:
    torch.manual_seed(0)
    p = torch.distributions.Dirichlet(torch.ones(5)).sample((3,)).double()
    documents = [[torch.multinomial(row, 1).item() for _ in range(n)] for row, n in zip(p, (4, 9, 1))]
    x = torch.stack([torch.bincount(torch.tensor(words), minlength=5) for words in documents]).float()
    log_words = [p[n, word].log().item() for n, words in enumerate(documents) for word in words]
    expected = math.exp(-sum(log_words) / len(log_words))
    log_p = pv.distributions.Multinomial(p.log()).log_prob(x.double())
    assert pv.word_perplexity(log_p, x) == pytest.approx(expected, rel=1e-6)
    assert pv.word_perplexity(log_p, x.long()) == pytest.approx(expected, rel=1e-6)
    assert math.exp(-log_p.sum() / x.sum()) < 0.8 * expected  # that of bags of words is another number


def test_a_fit_of_topics_guesses_better_than_by_chance() -> None:
    torch.manual_seed(0)
    topics = torch.distributions.Dirichlet(torch.full((2, 30), 0.1)).sample()
    x = torch.distributions.Multinomial(40, topics[torch.arange(120) % 2]).sample()
    pair = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.mlp(1, pv.families.Multinomial(30, total_count=40), hidden=(8,)),
        encoder=pv.mlp(30, pv.families.Normal(1), hidden=(8,)),
    )
    fitted = pv.fit(pair, x[:100], epochs=60, learning_rate=1e-2, engine="eager", progress=False, seed=0)
    found = pv.word_perplexity(pv.log_likelihood(fitted, x[100:], 20, seed=0), x[100:])
    chance = pv.word_perplexity(pv.distributions.Multinomial(torch.zeros(20, 30)).log_prob(x[100:]), x[100:])
    best = (topics[torch.arange(100, 120) % 2].log() * x[100:]).nan_to_num(0.0).sum()
    assert chance == pytest.approx(30, rel=1e-4)
    assert math.exp(-best / x[100:].sum()) * 0.95 < found < 0.7 * chance


@pytest.mark.parametrize(
    ("log_p", "x", "error", "told"),
    [
        (torch.zeros(3), torch.ones(2, 4), ShapeError, "same documents"),
        (torch.zeros(4), torch.ones(4), ShapeError, "same documents"),
        (torch.zeros(()), torch.ones(1, 4), DataError, "log_likelihood"),
        (torch.zeros(2), torch.full((2, 4), 0.5), DataError, "whole numbers from 0"),
        (torch.zeros(2), torch.full((2, 4), torch.nan), DataError, "whole numbers from 0"),
        (torch.zeros(2), torch.zeros(2, 4), DataError, "have none"),
    ],
)
def test_what_is_no_document_is_refused(
    log_p: torch.Tensor, x: torch.Tensor, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        pv.word_perplexity(log_p, x)


def test_counts_may_be_an_array_or_a_table() -> None:
    x = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 3.0]])
    log_p = pv.distributions.Multinomial(torch.zeros(2, 4)).log_prob(x)
    for counts in (x.long().numpy(), x.numpy().astype("uint8"), pd.DataFrame(x.long().numpy())):
        assert pv.word_perplexity(log_p.numpy(), counts) == pytest.approx(4.0)
