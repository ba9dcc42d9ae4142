"""Imports point one way, and files and functions stay short enough to read."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"gradient_comparison_bptt_rhel", "postprocess_results", "run_experiment", "train"}
FOLDERS = ("common", "data_dir", "experiment_configs", "models", "runs", "training")
FUNCTION_LINES, FILE_LINES = 80, 400

# From low to high. A module may import its own layer and lower ones. The longest prefix of its name decides its layer.
MODELS = (
    ("models.rhel",),
    ("models.physics", "models.normalisation"),
    ("models.layer", "models.stack"),
    ("models.check",),
    ("models.LinHRU", "models.NonlinHRU"),
    ("models.create", "models.trained"),
    ("models.load",),
    ("models",),
)
PROGRAM = (
    ("common",),
    ("data_dir",),
    ("models",),
    ("experiment_configs",),
    ("training",),
    ("train",),
    ("runs",),
    tuple(SCRIPTS - {"train"}),
)
# The old names of the method, for `import models.hamiltonian`: a file that only imports.
SHIMS = {"models.hamiltonian"}
# What an extra of the package `rhel` installs, and scipy, which jax needs.
EXTRAS = {"models.physics.continuous": {"diffrax"}, "models.physics.simulated_device": {"scipy"}}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
FILES |= {name: ROOT / f"{name}.py" for name in SCRIPTS}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(name):
    """The modules of this repository that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
                parents = package[: len(package) + 1 - node.level]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {module if module in FILES else base for module in names}
    return found & FILES.keys()


IMPORTS = {name: imports(name) for name in FILES}


def layer_of(name, layers):
    """The number of the layer with the longest prefix of this name, or None."""
    prefixes = ((prefix, number) for number, layer in enumerate(layers) for prefix in layer)
    fitting = [(len(prefix), number) for prefix, number in prefixes if f"{name}.".startswith(f"{prefix}.")]
    return max(fitting)[1] if fitting else None


def upward(layers):
    """The imports that point from a lower layer to a higher one."""
    for name, imported in IMPORTS.items():
        for other in imported:
            here, there = layer_of(name, layers), layer_of(other, layers)
            if name not in SHIMS and None not in (here, there) and there > here:
                yield f"{name} imports {other}"


def test_imports_are_read_and_an_upward_import_is_seen():
    assert "models.rhel.hamiltonian" in IMPORTS["models.rhel.echo"]
    assert list(upward((("models.rhel.echo",), ("models.rhel.hamiltonian",)))) == [
        "models.rhel.echo imports models.rhel.hamiltonian"
    ]


@pytest.mark.parametrize("layers", [MODELS, PROGRAM], ids=["models", "program"])
def test_no_lower_layer_imports_a_higher_one(layers):
    assert list(upward(layers)) == []


@pytest.mark.parametrize("name", [name for name in FILES if layer_of(name, (("models",),)) is not None])
def test_models_import_themselves_relatively_and_little_else(name):
    """The folder models/ is installed as the package `rhel`, with jax, equinox and jaxtyping."""
    roots = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add(node.module.split(".")[0])
    allowed = {"jax", "equinox", "jaxtyping", "numpy", "typing_extensions"} | EXTRAS.get(name, set())
    assert roots - sys.stdlib_module_names <= allowed


def test_no_module_imports_itself_through_others():
    remaining = {name: set(imported) - {name} for name, imported in IMPORTS.items()}
    while free := [name for name, imported in remaining.items() if not imported & remaining.keys()]:
        for name in free:
            del remaining[name]
    assert not remaining, f"a cycle goes through {', '.join(sorted(remaining))}"


def test_the_folder_of_the_repository_holds_the_four_scripts_alone():
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS


def functions(tree):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return ((x.name, x.end_lineno - x.lineno + 1) for x in ast.walk(tree) if isinstance(x, kinds))


def test_functions_are_short():
    lines = {f"{name}.{function}": lines for name, tree in TREES.items() for function, lines in functions(tree)}
    assert {name: count for name, count in lines.items() if count > FUNCTION_LINES} == {}


def test_files_are_short():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}
