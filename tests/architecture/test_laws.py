"""Laws on the source text: nothing dangerous, nothing bound to one machine, one NDCG, small pieces.

Each law is a function from source text to complaints, shown to be able to fail on a small bad snippet. An exception
goes on a law's allow-list with its reason.
"""

import ast
import re

import pytest

LIBRARY = ("recllm/",)
SHIPPED = ("recllm/", "recipes/", "data_prep/", "benchmarks/")
EVERYWHERE = ("",)

MODULE_LINES, FUNCTION_LINES = 300, 50
# path or path:function -> why it may be longer.
LONGER: dict[str, str] = {}
# path -> why it takes a base-2 logarithm although it is not the metric's module.
OTHER_LOG2: dict[str, str] = {
    "recllm/data/prompts.py": "a history's length enters the prompt as its binary logarithm",
}

# Package files that re-export: single modules in the plan of the house, imported by their room's name.
DOORS = {"recllm/assets/__init__.py", "recllm/pipeline/__init__.py"}

PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
# Calls by their last two names, and what to do instead.
FORBIDDEN_CALLS = {
    "eval": "parse the value (json, ast.literal_eval)",
    "exec": "write the code down",
    "hash": "Python salts it per process; use hashlib",
    "builtins.eval": "parse the value",
    "builtins.exec": "write the code down",
    "torch.load": "use safetensors",
    "yaml.load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "yaml.full_load": "use yaml.safe_load",
    "os.system": "use subprocess.run with a list",
    "os.popen": "use subprocess.run with a list",
    "pd.read_pickle": "use parquet",
}
ABSOLUTE_PATH = re.compile(
    r"(?:^|[\s\"'=:,(])(/(?:home|tmp|work|root|opt|usr|var|mnt|Users|etc|srv|content|scratch)\b)"
)
DEVICE = re.compile(r"(cuda|mps|xpu|npu|hpu)(:\d+)?")


def dotted(node: ast.AST) -> str:
    """`a.b.c` as text, or an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def dangerous_code(source: str, path: str) -> list[str]:
    """Code execution from data, pickles, shells and swallowed exceptions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            name = ".".join(dotted(node.func).split(".")[-2:])
            if name in FORBIDDEN_CALLS:
                found.append(f"{where} {name}(): {FORBIDDEN_CALLS[name]}")
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "shell") and not _is_constant(keyword.value, False):
                    found.append(f"{where} {keyword.arg} must stay false")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [
                f"{where} {name}: use safetensors, parquet or json" for name in names if name.split(".")[0] in PICKLES
            ]
        elif isinstance(node, ast.ExceptHandler):
            if node.type is None:
                found.append(f"{where} bare except")
            elif dotted(node.type) in ("Exception", "BaseException") and all(
                isinstance(s, ast.Pass) for s in node.body
            ):
                found.append(f"{where} swallows every exception")
    return found


