"""README.md and docs/: every Python snippet runs; links, files, names, make targets and flags exist."""

import importlib
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / x for x in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FOLDERS = {path.parent.name for path in ROOT.glob("*/*") if path.parent.name[0] != "."} - {"outputs", "build"}
# `rhel` is the installed name of models/; in the clone, it is an alias.
pytestmark = pytest.mark.usefixtures("rhel")

per_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@pytest.fixture
def rhel(monkeypatch):
    for name in ("models.check.machine", "models.physics.continuous", "models.physics.imperfect"):
        importlib.import_module(name)
    for name, module in list(sys.modules.items()):
        if name == "models" or name.startswith("models."):
            monkeypatch.setitem(sys.modules, name.replace("models", "rhel", 1), module)


def snippets(page):
    """(line of the page, Python code) of every Python block."""
    text = page.read_text(encoding="utf-8")
    return [(text[: block.start(2)].count("\n"), block[2]) for block in CODE.finditer(text) if block[1] == "python"]


def inline(page):
    """The texts between single backticks."""
    return re.findall(r"`([^`\n]+)`", CODE.sub("", page.read_text(encoding="utf-8")))


def commands(page):
    """Every command `python SCRIPT ...` of the page, in one line each."""
    text = page.read_text(encoding="utf-8")
    shell = [block[2] for block in CODE.finditer(text) if block[1] == ""]
    lines = "\n".join([*shell, *re.findall(r"^    (.*)$", CODE.sub("", text), re.M)]).replace("\\\n", " ").split("\n")
    wrapped = re.findall(r"`(python [^`]+)`", CODE.sub("", text))
    found = [line.split("#")[0].strip() for line in (*lines, *(" ".join(command.split()) for command in wrapped))]
    return [command for command in found if command.startswith("python ")]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "experiment_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data_dir").mkdir(exist_ok=True)
    module = types.ModuleType(f"snippets_of_{page.stem}".replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in snippets(page):
        exec(compile("\n" * line + code, str(page), "exec"), vars(module))


@per_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", CODE.sub("", path.read_text(encoding="utf-8")), re.M) if heading else []
        slugs = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not heading or heading in slugs, target


@per_page
def test_files_and_python_names_exist(page):
    for text in inline(page):
        if re.fullmatch(r"[\w./]+/[\w.]*|\w+\.(py|md)", text) and (text.split("/")[0] in FOLDERS or "/" not in text):
            made = text.startswith(("data_dir/raw", "data_dir/processed")) or re.search(r"/(My|[A-Z]+\b)", text)
            assert made or (ROOT / text).exists() or any(ROOT.glob(f"*/{text}")), text
        name = re.match(r"[a-z_]+(\.\w+)+(?=\(|$)", text)
        if name and name[0].split(".")[0] in {*FOLDERS, "rhel"} and not text.endswith((".py", ".json", ".pkl", ".npy")):
            pkgutil.resolve_name(name[0].replace("rhel.", "models.", 1) if name[0].startswith("rhel.") else name[0])


@per_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    commands = [re.findall(r"(?<= )[\w-]+(?= |$)", text) for text in inline(page) if text.startswith("make ")]
    assert {target for command in commands for target in command} <= targets


def flags_of(script, monkeypatch, capsys):
    """The flags that --help of a script lists."""
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    parts = Path(script).with_suffix("").parts
    main = importlib.import_module(parts[-1] if parts[0] == "examples" else ".".join(parts)).main
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    return set(re.findall(r"--\w+", capsys.readouterr().out))


def test_commands_name_scripts_and_flags_that_exist(monkeypatch, capsys):
    known = {}
    for page in PAGES:
        for command in commands(page):
            script, *arguments = command.split()[1:]
            if script == "-m":
                continue
            if script not in known:
                known[script] = flags_of(script, monkeypatch, capsys)
            assert {x for x in arguments if x.startswith("--")} <= known[script], f"{page.name}: {command}"
    everywhere = set().union(*known.values())
    for page in PAGES:
        flags = {flag for text in inline(page) for flag in re.findall(r"(?<![\w-])--\w+", text)}
        assert flags <= everywhere, page.name


def test_the_layout_lists_every_module():
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    trees = "".join(block[2] for block in CODE.finditer(text))
    listed, folder = set(), ""
    for line in trees.splitlines():
        name, *words = line.split()
        folder = name if line[0] != " " else folder
        if line[0] == " ":
            listed |= {folder + word for word in (name, *words) if word.endswith(".py")}
    folders = {path for path in re.findall(r"^(\S+/)", trees, re.M) if any(path in name for name in listed)}
    modules = {f"{folder}{path.name}" for folder in folders for path in (ROOT / folder).glob("*.py")}
    assert listed == {name for name in modules if not name.endswith("__init__.py")}


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
