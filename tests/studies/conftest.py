"""A study trains as `mea-graph fit` does: on the same little files, each test in a folder of its own."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("fixtures_of_training", Path(__file__).parents[1] / "train" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

_own_folder, classes_source = _fixtures._own_folder, _fixtures.classes_source
