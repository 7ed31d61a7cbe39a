"""Imported first: pruneopt from this checkout, where it is not installed, as on a machine that is
lent for minutes."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("pruneopt") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
