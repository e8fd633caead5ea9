"""What keeps the tree easy to read: short functions, no cycles, few members reached into, little said twice."""

import ast
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST, MOST_MEMBERS, WINDOW, MOST_REPEATED = 40, 10, 6, 0.02
LIBRARY = ("pyrovae", "models", "guides")


def files(*folders):
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [p for p in found if not any(part.is_symlink() for part in (p, *p.parents))]


def functions(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def body_lines(function):
    body = function.body
    documented = isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str)
    body = body[1:] if documented else body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_can_be_read_at_once():
    places = [(p, f) for p in files(*LIBRARY, "examples", "benchmarks") for f in functions(p)]
    long = {f"{p.relative_to(ROOT)}:{f.name}": body_lines(f) for p, f in places if body_lines(f) > LONGEST}
    assert long == {}


def modules():
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files("pyrovae")}


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    imports = defaultdict(set)
    for name, path in known.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyrovae"):
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                imports[name] |= {one if one in known else node.module for one in wanted}

    def walk(name, path, done):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            done.add(name)
            for other in imports[name]:
                walk(other, [*path, name], done)

    done = set()
    for name in known:
        walk(name, [], done)


def annotated(annotation):
    """Return the class that an annotation names, if it names one."""
    if isinstance(annotation, ast.Name):
        return annotation.id
    if isinstance(annotation, ast.BinOp):
        return annotated(annotation.left) or annotated(annotation.right)
    return annotation.value if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str) else None


def members(path, classes):
    """Return the members of other modules' classes that a module reaches into, through arguments and ``self``."""
    reached, own = defaultdict(set), {}
    tree = ast.parse(path.read_text())
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        types = {a.arg: annotated(a.annotation) for a in [*function.args.args, *function.args.kwonlyargs]}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                if isinstance(node.value, ast.Name) and types.get(node.value.id):
                    own[node.targets[0].attr] = types[node.value.id]
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        types = {a.arg: annotated(a.annotation) for a in [*function.args.args, *function.args.kwonlyargs]}
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            value = node.value
            cls = types.get(value.id) if isinstance(value, ast.Name) else None
            if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "self":
                cls = own.get(value.attr)
            if cls in classes and classes[cls] != path:
                reached[cls].add(node.attr)
    return reached


def test_no_module_reaches_into_more_than_a_few_members_of_another():
    paths = files(*LIBRARY)
    trees = {path: ast.parse(path.read_text()).body for path in paths}
    classes = {node.name: path for path, body in trees.items() for node in body if isinstance(node, ast.ClassDef)}
    reached = {(p.name, cls): names for p in paths for cls, names in members(p, classes).items()}
    assert {place: names for place, names in reached.items() if len(names) > MOST_MEMBERS} == {}


def test_little_is_said_twice():
    windows = Counter()
    for path in files(*LIBRARY):
        lines = [line.strip() for line in path.read_text().splitlines()]
        code = [line for line in lines if line and not line.startswith(("#", "import ", "from ", ")", "]", "}"))]
        windows.update(tuple(code[i : i + WINDOW]) for i in range(len(code) - WINDOW + 1))
    repeated = sum(count for count in windows.values() if count > 1)
    assert repeated / windows.total() < MOST_REPEATED
