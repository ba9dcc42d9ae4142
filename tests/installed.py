"""What the installed package `rhel` must be and do: python installed.py README.md. Run by `make wheel-test`."""

import importlib.metadata
import importlib.util
import re
import sys
import time
from pathlib import Path

PUBLIC = {
    *("evolve", "AbstractHamiltonian", "RHEL", "BPTT", "ReversibleBPTT", "check_gradient", "check_hamiltonian"),
    *("LinHRU", "NonlinHRU", "create_model", "load_run"),
}
ABSENT = ("models", "train", "training", "runs", "common", "data_dir", "diffrax", "optax", "sktime", "pandas")


def first_snippet(text: str) -> str:
    """The first Python block of a Markdown text."""
    found = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if not found:
        raise SystemExit("the text has no block that starts with ```python")
    return found[1]


def refusal(module: str) -> str:
    """What the import of this module raises, or an empty text."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return ""


def main(readme: Path) -> None:
    """Raises if the package is not as promised."""
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    assert not present, f"the environment should not have {', '.join(present)}"
    files = importlib.metadata.files("rhel")
    assert {file.parts[0].split("-")[0] for file in files} == {"rhel"}, files
    snippet = first_snippet(readme.read_text(encoding="utf-8"))
    start = time.perf_counter()
    import rhel

    seconds = time.perf_counter() - start
    missing = sorted(name for name in PUBLIC if not hasattr(rhel, name))
    assert not missing, f"rhel lacks {', '.join(missing)}"
    for module in ("rhel.check", "rhel.rhel.echo", "rhel.physics.imperfect", "rhel.load", "rhel.stack"):
        importlib.import_module(module)
    message = refusal("rhel.physics.continuous")
    assert "rhel[continuous]" in message, f"without diffrax the message should name the extra: {message}"
    exec(compile(snippet, f"the first snippet of {readme}", "exec"), {"__name__": "snippet"})
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "equinox", "jaxtyping"))
    print(f"rhel {importlib.metadata.version('rhel')} with {versions}: imported in {seconds:.1f} s, the snippet ran")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
