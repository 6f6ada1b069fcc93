"""The plan of the house: imports go one way, from the wings further down to those above them."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pyro_sps"

#: The wings in the order of the way of the data. A module imports from its own wing and from those before it.
WINGS = (
    "base",
    "network",
    "data",
    "masks",
    "symmetry",
    "model",
    "posterior",
    "inference",
    "plots",
    "diagnostics",
    "estimators",
    "study",
    "cli",
)
#: Wings whose modules import inside functions, so that `pyro-sps --help` starts without torch.
LAZY = ("cli",)


def modules():
    """Every module of the package, by its dotted name inside it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


NAMES = {name for name, _ in modules()}


def wing(module):
    return module.partition(".")[0]


def targets(node, module, path):
    """The modules of the package that an import statement reads."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        package = module.split(".") if path.stem == "__init__" and module else module.split(".")[:-1]
        base = ".".join(["pyro_sps", *package[: len(package) - node.level + 1]]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        names = [f"{source}.{alias.name}" for alias in node.names]
    for name in names:
        if name == "pyro_sps" or not name.startswith("pyro_sps."):
            continue
        inside = name.removeprefix("pyro_sps.")
        yield inside if inside in NAMES else inside.rpartition(".")[0]


def imports():
    """Every import inside the house: (module, what it imports, path, line, the function that it stands in or None)."""
    for module, path in modules():
        tree = ast.parse(path.read_text())
        inside = {
            inner: function
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for inner in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for target in targets(node, module, path):
                    if target:
                        yield module, target, path, node.lineno, inside.get(node)


def points_up(module, target):
    """Whether an arrow goes the right way: within a wing, or to a wing further up."""
    if wing(target) in ("version", "moved"):
        return True
    return WINGS.index(wing(target)) <= WINGS.index(wing(module))


def is_one_line(function):
    """Whether a function holds an import and what it is for, and nothing else."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return len(body) == 2 and isinstance(body[0], ast.Import | ast.ImportFrom)


def test_every_module_is_in_a_wing():
    strangers = {wing(name) for name in NAMES} - {*WINGS, "", "version", "moved"}
    assert not strangers, f"{strangers} are in no wing: see WINGS"


def test_arrows_go_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target}, a wing further down"
        for module, target, path, line, function in imports()
        if module and function is None and not points_up(module, target)
    ]
    assert not wrong, "\n".join(wrong)


def test_only_conveniences_import_inside_a_function():
    """One-line methods such as `Fit.to_arviz`, which point down; everything else imports at module level."""
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target} inside {function.name}"
        for module, target, path, line, function in imports()
        if module and function is not None and wing(module) not in LAZY and not is_one_line(function)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle():
    arrows = {}
    for module, target, _, _, function in imports():
        if module and function is None and target != module:
            arrows.setdefault(module, set()).add(target)
    done, path = set(), []

    def visit(module):
        if module in path:
            raise AssertionError("a circle: " + " -> ".join([*path[path.index(module) :], module]))
        if module not in done:
            path.append(module)
            for target in sorted(arrows.get(module, ())):
                visit(target)
            path.pop()
            done.add(module)

    for module in sorted(arrows):
        visit(module)
