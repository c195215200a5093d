"""No source of ours unpickles, evaluates or executes what it was given. Read from the syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

PACKAGES = ("search_spaces", "workers", "service", "migrations")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FORBIDDEN_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
)
FORBIDDEN_CALLS = frozenset({"eval", "exec", "compile", "__import__"})
FORBIDDEN_ATTRIBUTES = frozenset(
    {
        *("torch.load", "torch.save", "torch.hub", "torch.jit.load", "numpy.load", "np.load"),
        *("pandas.read_pickle", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader"),
        *("yaml.UnsafeLoader", "yaml.FullLoader", "os.system", "os.popen", "ray.cloudpickle"),
        *("tarfile.open", "zipfile.Path", "subprocess.getoutput", "tempfile.mktemp"),
    }
)
FORBIDDEN_METHODS = frozenset({"extractall", "extract", "unpack_archive", "read_pickle"})

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(file, what) -> why it may. None: what Ray pickles on its way between our own processes is Ray's, over
connections that only those with its token can open."""


def found_in(source: str) -> set[str]:
    """Whatever of the forbidden a source has."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {n.name for n in names if n.name.partition(".")[0] in FORBIDDEN_MODULES}
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in FORBIDDEN_MODULES:
                    found.add(module)
                found |= {f"{module}.{n.name}" for n in names} & FORBIDDEN_ATTRIBUTES
            case ast.Attribute():
                dotted = ast.unparse(node)
                if dotted in FORBIDDEN_ATTRIBUTES:
                    found.add(dotted)
            case ast.Call(func=func, keywords=keywords):
                if isinstance(func, ast.Name) and func.id in FORBIDDEN_CALLS:
                    found.add(func.id)
                if isinstance(func, ast.Attribute) and func.attr in FORBIDDEN_METHODS:
                    found.add(func.attr)
                for keyword in keywords:
                    is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                    if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and not is_false:
                        found.add(f"{keyword.arg}={ast.unparse(keyword.value)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_runs_nothing_that_it_was_given(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert {what for what in found_in(path.read_text()) if (name, what) not in EXCEPTIONS} == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "archive.extractall('x')",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
        "subprocess.run(x, shell=True)",
        "yaml.load(x, Loader=yaml.Loader)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert found_in(source)


def test_every_load_of_a_model_or_tokenizer_refuses_remote_code() -> None:
    """`from_pretrained` and `from_config` of transformers' Auto classes (those of the tasks are in
    `TASK_MODELS`), each with the switch spelled out."""
    loads = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("from_pretrained", "from_config")
                and ast.unparse(node.func.value).startswith(("Auto", "TASK_MODELS"))
            ):
                loads.append((path.name, {keyword.arg for keyword in node.keywords}))
    assert len(loads) >= 4
    assert [name for name, keywords in loads if "trust_remote_code" not in keywords] == []
