"""An AutoGuide writes its parameters into the param store in use: each test has its own, not the global one."""

from collections.abc import Iterator

import pytest

from pyrovae.pair.parameters import param_scope


@pytest.fixture(autouse=True)
def own_param_store() -> Iterator[None]:
    with param_scope({}):
        yield
