"""The floors of the house: who may import whom (a static test over every module's imports)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "privfedtalk_flare"
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
TOP = ("flare", "study", "report", "cli.py")
BELOW = {  # room -> rooms it may not import
    "data": ("training", "federation", "privacy", "encryption", "evaluation", "flare", "cli"),
    "generator": ("training", "privacy", "encryption", "evaluation", "flare", "cli"),
    "federation": ("data", "generator", "training", "privacy", "encryption", "evaluation", "flare", "cli"),
    "privacy": ("data", "generator", "training", "encryption", "evaluation", "flare", "cli"),
    "encryption": ("data", "generator", "training", "privacy", "evaluation", "flare", "cli"),
    "evaluation": ("training", "federation", "privacy", "encryption", "flare", "cli"),
    "training": ("privacy", "encryption", "flare", "cli"),
    "flare": ("cli",),
    "study": ("report", "cli"),
    "report": ("cli",),
}
HIGHEST = ("study", "report")
"""What runs jobs, and what shows them: neither job nor site knows of either."""


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("privfedtalk_flare." + (node.module or "")) if node.level else node.module
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below(path):
    names = imports(path)
    if room(path) not in TOP:
        assert not any(n.split(".")[0] == "nvflare" for n in names), "nvflare belongs to the top floor"
    for forbidden in (*BELOW.get(room(path), ()), *(HIGHEST if room(path) not in (*HIGHEST, "cli.py") else ())):
        above = f"privfedtalk_flare.{forbidden}"
        assert not any(n == above or n.startswith(above + ".") for n in names), f"{path} imports {above}"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in ("federation", "privacy", "encryption")],
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_numeric_rooms_import_no_torch(path):
    assert not any(n.split(".")[0] == "torch" for n in imports(path))
    assert not any(n.split(".")[0] == "opacus" for n in imports(path, top_level_only=True))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_ever_unpickled(path):
    names = imports(path)
    assert not any(n.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve") for n in names)
    text = path.read_text()
    for call in ("torch.load(", "torch.save(", "allow_pickle=True", "eval(", "exec("):
        found = [line for line in text.splitlines() if call in line and f".{call}" not in line and "def " not in line]
        assert not found, f"{path}: {found}"
