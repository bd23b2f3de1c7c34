"""Questions are asked of a fit: the pair itself, or data in its place, is one clear error, whatever the question."""

import inspect
from typing import Any

import pytest
import torch
from support.programs import vae

import pyrovae as pv

QUESTIONS = [
    name
    for name in pv.__all__
    if inspect.isfunction(getattr(pv, name))
    and next(iter(inspect.signature(getattr(pv, name)).parameters), "") == "fitted"
]
THE_PAIR = r"asked of a fit, as pv\.fit returns it, and got the pair itself, VAE: fitted = pv\.fit\("


def ask(name: str, asked: Any) -> None:
    """A question with values for all arguments that it needs."""
    question = getattr(pv, name)
    needed = [p for p in list(inspect.signature(question).parameters.values())[1:] if p.default is p.empty]
    others = {p.name: torch.zeros(5, 6) for p in needed if p.kind is not p.VAR_KEYWORD}
    with pytest.raises(pv.OptionError, match=THE_PAIR if hasattr(asked, "guide") else "comes first, got"):
        question(asked, **others)


def test_there_are_questions() -> None:
    assert len(QUESTIONS) >= 28


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_names_the_fit_that_it_wants(name: str) -> None:
    ask(name, vae())
    ask(name, torch.zeros(5, 6))
    ask(name, None)


def test_a_pair_given_by_name_and_a_tensor_by_its_shape() -> None:
    with pytest.raises(pv.OptionError, match=THE_PAIR):
        pv.encode(fitted=vae(), data=torch.zeros(5, 6))
    with pytest.raises(pv.OptionError, match=r"comes first, got Tensor of shape \(5, 6\)\."):
        pv.encode(torch.zeros(5, 6), vae())  # type: ignore[arg-type]


@pytest.mark.parametrize("ask_a_pair", [pv.fit, pv.check_pair, pv.graph, pv.graph_text, pv.per_row])
def test_what_is_asked_of_a_pair_names_the_pair_of_a_fit(ask_a_pair: Any) -> None:
    fitted = pv.fit(vae(), torch.zeros(8, 6), epochs=0)
    with pytest.raises(pv.PairError, match=r"give its pair, fitted\.pair"):
        ask_a_pair(fitted, torch.zeros(8, 6))


def test_the_graph_takes_rows_as_a_fit_does() -> None:
    rows = torch.zeros(8, 6)
    text = pv.graph_text(vae(), {"x": rows})
    assert text.startswith("model  p(z) p(x | z)")
    assert (
        pv.graph_text(vae(), rows)
        == pv.graph_text(vae(), rows.numpy())
        == pv.graph_text(vae(), {"x": rows.numpy()})
        == text
    )