def _is_constant(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def remote_code(source: str, path: str) -> list[str]:
    """trust_remote_code set or defaulting to true, as keyword, default, field, dictionary entry or attribute."""
    pairs: list[tuple[str, ast.AST | None]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword):
            pairs.append((node.arg or "", node.value))
        elif isinstance(node, ast.Dict):
            pairs += [(k.value, v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)]
        elif isinstance(node, ast.AnnAssign):
            pairs.append((dotted(node.target).split(".")[-1], node.value))
        elif isinstance(node, ast.Assign):
            pairs += [(dotted(target).split(".")[-1], node.value) for target in node.targets]
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            pairs += [(a.arg, d) for a, d in zip(positional[::-1], node.defaults[::-1], strict=False)]
            pairs += [(a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
    guilty = [value for name, value in pairs if name == "trust_remote_code" and value is not None]
    return [
        f"{path}:{value.lineno} trust_remote_code is true"
        for value in guilty
        if any(_is_constant(part, True) for part in ast.walk(value))
    ]


def machine_bound(source: str, path: str) -> list[str]:
    """Absolute paths in string literals."""
    return [
        f"{path}:{node.lineno} absolute path {node.value.strip()[:60]!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ABSOLUTE_PATH.search(node.value)
    ]


def fixed_device(source: str, path: str) -> list[str]:
    """`.cuda()` and the names of accelerators, except in a function whose name says that it picks the device."""
    tree = ast.parse(source)
    pickers = [node for node in functions(tree) if "device" in node.name]
    allowed = {id(node) for picker in pickers for node in ast.walk(picker)}
    found = []
    for node in ast.walk(tree):
        if id(node) in allowed:
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            found.append(f"{path}:{node.lineno} .cuda(): take the device from the caller")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DEVICE.fullmatch(node.value):
            found.append(f"{path}:{node.lineno} fixed device {node.value!r}: take it from the caller")
    return found


def second_ndcg(source: str, path: str) -> list[str]:
    """An NDCG that is not the one of metrics/ranking.py, by its name or by its base-2 logarithm.

    A function may carry the name where it applies `ndcg_at_k` to its own ranks.
    """
    if path == "recllm/metrics/ranking.py":
        return []
    tree, found = ast.parse(source), []
    for node in functions(tree):
        called = {dotted(call.func).split(".")[-1] for call in ast.walk(node) if isinstance(call, ast.Call)}
        if "ndcg" in node.name.lower() and "ndcg_at_k" not in called:
            found.append(f"{path}:{node.lineno} {node.name} does not go through ndcg_at_k")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("recllm.") and not node.level:
            names = [alias.name for alias in node.names if "ndcg" in alias.name.lower()]
            found += [f"{path}:{node.lineno} imports {name} from {node.module}" for name in names]
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "log2" and path not in OTHER_LOG2:
            found.append(f"{path}:{node.lineno} log2(): the discount of an NDCG belongs to metrics/ranking.py")
    return found


def too_long(source: str, path: str) -> list[str]:
    """Modules of 300 lines and functions of 50 lines (signature and docstring counted)."""
    found = []
    lines = len(source.splitlines())
    if lines >= MODULE_LINES and path not in LONGER:
        found.append(f"{path} has {lines} lines, {MODULE_LINES} are too many")
    for node in functions(ast.parse(source)):
        length = node.end_lineno - node.lineno + 1
        if length >= FUNCTION_LINES and f"{path}:{node.name}" not in LONGER:
            found.append(f"{path}:{node.lineno} {node.name} has {length} lines, {FUNCTION_LINES} are too many")
    return found


def inheritance(source: str, path: str) -> list[str]:
    """A class of the project under another of its classes. Protocols, errors and framework bases are fine."""
    tree = ast.parse(source)
    own = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("recllm"))
        for alias in node.names
    }
    found = []
    for node in own.values():
        for base in (dotted(base) for base in node.bases):
            protocol = base in own and any("Protocol" in dotted(b) for b in own[base].bases)
            if (base in own or base in imported) and not protocol and not base.endswith(("Error", "Protocol")):
                found.append(f"{path}:{node.lineno} {node.name} inherits from {base}: pass it in instead")
    return found


LAWS = [
    (dangerous_code, EVERYWHERE),
    (remote_code, EVERYWHERE),
    (machine_bound, EVERYWHERE),
    (fixed_device, SHIPPED),  # a test marked gpu names its device
    (second_ndcg, SHIPPED),  # tests hold brute-force twins
    (too_long, LIBRARY),
    (inheritance, LIBRARY),
]


@pytest.mark.parametrize(("law", "scope"), LAWS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_law_holds(law, scope, sources):
    bound = {path: text for path, text in sources.items() if path.startswith(scope)}
    assert bound
    complaints = [complaint for path, text in bound.items() for complaint in law(text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_there_is_exactly_one_ndcg(sources):
    tree = ast.parse(sources["recllm/metrics/ranking.py"])
    assert [node.name for node in functions(tree) if "ndcg" in node.name] == ["ndcg_at_k"]


def more_than_a_door(source: str, path: str) -> list[str]:
    """A package file is empty. Where a module grew into a package, it may re-export names, so that imports go on
    working: a docstring, imports and __all__, nothing that runs."""
    if path in DOORS:
        rest = [
            node
            for node in ast.parse(source).body
            if not isinstance(node, ast.ImportFrom)
            and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            and not (isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__")
        ]
        return [f"{path}:{node.lineno} does more than re-export" for node in rest]
    return [f"{path} is not empty"] if source.strip() else []


def test_package_files_are_empty(sources):
    package_files = {path: text for path, text in sources.items() if path.endswith("/__init__.py")}
    assert not any(path.startswith("tests/") for path in package_files), "tests are collected by importlib"
    del package_files["recllm/__init__.py"]  # the version
    complaints = [found for path, text in package_files.items() for found in more_than_a_door(text, path)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_the_package_file_law_can_fail():
    assert more_than_a_door("from recllm.data.catalog import Catalog", "recllm/data/__init__.py")
    assert more_than_a_door("CACHE = {}", "recllm/assets/__init__.py")
    assert more_than_a_door("", "recllm/data/__init__.py") == []


def test_allow_lists_name_what_exists(sources):
    for entry in [*LONGER, *OTHER_LOG2, *DOORS]:
        path, _, function = entry.partition(":")
        assert path in sources, f"{entry} is gone; drop it"
        assert not function or function in {node.name for node in functions(ast.parse(sources[path]))}, entry


_LONG = "def f():\n" + "    x = 1\n" * 49
BAD = [
    (dangerous_code, "x = eval('1')"),
    (dangerous_code, "exec('1')"),
    (dangerous_code, "half = hash(user) % 2"),
    (dangerous_code, "import pickle"),
    (dangerous_code, "def f():\n    from pickle import loads"),
    (dangerous_code, "import torch\nx = torch.load('a.bin')"),
    (dangerous_code, "numpy.load(path, allow_pickle=True)"),
    (dangerous_code, "subprocess.run('ls', shell=True)"),
    (dangerous_code, "yaml.load(text)"),
    (dangerous_code, "os.system('ls')"),
    (dangerous_code, "try:\n    f()\nexcept:\n    raise"),
    (dangerous_code, "try:\n    f()\nexcept Exception:\n    pass"),
    (remote_code, "AutoModel.from_pretrained(x, trust_remote_code=True)"),
    (remote_code, "options = {'trust_remote_code': True}"),
    (remote_code, "class A:\n    trust_remote_code: bool = True"),
    (remote_code, "class A:\n    trust_remote_code: bool = field(default=True)"),
    (remote_code, "def f(x, trust_remote_code=True): ..."),
    (remote_code, "def f(*, trust_remote_code=True): ..."),
    (machine_bound, "open('" + "/" + "tmp/x')"),
    (machine_bound, "command = '--cache=" + "/" + "home/me/.cache'"),
    (machine_bound, "f'" + "/" + "root/{name}'"),
    (fixed_device, "model.cuda()"),
    (fixed_device, "def f(x, device='cuda'):\n    return x.to(device)"),
    (fixed_device, "x.to('cuda:0')"),
    (second_ndcg, "def mean_ndcg(x): ..."),
    (second_ndcg, "from sklearn.metrics import ndcg_score"),
    (second_ndcg, "gain = 1 / torch.log2(rank + 2)"),
    (too_long, "x = 1\n" * 300),
    (too_long, _LONG),
    (inheritance, "class A: ...\nclass B(A): ..."),
    (inheritance, "from recllm.backbones.sasrec import SasRec\nclass B(SasRec): ..."),
]
GOOD = [
    (dangerous_code, "model.eval()\nre.compile('x')\ntry:\n    f()\nexcept OSError:\n    pass"),
    (remote_code, "AutoModel.from_pretrained(x, trust_remote_code=False)"),
    (
        machine_bound,
        "path = root / 'work' / 'x'\nurl = 'https://example.org" + "/" + "home/x'\nratio = 'a" + "/" + "tmp'",
    ),
    (fixed_device, "def pick_device():\n    return 'cuda' if torch.cuda.is_available() else 'cpu'"),
    (second_ndcg, "from recllm.metrics.ranking import ndcg_at_k\nname = 'ndcg@10'"),
    (second_ndcg, "def answer_ndcg(env):\n    return ndcg_at_k(answer_rank(env), 10)"),
    (too_long, _LONG.removesuffix("    x = 1\n") + "x = 1\n" * 200),
    (
        inheritance,
        "class P(Protocol): ...\nclass Q(P, Protocol): ...\nclass M(nn.Module): ...\nclass E(ValueError): ...",
    ),
]


@pytest.mark.parametrize(("law", "source"), BAD)
def test_the_law_can_fail(law, source):
    assert law(source, "recllm/data/sample.py")


@pytest.mark.parametrize(("law", "source"), GOOD)
def test_the_law_lets_good_code_pass(law, source):
    assert law(source, "recllm/data/sample.py") == []
