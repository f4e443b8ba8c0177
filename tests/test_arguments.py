"""No function takes more arguments than a reader can keep in mind."""

import ast
from pathlib import Path

import mea_graph

SOURCE = Path(mea_graph.__file__).parent
MOST = 13  # besides self; `MEA` has as many


def counts(source: str) -> dict[str, int]:
    """How many arguments each function takes, by name; a kernel's are pointers and strides, and are not counted."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list):
            continue
        given = [part.arg for part in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        found[node.name] = max(found.get(node.name, 0), len(given) - (given[:1] in (["self"], ["cls"])))
    return found


def test_no_function_takes_more_than_a_dozen_arguments_or_so():
    over = set()
    for path in sorted(SOURCE.rglob("*.py")):
        for name, count in counts(path.read_text(encoding="utf-8")).items():
            if count > MOST:
                over.add(f"{path.relative_to(SOURCE).as_posix()}: {name}")
    assert not over


def test_what_is_counted():
    code = "@triton.jit\ndef kernel(a, b): ...\nclass C:\n    def f(self, a, /, b, *rest, c=1, **more): ...\n    async def g(x): ...\n"
    assert counts(code) == {"f": 3, "g": 1}
