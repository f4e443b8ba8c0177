"""The mistakes of `tools/planted_bugs.toml` still fit the code; `tools/plant_bugs.py` says which ones the tests find."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script(tool):
    return tool("plant_bugs")


def test_every_mistake_can_be_planted(script):
    bugs = script.bugs()
    faults = []
    for i, bug in enumerate(bugs):
        text = (ROOT / "mea_graph" / bug.file).read_text(encoding="utf-8")
        if text.count(bug.old) != 1:
            faults.append(f"{i}: {bug.file}: {bug.old!r} stands {text.count(bug.old)} times, not once")
        elif bug.file.endswith(".py") and not _parses(text.replace(bug.old, bug.new)):
            faults.append(f"{i}: {bug.file}: {bug.new!r} is no Python there")
        faults += [f"{i}: {test} does not exist" for test in bug.tests if not (ROOT / test).is_file()]
    assert not faults, "\n".join(faults)
    assert len(bugs) >= 100
    assert {bug.kind for bug in bugs} == set(script.KINDS)
    assert len({(bug.file, bug.old, bug.new) for bug in bugs}) == len(bugs)


def _parses(text):
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_a_mistake_is_taken_out_again(script, tmp_path, monkeypatch):
    (tmp_path / "mea_graph").mkdir()
    (tmp_path / "mea_graph" / "a.py").write_text("x = 1\n")
    seen = []

    def run(tests, tree, output):
        seen.append((tree / "mea_graph" / "a.py").read_text())
        return int(tests[0])

    monkeypatch.setattr(script, "_exit_code", run)
    for code, old, said in (("1", "1", "caught"), ("0", "1", "MISSED"), ("5", "1", "TESTS BROKEN"), ("1", "2", "TEXT NOT FOUND")):
        assert script.outcome(script.Bug("layout", "a.py", old, "3", (code,)), tmp_path) == said
        assert (tmp_path / "mea_graph" / "a.py").read_text() == "x = 1\n"
    assert seen == ["x = 3\n"] * 3


def test_the_test_that_found_a_mistake_is_named(script, tmp_path):
    output = tmp_path / "output"
    assert script.finder(output) == "a crash, or no end"
    output.write_text("..F\nshort test summary info\nFAILED tests/a.py::test_b[x y] - assert 1 == 2\n1 failed\n")
    assert script.finder(output) == "tests/a.py::test_b[x y]"
    output.write_text("ERROR tests/a.py\n1 error\n")
    assert script.finder(output) == "tests/a.py"


def test_tests_run_in_a_process_that_has_imported_nothing(script, tmp_path):
    (tmp_path / "test_fresh.py").write_text(
        "import os, sys\n\ndef test_fresh():\n    assert 'torch' not in sys.modules\n    assert os.environ['PYTHONPATH'] == os.getcwd()\n"
    )
    assert script._exit_code(("test_fresh.py",), tmp_path, tmp_path / "output") == 0, (tmp_path / "output").read_text()


@pytest.mark.parametrize(("body", "code"), [("assert False", 1), ("os.abort()", 1), ("time.sleep(60)", 1), ("syntax error", 2)])
def test_a_crash_and_a_test_that_never_ends_find_a_mistake(script, tmp_path, monkeypatch, body, code):
    monkeypatch.setattr(script, "_PATIENCE", 2.0 if "sleep" in body else 60.0)
    (tmp_path / "test_it.py").write_text(f"import os, time\n\ndef test_it():\n    {body}\n")
    assert script._exit_code(("test_it.py",), tmp_path, tmp_path / "output") == code
