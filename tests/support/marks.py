"""Marks that several tests share."""

import pytest

from pyrovae.engine.compiled import has_compiler

compiles = pytest.mark.skipif(not has_compiler(), reason="TorchInductor needs a C++ compiler")
