"""Every script on the roof has one shape: a docstring in sections, one dataclass, `main`, and nothing else."""

import ast
import re

import pytest

LINES = 120
SECTIONS = {"recipes": ("Method", "Run", "Quick", "Makes", "Expect"), "data_prep": ("Run", "Makes")}
FORBIDDEN_NAMES = {
    "print": "the library reports progress",
    "argparse": "arguments come through recllm.training.arguments.parse",
    "environ": "the environment is the launcher's",
    "putenv": "the environment is the launcher's",
    "getenv": "the environment is the launcher's",
}


# Script -> why it makes no output folder.
NO_OUTPUT = {"recipes/publish.py": "it sends a finished folder and leaves it as it is"}


def is_script(path: str) -> bool:
    folder, _, name = path.partition("/")
    return folder in SECTIONS and "/" not in name


def shape(source: str, path: str) -> list[str]:
    """Everything in which a script departs from the shape."""
    tree = ast.parse(source)
    found = [*_docstring(tree, path), *_arguments(tree, path), *_functions(tree), *_ending(tree)]
    if len(source.splitlines()) >= LINES:
        found.append(f"has {len(source.splitlines())} lines, {LINES} are too many")
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            found.append(f"line {node.lineno}: try; errors are the library's to explain")
        names = [getattr(node, "id", ""), getattr(node, "attr", "")]
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        found += [f"line {node.lineno}: {n}; {FORBIDDEN_NAMES[n]}" for n in names if n in FORBIDDEN_NAMES]
    return [f"{path} {complaint}" for complaint in found]


def _docstring(tree: ast.Module, path: str) -> list[str]:
    text = ast.get_docstring(tree) or ""
    wanted = SECTIONS[path.split("/")[0]]
    return [f"docstring has no section {name}:" for name in wanted if not re.search(rf"^{name}\b.*:", text, re.M)]


def _arguments(tree: ast.Module, path: str) -> list[str]:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        return [f"has {len(classes)} classes; one dataclass of its own is the rule"]
    node = classes[0]
    found = [] if node.name.endswith("Arguments") else [f"its dataclass is {node.name}, not ...Arguments"]
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        found.append(f"{node.name} is no dataclass")
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    names = {item.target.id for item in fields}
    found += [f"field {item.target.id} has no help" for item in fields if not _has_help(item.value)]
    # Where TRL's config is parsed besides, output_dir is a field of that.
    elsewhere = path in NO_OUTPUT or "parse(Arguments, " in ast.unparse(tree.body[-1])
    return found if "output_dir" in names or elsewhere else [*found, "has no field output_dir"]


def _has_help(value: ast.expr | None) -> bool:
    metadata = [
        k.value for k in getattr(value, "keywords", []) if k.arg == "metadata" and isinstance(k.value, ast.Dict)
    ]
    keys = [key.value for entry in metadata for key in entry.keys if isinstance(key, ast.Constant)]
    return "help" in keys


def _functions(tree: ast.Module) -> list[str]:
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [] if names == ["main"] else [f"defines {names}; only main belongs in a script"]


def _ending(tree: ast.Module) -> list[str]:
    """`if __name__ == "__main__": main(*parse(...))`; before it at most the default config's path is put together."""
    last = tree.body[-1]
    if not isinstance(last, ast.If) or ast.unparse(last.test) != "__name__ == '__main__'":
        return ["does not end in the __main__ block"]
    *before, call = last.body
    match call:
        case ast.Expr(ast.Call(ast.Name("main"), [ast.Starred(ast.Call(ast.Name("parse")))], [])):
            if all(
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "default_config" for node in before
            ):
                return []
    return ["its __main__ block is not main(*parse(...))"]


def test_scripts_have_the_shape(sources):
    scripts = {path: text for path, text in sources.items() if is_script(path)}
    assert scripts
    complaints = [complaint for path, text in scripts.items() for complaint in shape(text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


GOOD = '''"""Train.

Method: a paper.
Run: python x
Quick (2 minutes): python x
Makes: weights
Expect: 0.1
"""

from dataclasses import dataclass, field

from recllm.training.arguments import parse


@dataclass
class Arguments:
    """What to train."""

    output_dir: str = field(metadata={"help": "Where to."})


def main(args):
    args.train()


if __name__ == "__main__":
    main(*parse(Arguments))
'''


def test_a_good_script_passes():
    assert shape(GOOD, "recipes/x.py") == []
    with_trl = GOOD.replace("output_dir", "chats").replace("parse(Arguments)", "parse(Arguments, *TRL_CONFIGS)")
    assert shape(with_trl, "recipes/x.py") == []
    with_default = GOOD.replace("    main(*", '    default_config = Path("x.yaml")\n    main(*')
    assert shape(with_default, "recipes/x.py") == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Expect: 0.1\n", "", "no section Expect"),
        ("Method: a paper.\n", "", "no section Method"),
        ('metadata={"help": "Where to."}', "default='x'", "output_dir has no help"),
        ('field(metadata={"help": "Where to."})', "'x'", "output_dir has no help"),
        ("output_dir", "folder", "no field output_dir"),
        ("class Arguments", "class Options", "not ...Arguments"),
        ("@dataclass\n", "", "no dataclass"),
        ("def main", "class B: ...\n\n\ndef main", "2 classes"),
        ("def main", "def helper(): ...\n\n\ndef main", "only main"),
        ("    args.train()", "    def inner(): ...", "only main"),
        ("args.train()", "print(args)", "print"),
        ("args.train()", "os.environ['A'] = 'b'", "environ"),
        ("from dataclasses", "import argparse\nfrom dataclasses", "argparse"),
        ("    args.train()", "    try:\n        args.train()\n    finally:\n        pass", "try"),
        ("main(*parse(Arguments))", "main(Arguments('x'))", "__main__ block is not"),
        ("    main(*parse", "    options = 1\n    main(*parse", "__main__ block is not"),
        ('if __name__ == "__main__":\n    main(*parse(Arguments))\n', "x = 1\n", "does not end"),
        ("    args.train()\n", "    args.train()\n" * 120, "too many"),
    ],
)
def test_the_law_can_fail(old, new, complaint):
    assert old in GOOD
    assert any(complaint in found for found in shape(GOOD.replace(old, new), "recipes/x.py"))
