"""The package as a stranger gets it: what the wheel holds, what an import costs, which way imports run, how public names are documented."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import mea_graph

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "mea_graph"
OPTIONAL = ["torch_scatter", "lightning", "torchmetrics", "jsonargparse", "rich", "matplotlib", "sklearn", "scipy", "h5py", "pandas"]
CORE = {"torch", "torch_geometric", "einops", "numpy", "typing_extensions", "mea_graph"}
EVERYWHERE = {"__version__", "configurations", "option_types", "suggestions", "whole_files"}  # import nothing of the package
PUBLIC_PARTS = ["nn", "ops", "data", "train", "baselines", "viz"]
MAY_IMPORT = {
    "ops": {"ops"},
    "nn": {"nn", "ops"},
    "readers": {"readers", "data"},
    "data": {"data", "readers", "nn", "ops"},
    "viz": {"viz", "data", "nn", "ops"},
    "train": {"train", "command", "viz", "data", "nn", "ops"},
    "baselines": {"baselines", "train", "data", "nn", "ops"},
    "check": {"check", "command", "nn", "ops"},
    "studies": {"studies", "baselines", "train", "command", "viz", "data", "nn", "ops"},
}
COMMAND = {"train/cli.py": {"baselines"}}  # the command measures what a model has to beat


def run_python(code: str, *arguments: str, cwd: Path) -> str:
    """Runs code in a new interpreter, away from the checkout, and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# The wheel and the source distribution


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def unpacked(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content as pip would lay it into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(distributions.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder


def package_files() -> set[str]:
    return {p.relative_to(REPOSITORY).as_posix() for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_the_wheel_is_pure_and_holds_the_package_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    assert wheel.name == f"mea_graph-{mea_graph.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {name for name in names if name.startswith(f"mea_graph-{mea_graph.__version__}.dist-info/")}
    assert names - metadata == package_files()
    assert "mea_graph/py.typed" in names
    assert {Path(name).suffix for name in names - metadata} <= {".py", ".yaml", ".typed", ".cpp", ".cu", ".cuh", ".h"}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_the_sdist_holds_what_the_readme_names(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    root = f"mea_graph-{mea_graph.__version__}/"
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(root) for name in archive.getnames()}
    furniture = {"README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "DESIGN.md", "Makefile", "pyproject.toml"}
    assert furniture | {"tests/conftest.py", "docs/paper.md", "benchmarks/README.md"} <= names
    assert package_files() <= names


def test_the_metadata_promises_no_optional_package(unpacked):
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    required = [line.removeprefix("Requires-Dist: ") for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    core = {line.split(">")[0] for line in required if "extra ==" not in line}
    assert core == {"torch", "torch-geometric", "einops", "numpy", "typing-extensions"}


WITHOUT_OPTIONAL_PACKAGES = f"""
import sys

for name in {OPTIONAL}:
    sys.modules[name] = None  # Python's own way to say that there is no such package
sys.path.insert(0, sys.argv[1])
import mea_graph
assert mea_graph.__file__.startswith(sys.argv[1]), mea_graph.__file__
"""

MEA_FORWARD = """
import torch
from torch_geometric.data import Batch, HeteroData
from mea_graph.nn import MEA
import mea_graph.data, mea_graph.ops

def sample(words, frames):
    data = HeteroData()
    data["text"].x, data["audio"].x = torch.randn(words, 6), torch.randn(frames, 4)
    return data

batch = Batch.from_data_list([sample(5, 9), sample(3, 0), sample(1, 7)])
model = MEA(in_channels={"text": 6, "audio": 4}, out_channels=2)
prediction = model(batch.x_dict, batch.batch_dict, batch_size=batch.num_graphs).prediction
prediction.sum().backward()
assert prediction.shape == (3, 2) and prediction.isfinite().all()
print("done")
"""


def test_the_wheel_works_without_any_optional_package(unpacked, tmp_path):
    assert run_python(WITHOUT_OPTIONAL_PACKAGES + MEA_FORWARD, str(unpacked), cwd=tmp_path) == "done\n"


@pytest.mark.parametrize(("module", "extra"), [("mea_graph.train", "train"), ("mea_graph.viz", "viz")])
def test_a_missing_extra_is_named_in_one_error(unpacked, tmp_path, module, extra):
    code = WITHOUT_OPTIONAL_PACKAGES + f"try:\n    import {module}\nexcept ImportError as error:\n    print(error)\n"
    printed = run_python(code, str(unpacked), cwd=tmp_path)
    assert len(printed.splitlines()) == 1
    assert f"mea-graph[{extra}]" in printed


# Version


def test_the_version_is_the_same_everywhere(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "mea_graph", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    ).stdout
    assert mea_graph.__version__ in shown.split()
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == mea_graph.__version__
    assert f"## [{mea_graph.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


# Versions

FLOORS = ("core", "train", "viz", "hdf5", "onnx")  # of the others the newest is taken


def floors(text: str) -> dict[str, str]:
    """The oldest version of each package that pyproject.toml allows, and of Python."""
    project = tomllib.loads(text)["project"]
    lines = {"core": project["dependencies"]} | project["optional-dependencies"]
    found = [re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line) for extra in FLOORS for line in lines[extra]]
    return {match[1]: match[2] for match in found} | {"Python": project["requires-python"].removeprefix(">=")}


def test_the_oldest_versions_are_stated_alike_and_were_run():
    text = (REPOSITORY / "pyproject.toml").read_text()
    oldest = floors(text)
    python = oldest.pop("Python")
    stated = f"Python {python}, PyTorch {oldest.pop('torch')} and PyG {oldest.pop('torch-geometric')}"
    pages = {name: " ".join((REPOSITORY / name).read_text().split()) for name in ("README.md", "docs/start.md", "docs/reliability.md")}
    assert [name for name, page in pages.items() if stated not in page] == []
    ran = pages["docs/reliability.md"].partition("- The oldest others: ")[2].partition(" - ")[0]
    assert [f"{name} {floor}" for name, floor in oldest.items() if not re.search(rf"\b{name} {floor}[.\d]*\b", ran)] == []
    configured = tomllib.loads(text)
    assert configured["tool"]["ruff"]["target-version"] == "py" + python.replace(".", "")
    minors = [int(line.rpartition(".")[2]) for line in configured["project"]["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert minors == list(range(int(python.partition(".")[2]), minors[-1] + 1))


def test_the_python_that_make_needs_is_stated_alike():
    makefile = (REPOSITORY / "Makefile").read_text()
    (checked,) = re.findall(r"sys\.version_info < \((\d+), (\d+)\)", makefile)
    needed = f"Python {'.'.join(checked)} or newer"
    assert f"Each needs only {needed}" in makefile
    assert f'"mea-graph needs {needed}: ' in makefile
    assert f"need only {needed}" in (REPOSITORY / "README.md").read_text()
    assert needed in " ".join((REPOSITORY / "docs/reliability.md").read_text().split())


# Imports


def modules() -> list[str]:
    found = {module.name for module in pkgutil.walk_packages(mea_graph.__path__, "mea_graph.")}
    return ["mea_graph", *sorted(found - {"mea_graph.__main__"})]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Absolute names of what a file imports, and whether at module level (else inside a function, when called)."""
    tree = ast.parse(path.read_text(), str(path))
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the tree uses absolute names"
            found += [(f"{node.module}.{alias.name}", id(node) not in late) for alias in node.names]
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part):
    files = sorted((SOURCE / part).rglob("*.py"))
    assert files
    for path in files:
        allowed = MAY_IMPORT[part] | EVERYWHERE | COMMAND.get(path.relative_to(SOURCE).as_posix(), set())
        for name, _ in imports(path):
            if name.startswith("mea_graph."):
                target = name.split(".")[1]
                assert target in allowed, f"{path.relative_to(REPOSITORY)} imports {name}"


@pytest.mark.parametrize("part", ["ops", "nn", "data", "check", "command"])
def test_core_parts_import_only_core_dependencies_when_loaded(part):
    for path in sorted((SOURCE / part).rglob("*.py")):
        if path.name.startswith("triton_"):  # kernels, loaded by the first call on a GPU: test_a_cold_import_... holds them to it
            continue
        for name, when_loaded in imports(path):
            top = name.partition(".")[0]
            if when_loaded and top not in sys.stdlib_module_names:
                assert top in CORE, f"{path.relative_to(REPOSITORY)} imports {name}"


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for lines in project["optional-dependencies"].values() for line in lines]
    distributions = {re.match(r"[\w-]+", line)[0] for line in lines}
    renamed = {"scikit-learn": "sklearn", "pyyaml": "yaml"}
    declared = {renamed.get(name, name.replace("-", "_")) for name in distributions}
    for path in sorted(SOURCE.rglob("*.py")):
        for name, _ in imports(path):
            top = name.partition(".")[0]
            assert top in declared | sys.stdlib_module_names, f"{path.relative_to(REPOSITORY)} imports {name}"


COLD_IMPORT = f"""
import builtins
original, culprits = builtins.__import__, []

def spy(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "")
    if importer.partition(".")[0] == "mea_graph" and level == 0 and name.partition(".")[0] in {OPTIONAL}:
        culprits.append((importer, name))
    return original(name, globals, locals, fromlist, level)

builtins.__import__ = spy
import mea_graph, mea_graph.nn, mea_graph.data, mea_graph.ops
print(culprits)
"""


def test_a_cold_import_asks_for_no_optional_package(tmp_path):
    """Counts what our own files ask for: torch_geometric tries some of these packages itself, where they are installed."""
    assert run_python(COLD_IMPORT, cwd=tmp_path) == "[]\n"


NO_NETWORK = """
import importlib, sys
reached = []
REMOTE = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
sys.addaudithook(lambda event, args: reached.append((event, args)) if event in REMOTE else None)
for module in sys.argv[1:]:
    importlib.import_module(module)
print(reached)
"""


def test_importing_reaches_for_no_network(tmp_path):
    assert run_python(NO_NETWORK, *modules(), cwd=tmp_path) == "[]\n"


# Public names


def takes_tensors(value: object) -> bool:
    """Whether a layer or function has shapes to state; a NamedTuple states them at its fields."""
    if inspect.isclass(value):
        return not issubclass(value, tuple)
    return any("Tensor" in str(p.annotation) for p in inspect.signature(value).parameters.values())


@pytest.mark.parametrize("part", PUBLIC_PARTS)
def test_public_names_are_documented_with_an_example(part):
    package = importlib.import_module(f"mea_graph.{part}")
    missing = []
    for name in package.__all__:
        value = getattr(package, name)
        documented = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
        text = inspect.getdoc(documented) or ""
        if not documented.__module__.startswith("mea_graph.") or ">>>" not in text:
            missing.append(f"{name}: no doctest")
        if part in ("ops", "nn") and takes_tensors(value) and "Shape:" not in text:
            missing.append(f"{name}: no Shape section")
    assert not missing


def faults_of(docstring: str) -> list[str]:
    """Lines of a docstring that are not in the dialect of the package."""
    found, section, raises = [], "", False
    for line in docstring.splitlines():
        heading = re.match(r"( *)(Args|Raises|Shape|Examples?|Returns):", line)
        if "``" in line or (heading and (heading[2].startswith("Example") or line.strip() != f"{heading[2]}:")):
            found.append(line)
        if heading:
            section, raises = f"{heading[1]}    " if heading[2] in ("Args", "Raises") else "", heading[2] == "Raises"
        elif section and re.match(rf"{section}\w+: (?!If )" if raises else rf"{section}\*{{0,2}}\w+(?:, \*{{0,2}}\w+)*: [a-z]", line):
            found.append(line)
        elif section and line.strip() and not line.startswith(section):
            section = ""
    return found


def test_docstrings_are_of_one_dialect():
    """Single backticks, the doctest without a heading, sections under their headings, entries that begin with a capital, errors with If."""
    assert faults_of("Args:\n    x: Rows.\n\nShape:\n    - x: wide\n\nRaises:\n    ValueError: If x is wide.\n\n>>> 1\n1") == []
    assert len(faults_of("Raises:\n    ValueError: A wide x.\n    TypeError: Naming x.")) == 2
    assert len(faults_of("Uses ``x``.\n\nArgs:\n    x: rows.\n\nShape: wide\n\nExample:\n    >>> 1")) == 4
    faults = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                faults += [f"{path.relative_to(SOURCE)}: {line.strip()}" for line in faults_of(ast.get_docstring(node) or "")]
    assert not faults


@pytest.mark.parametrize("part", PUBLIC_PARTS)
def test_functions_and_methods_say_first_what_they_do(part):
    """The docstring of a public one begins with a verb, such as Returns."""
    package = importlib.import_module(f"mea_graph.{part}")
    found = {name: value for name in package.__all__ if inspect.isroutine(value := getattr(package, name))}
    for name in package.__all__:
        members = vars(getattr(package, name)) if inspect.isclass(getattr(package, name)) else {}
        found |= {f"{name}.{k}": getattr(v, "__func__", v) for k, v in members.items() if not k.startswith("_")}
    docstrings = {name: value.__doc__ for name, value in found.items() if inspect.isfunction(value) and value.__doc__}
    assert [name for name, text in docstrings.items() if not re.match(r"[A-Z][a-z]+s\b", text)] == []


@pytest.mark.parametrize("part", PUBLIC_PARTS)
def test_a_part_lists_its_public_names(part):
    """The list feeds the documentation, so nothing public may be missing from it. Type checkers read it, so it is written out."""
    package = importlib.import_module(f"mea_graph.{part}")
    assert len(set(package.__all__)) == len(package.__all__)
    tree = ast.parse(Path(package.__file__).read_text())
    (written,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    assert ast.literal_eval(written) == package.__all__
    imported = {name for name, value in vars(package).items() if inspect.isclass(value) or inspect.isfunction(value)}
    ours = {name for name in imported if getattr(package, name).__module__.startswith("mea_graph.") and not name.startswith("_")}
    assert ours <= set(package.__all__)
