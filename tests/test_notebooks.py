"""What a notebook shows of objects, and which names it completes."""

import subprocess
import sys
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support.programs import binary, ssvae, vae
from torch import Tensor, nn

import pyrovae as pv
import pyrovae.families as fam


class Text(HTMLParser):
    """The texts of a page, and whether its tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("div", "b", "table", "thead", "tbody", "tr", "th", "td", "code"), tag
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def texts(shown: Any) -> list[str]:
    page = shown._repr_html_()
    assert len(page) < 5000
    return Text(page).texts


def fitted(pair: Any = None, data: Any = None) -> pv.Fit:
    return pv.fit(pair or vae(), binary() if data is None else data, epochs=1, engine="eager", progress=False)


def test_a_fit_shows_its_sites_its_graph_and_where_it_ended() -> None:
    found = fitted()
    shown = texts(found)
    assert repr(found) in shown
    assert {"z", "latent", "(2,)", "x", "observed", "(6,)"} <= set(shown)
    assert {"model  p(z) p(x | z)", "guide  q(z | x)"} <= set(shown)
    assert any(f"elbo: {found.history[-1]['elbo']:.4g}" in text for text in shown)


def test_answers_for_many_rows_are_printed_as_the_same_short_table() -> None:
    """And not as hundreds of lines of tensors."""
    many = torch.arange(300.0, dtype=torch.float64)
    for found in (pv.Importance(-many, many, -many, many, many, 500), pv.Anomaly(many, many, many, "regret", 10)):
        printed = str(found)
        assert printed.count("\n") < 12 and "tensor(" not in printed
        assert printed.splitlines()[0] == texts(found)[0] and set(printed.split()) == set(
            " ".join(texts(found)).split()
        )


def test_showing_changes_nothing() -> None:
    found, before = fitted(), torch.get_rng_state()
    found._repr_html_()
    assert torch.equal(before, torch.get_rng_state()) and all(m.training for m in found.pair.modules())


def test_what_cannot_be_drawn_is_left_out() -> None:
    """Rows of zeros are outside of this pair's support, and an unfinished fit has no history."""
    found = pv.Fit(nn.Linear(1, 1), pv.Layout((), 1, {"x": ((6,), torch.float32)}))  # type: ignore[arg-type]
    assert "Fit(Linear of" in texts(found)[0]
    found = fitted(ssvae(), {"x": binary(), "y": torch.arange(40) % 3})
    assert {"y", "z"} <= set(texts(found))


def test_a_layout_an_estimate_and_a_pair() -> None:
    found = fitted()
    assert {"z", "latent", "per row"} <= set(texts(found.layout))
    estimate = pv.importance(found, binary(), 30, seed=0)
    shown = texts(estimate)
    assert "Importance sampling of 40 rows, 30 draws each; nats per row" in shown
    assert {"log_likelihood", "k_hat_above_threshold", f"{estimate.summary()['elbo']:.4g}"} <= set(shown)
    pair = pv.Pair(vae().model, lambda x: None)
    shown = texts(pair)
    assert {"model", "guide", "VAE.model", "(x)"} <= set(shown) and any("<lambda>" in text for text in shown)


FAMILIES = [fam.Normal(3), fam.Binomial((2, 3), total_count=4), fam.LowRankNormal(4, rank=2), fam.Categorical((), 3)]
PRIORS = [pv.priors.StandardNormal(3), pv.priors.MixtureOfNormals(3, 4), pv.priors.Fixed(dist.Normal(0.0, 1.0))]


@pytest.mark.parametrize("part", [*FAMILIES, *PRIORS], ids=lambda part: type(part).__name__)
def test_families_and_priors_show_their_arguments(part: Any) -> None:
    shown = texts(part)
    assert type(part).__name__ in shown and "weights" in shown
    assert str(sum(p.numel() for p in part.parameters())) in shown


@pytest.mark.parametrize("home", [fam, pv.priors], ids=["families", "priors"])
def test_every_family_and_prior_can_be_shown(home: ModuleType) -> None:
    kinds = [getattr(home, name) for name in home.__all__]
    assert all(hasattr(k, "_repr_html_") for k in kinds if isinstance(k, type) and issubclass(k, nn.Module))


def test_names_of_ones_own_are_escaped() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(6))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("<script>x & y", dist.Normal(self.loc, 1.0).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pass

    found = fitted(Own())
    for shown in (found, found.layout):
        assert "<script>" not in shown._repr_html_()
        assert "<script>x & y" in texts(shown)


def test_tab_completion_offers_what_is_public() -> None:
    names = dir(pv)
    assert set(names) == set(pv.__all__)
    assert {"plots", "graph", "fit", "families", "__version__"} <= set(names)
    assert not {"Any", "importlib", "app", "errors"} & set(names)
    assert not {"Any", "importlib"} & set(vars(pv))
    assert all(hasattr(pv, name) for name in names)


def test_looking_at_the_names_imports_nothing_more() -> None:
    code = "import sys, pyrovae; dir(pyrovae); assert 'matplotlib' not in sys.modules and 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
