"""The model card of a run (`app/jobs/card.py`): names of anybody in Markdown, and specifications as code."""

from pathlib import Path

import torch

import pyrovae as pv
from pyrovae import families as fam
from pyrovae.app.jobs import card
from pyrovae.app.jobs.card import as_code
from pyrovae.app.jobs.hub import pack
from pyrovae.fitted.spec import to_spec

OLD = Path(__file__).parents[1] / "data" / "runs" / "digits-finished"  # of version 0.1


def test_runs_of_earlier_versions_have_cards_with_todays_names() -> None:
    said = pack(OLD, "me/old").text("README.md")
    assert "| log_likelihood |" in said and "pv.VAE(" in said
    assert not any(home in said for home in ("models.vae", "priors.simple", "nets.mlp", "families.counts"))


def test_names_are_neither_markdown_nor_html_nor_the_end_of_code() -> None:
    columns = [{"name": "a\\|b ![c](http://x)\n# d", "kind": "<img src=x> & `e`"}]
    table = card._data(
        {"layout": {"arguments": {"*x*": [[3], "float32"]}}, "settings": {}}, {"data": {"columns": columns}}
    )
    assert table.splitlines()[0] == r"Training rows: \*x\* of shape (3)."
    assert table.splitlines()[-1] == r"| a\\\|b !\[c\](http://x) # d | &lt;img src=x> &amp; \`e\` |"
    assert card._fenced("text", "a\n````\nb").splitlines()[::4] == ["`````text", "`````"]


def test_a_specification_is_written_as_code() -> None:
    made = pv.VAE(pv.priors.StandardNormal(2), pv.mlp(2, fam.Normal(3), (4,)), pv.mlp(3, fam.Normal(2), (4,)))
    code = as_code(to_spec(made))
    again = eval(code.replace("activation=ReLU", "activation=torch.nn.ReLU"), {"pv": pv, "torch": torch})
    assert to_spec(again) == to_spec(made)
    assert as_code(to_spec({"a": (1.5, 2.5), "b": torch.ones(3)})) == "{'a': (...), 'b': ...}"
