"""Imports run one way: each module imports only from its own row and the rows before it.

Also what else is held by reading the source: types, ruff's rules, no file that is too long, no
utils.py, and a package that is imported without its heavy dependencies.
"""

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tarl_jax

ROOT = Path(tarl_jax.__file__).parent
MAX_LINES = 400
# What a user runs: files and folders of the package's root that have a command line.
COMMANDS = {"main", "evaluate", "export", "plan", "view", "serve", "chat"}
ROOMS = {"config", "parallel", "llm", "rl", "models", "text", "sandbox", "maths", "speech",
         "rollout", "judge", "runs", "warm_start", "training"}
RECORDS = {"types"}  # what the rooms hand to each other
ROWS = (
    # Records, knobs, the mesh, how a process starts.
    ("types.*", "speech.sound", "config.*", "parallel.*"),
    # Outside language models.
    ("llm.*",),
    # Pure functions on arrays; models; text; the sandbox.
    ("rl.rewards", "rl.advantages", "rl.losses", "rl.batching", "rl.calibration", "rl.optimizer",
     "rl.turn_advantages",
     "models.*", "text.*", "sandbox.*", "maths.*", "speech.*"),
    # What joins them: episodes, their judges, the update.
    ("rollout.*", "judge.rules", "judge.user_rules", "judge.request", "judge.answer",
     "judge.llm", "judge.noise",
     "judge.service", "judge.agreement", "judge.incentive", "judge.information",
     "rl.objective", "rl.apply", "rl.update"),
    # What is on disk and on screen.
    ("runs.*",),
    ("warm_start.*",),
    # The loop, and tools over finished runs.
    ("training.*", "judge.calibrate", "judge.report", "judge.user_truth", "view.*"),
    ("main", "evaluate", "export", "plan", "serve.*", "chat"),
)
PACKAGES = 2  # the row of packages that stand apart
# Inside it: which package may import which other one.
SIDEWAYS = {("text", "sandbox"), ("maths", "sandbox"), ("speech", "sandbox")}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(name):
    """The modules of this package that a module imports, wherever in its text."""
    path = SOURCES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["tarl_jax", *package.split(".")] if package else ["tarl_jax"]
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] != "tarl_jax":
                continue
            inner = target.removeprefix("tarl_jax").removeprefix(".")
            while inner and inner not in SOURCES:  # a name inside a module
                inner = inner.rpartition(".")[0]
            if inner:
                found.add(inner)
    return found - {name}


def is_package(name):
    return SOURCES[name].name == "__init__.py"


def row_of(name):
    """The row of a module; None if it stands in none."""
    return next(
        (r for r, row in enumerate(ROWS) if any(fnmatchcase(name, pattern) for pattern in row)),
        None,
    )


MODULES = [name for name in SOURCES if not is_package(name)]


def test_the_walk_sees_imports():
    # Guards the guard: a walker that finds nothing would pass everything.
    assert {"config", "types"} <= imports_of("sandbox.tasks") | imports_of("sandbox.shop")
    assert "training.learn" in imports_of("training.run")
    assert "sandbox.phrases" in imports_of("sandbox.tasks")  # `from package import module`
    assert len(MODULES) > 20


@pytest.mark.parametrize("name", MODULES)
def test_every_module_stands_in_a_row(name):
    assert row_of(name) is not None, (
        f"tarl_jax.{name} stands in no row: add it to ROWS in {Path(__file__).name}, in the first"
        " row that comes after everything it imports"
    )


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    row = row_of(name)
    for other in imports_of(name):
        if is_package(other) or row is None or row_of(other) is None:
            continue
        assert row_of(other) <= row, f"tarl_jax.{name} (row {row}) imports tarl_jax.{other}"
        if row == row_of(other) == PACKAGES:
            here, there = name.split(".")[0], other.split(".")[0]
            assert here == there or (here, there) in SIDEWAYS, (
                f"tarl_jax.{name} imports tarl_jax.{other}: {here}/ stands apart from {there}/"
            )


def test_imports_have_no_cycle():
    graph = {name: imports_of(name) for name in SOURCES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_the_root_holds_commands_and_rooms():
    names = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    names -= {"__init__"}
    assert names <= COMMANDS | ROOMS | RECORDS, "neither a command nor a room"
    assert names >= ROOMS | RECORDS
    assert len(COMMANDS | RECORDS) <= 8 and len(ROOMS) <= 14 and len(names) <= 22


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_tests_mirror_the_rooms(room):
    assert list((ROOT.parent / "tests" / room).glob("test_*.py")), f"tests/{room} tests nothing"


def test_packages_import_nothing_at_once():
    # So that `import tarl_jax.sandbox.shop` costs what that module costs. The indexes of the config
    # and of the records are the exception: they name what every room needs.
    packages = [
        f"tarl_jax.{name}".rstrip(".") for name in filter(is_package, SOURCES)
        if name not in ("config", *RECORDS)
    ]
    code = f"import sys, {', '.join(packages)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {m for m in done.stdout.split() if m.split(".")[0] == "tarl_jax"}
    assert ours == set(packages)


def test_importing_the_package_is_cheap():
    code = (
        "import sys, tarl_jax\n"
        "heavy = {'jax', 'jaxlib', 'numpy', 'flax', 'optax', 'sentencepiece'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: split it"


def test_no_module_is_named_utils():
    assert not [str(path) for path in SOURCES.values() if path.stem in ("utils", "util", "helpers")]


@pytest.mark.parametrize("tool", [["ruff", "check", "--no-cache"], ["mypy"]], ids=" ".join)
def test_the_source_passes(tool, tmp_path):
    more = ["--cache-dir", str(tmp_path)] if tool == ["mypy"] else []
    command = [sys.executable, "-m", *tool, *more]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
