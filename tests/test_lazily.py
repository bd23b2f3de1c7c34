"""Modules that are imported late, without a search for garbage."""

import subprocess
import sys
from pathlib import Path

MODULE = """
import gc
at_import = gc.isenabled()
"""
BAD = "import gc\nassert not gc.isenabled()\nraise ValueError"
CODE = """
import gc, sys
from pyrovae._lazily import Lazily, imported, lazy_names

first = imported("first")
assert not first.at_import and gc.isenabled() and gc.get_freeze_count() == 0
assert imported("first") is first
assert not Lazily("second").at_import and gc.isenabled()
home = sys.modules["package"] = type(sys)("package")
assert not lazy_names("package", {"third": "at_import"})("at_import") and gc.isenabled()
try:
    imported("bad")
except ValueError:
    assert gc.isenabled()

gc.freeze()  # what a user has frozen, and has switched off, stays so
frozen = gc.get_freeze_count()
assert not imported("fourth").at_import and gc.isenabled() and gc.get_freeze_count() >= frozen > 0
gc.disable()
assert not imported("fifth").at_import and not gc.isenabled()
print("whole")
"""


def test_imports_do_not_search_for_garbage_and_leave_the_collector_as_it_was(tmp_path: Path) -> None:
    for name in ("first", "second", "third", "fourth", "fifth"):
        (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "bad.py").write_text(BAD)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "whole\n", done.stderr
