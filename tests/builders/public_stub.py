"""Writes ``manticore/__init__.pyi``, which shows editors and mypy every option with its type and default.

python tests/builders/public_stub.py
"""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import manticore

FILE = Path(manticore.__file__).with_suffix(".pyi")

KNOWN = {
    **dict.fromkeys(("Any", "Literal"), "typing"),
    **dict.fromkeys(("Mapping", "Sequence"), "collections.abc"),
    "Path": "pathlib",
    **dict.fromkeys(("PreTrainedModel", "PreTrainedTokenizerBase"), "transformers"),
    "Progress": "manticore.training.callbacks",
    "Tensor": "torch",
    "Text": "manticore.tasks.corpus",
}
"""Names in the types of options → the module that has them."""


def stub() -> str:
    """The text that the file should have."""
    functions, imported = [], set()
    for name, module in sorted(manticore._PUBLIC.items()):
        value = getattr(manticore, name)
        if hasattr(value, "__signature__") and inspect.isfunction(value):
            functions.append(_function(name, value.__signature__))
            imported |= _sources(functions[-1], module)
        else:
            imported.add(f"from {module} import {name} as {name}")
    return "\n".join(
        [
            '"""Public names. Made by tests/builders/public_stub.py; tests/test_public_stub.py keeps it fresh."""',
            "",
            "import torch",
            *sorted(imported),
            "",
            "__version__: str",
            "__all__: list[str]",
            *(f"\n{function}" for function in functions),
            "",
        ]
    )


def _function(name: str, signature: inspect.Signature) -> str:
    lines, bare = [], True
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and bare:
            lines.append("*")
            bare = False
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        if parameter.kind is parameter.KEYWORD_ONLY and not default:
            # settings may give it
            default = " = ..."
        lines.append(f"{parameter.name}: {parameter.annotation}{default}")
    listed = "".join(f"    {line},\n" for line in lines)
    return f"def {name}(\n{listed}) -> {signature.return_annotation}: ..."


def _sources(function: str, module: str) -> set[str]:
    """The imports that a function's types need, from where its module has them."""
    tree = ast.parse(Path(import_module(module).__file__ or "").read_text("utf-8"))
    found = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    found |= {node.name: module for node in tree.body if isinstance(node, ast.ClassDef)}
    typed = re.sub(r"'[^']*'", "", function)
    names = set(re.findall(r"\b[A-Z]\w*", typed)) - {"None", "True", "False"}
    return {f"from {KNOWN.get(name) or found[name]} import {name}" for name in names}


if __name__ == "__main__":
    FILE.write_text(stub(), encoding="utf-8")
