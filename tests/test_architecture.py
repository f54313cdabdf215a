"""Who may import whom, that reading needs no torch, and that the package exports what it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sgdwalk

SOURCE = Path(sgdwalk.__file__).parent

LAYERS = [
    {"errors", "records", "text"},
    {"when", "valley", "provenance", "lock", "norm_growth", "multilevel"},
    {"sample_sizes"},
    {"looks"},
    {"rows", "three_levels", "schedules"},
    {"store"},
    {"run"},
    {"sampling", "columns"},
    {"analysis", "budget", "drawing"},
    {"captions", "summary", "epoch_means"},
    {"barrier_figure", "curvature_figures", "three_panels", "epoch_figure"},
    {"figures", "svg"},
    {"report_figures", "report_tables"},
    {"report"},
    {"isolation", "params", "data", "fused_loops", "kernels", "state", "eigensolver", "draws", "graphs", "short_rows"},
    {"allocator", "memory_format", "following"},
    {"distributions"},
    {"replica", "trajectory", "checkpoints"},
    {"objective"},
    {"operators"},
    {"shared_layer", "probes", "measures", "overheard", "outputs"},
    {"segment", "units", "awaiting"},
    {"passage"},
    {"certified"},
    {"sampled_ends"},
    {"examples", "standing"},
    {"outer_products"},
    {"noise", "residual"},
    {"max_variance", "noise_scale", "alignment"},
    {"measuring", "hooks"},
    {"stability", "isotropic"},
    {"curvature", "sharpness", "spectrum", "sampled"},
    {"spectral_walk"},
    {"journal", "calibration", "arguments"},
    {"walk"},
    {"watching"},
    {"paper"},
    {"terminal", "sweep_command"},
    {"cli"},
    {"__main__"},
]
"""From the bottom to the top: a module imports from the layers below its own, and from its own."""

READING = {
    *(
        "errors",
        "records",
        "text",
        "when",
        "valley",
        "provenance",
        "lock",
        "rows",
        "store",
        "run",
        "columns",
        "analysis",
        "multilevel",
        "sample_sizes",
        "sampling",
        "budget",
    ),
    *(
        "drawing",
        "captions",
        "summary",
        "epoch_means",
        "epoch_figure",
        "barrier_figure",
        "curvature_figures",
        "three_panels",
        "figures",
        "svg",
        "report_figures",
    ),
    *("report_tables", "report", "terminal", "sweep_command", "cli"),
}
"""Modules that import no torch, nor any module that does."""

PAPER_TORCH = {
    *("augmentation", "compare", "data", "decomposition", "estimate", "models", "noising", "part_curvature"),
    *("schedules", "spectral", "standing", "train", "worker"),
}
"""The modules of the reproduction that train; the others read, plan or judge."""


def modules():
    """Every module of the package: its dotted name below ``sgdwalk``, and its syntax tree."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name, ast.parse(path.read_text("utf-8"))


def imports(tree, *, at_import=False):
    """The modules that a tree imports, and for ``from X import Y`` both X and X.Y.

    ``at_import``: only those that importing the module imports, not those within functions or for type checkers.
    """
    for node in ast.walk(Importing().visit(tree) if at_import else tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class Importing(ast.NodeTransformer):
    """Leaves of a module what runs when it is imported."""

    def visit_FunctionDef(self, node):
        return None

    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def trees(*, at_import=False):
    return {name: set(imports(tree, at_import=at_import)) for name, tree in modules()}


def layer(name):
    first = name.split(".")[0]
    (found,) = [number for number, names in enumerate(LAYERS) if first in names] or [None]
    return found


def own_modules(imported):
    """The modules of the package among imported names, by their name below ``sgdwalk``."""
    for name in imported:
        parts = name.split(".")
        if parts[0] == "sgdwalk" and len(parts) > 1 and SOURCE.joinpath(parts[1] + ".py").exists():
            yield parts[1]
        elif parts[:2] == ["sgdwalk", "paper"]:
            yield "paper"


def test_every_module_has_its_layer():
    names = {name.split(".")[0] for name in trees()} - {"__init__"}
    assert names == set().union(*LAYERS)


def test_imports_run_one_way():
    upward = [
        f"{name} imports {imported}"
        for name, all_imported in trees(at_import=True).items()
        for imported in own_modules(all_imported)
        if name != "__init__" and layer(imported) > layer(name)
    ]
    assert upward == []


def test_reading_modules_import_nothing_that_needs_torch():
    for name, imported in trees(at_import=True).items():
        if name not in READING:
            continue
        assert not {each for each in imported if each.split(".")[0] == "torch"}, name
        assert set(own_modules(imported)) - {"paper"} <= READING, name


def test_the_package_itself_imports_nothing_of_its_own():
    assert list(own_modules(trees(at_import=True)["__init__"])) == []


def test_the_paper_uses_only_public_names():
    for name, tree in modules():
        if not name.startswith("paper."):
            continue
        private = {
            each for each in imports(tree) if each.startswith("sgdwalk.") and not each.startswith("sgdwalk.paper")
        }
        assert private == set(), name
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sgdwalk"
        }
        assert used <= set(sgdwalk.__all__), name


def test_in_the_paper_only_what_trains_imports_torch():
    for name, imported in trees(at_import=True).items():
        if name.startswith("paper.") and name.removeprefix("paper.") not in PAPER_TORCH:
            torch = {each for each in imported if each.split(".")[0] == "torch"}
            training = {each for each in imported if each.removeprefix("sgdwalk.paper.") in PAPER_TORCH}
            assert (torch, training) == (set(), set()), name


def test_all_is_what_the_package_exports():
    assert sgdwalk.__all__ == sorted(sgdwalk.__all__)
    assert dir(sgdwalk) == sorted([*sgdwalk.__all__, "__version__"])
    for name in sgdwalk.__all__:
        assert getattr(sgdwalk, name) is not None
    with pytest.raises(AttributeError, match="module 'sgdwalk' has no attribute 'no_such_name'"):
        _ = sgdwalk.no_such_name


def test_names_for_type_checkers_are_the_exported_ones():
    (tree,) = [tree for name, tree in modules() if name == "__init__"]
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    named = {alias.name for node in block.body for alias in node.names}
    assert named == set(sgdwalk.__all__)


def test_no_pickle_is_read_or_written():
    forbidden_modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for name, tree in modules():
        assert not {each.split(".")[0] for each in imports(tree)} & forbidden_modules, name
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & {"torch.load", "torch.save", "np.load", "pd.read_pickle", "eval", "exec"}, name


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_reading_imports_no_torch():
    code = (
        "import sys, sgdwalk, sgdwalk.valley, sgdwalk.analysis, sgdwalk.figures, sgdwalk.report, sgdwalk.cli\n"
        "import sgdwalk.paper.walk_claims, sgdwalk.paper.registry, sgdwalk.paper.run, sgdwalk.terminal\n"
        "sgdwalk.open_run, sgdwalk.write_report, sgdwalk.save_figure, sgdwalk.every\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'torch'))"
    )
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("[]\n", "")
