"""Perplexity of documents: how many words the next one is as uncertain as."""

from typing import Any

import torch

from pyrovae.errors import DataError, ShapeError
from pyrovae.pair.arrays import as_tensor


def word_perplexity(log_likelihood: Any, x: Any) -> float:
    """`exp(-sum_n log p(w_n) / sum_n |w_n|)` of documents w, from log p(x) of their counts under a `families.Multinomial`.

    log p(x) is that of a bag of words, which counts all orders of the same words: `n! / prod_v x_v!` of them. Perplexity is of
    the words in one order, as topic models are compared by, so that this number is divided out first. Without that, short
    documents would seem to have perplexities of a few words. A uniform distribution over V words has perplexity V.

    Args:
        log_likelihood: log p(x) of each document given its length, in nats, `(N,)`, such as `log_likelihood(fitted, x)` gives.
            Under other likelihoods of counts, such as a Poisson, it is not given the length, and this is not perplexity.
        x: Counts, `(N, V)`, a tensor, an array or a DataFrame.

    Returns:
        The perplexity of all words of these documents together.

    Raises:
        ShapeError: The two do not have a number and a row for each document.
        DataError: x has other values than counts, or no words at all.

    References:
        Blei, Ng and Jordan 2003, *Latent Dirichlet allocation*, section 7.1.

    Example:
        >>> x = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 3.0]])
        >>> uniform = pv.distributions.Multinomial(torch.zeros(2, 4))
        >>> round(pv.word_perplexity(uniform.log_prob(x), x), 3)
        4.0
    """
    log_likelihood, x = as_tensor("log_likelihood", log_likelihood, torch.float64), as_tensor("x", x, torch.float64)
    if x.dim() != 2 or log_likelihood.shape != x.shape[:1]:
        raise ShapeError(
            "word_perplexity takes log p(x) of shape (N,) and the counts of the same documents, (N, V), got "
            f"{tuple(log_likelihood.shape)} and {tuple(x.shape)}."
        )
    counts = x.detach().double().cpu()
    if not bool(((counts >= 0) & (counts == counts.floor()) & counts.isfinite()).all()):
        raise DataError("word_perplexity takes counts of words, whole numbers from 0; some values of x are none.")
    total = counts.sum()
    if total == 0:
        raise DataError("word_perplexity needs words, and these documents have none.")
    orders = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
    log_words = log_likelihood.detach().double().cpu() - orders
    return float((-log_words.sum() / total).exp())
