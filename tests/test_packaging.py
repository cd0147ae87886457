"""How the package sits among others: root folders, lazy imports, registration with transformers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from fresh import Fresh

ROOT = Path(__file__).resolve().parents[1]

REGISTERED = (
    "from transformers import AutoConfig, AutoModelForCausalLM\n"
    "known = AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model('manticore'))]\n"
    "print(known.__name__)"
)
STACKS = REGISTERED.replace("'manticore'", "'manticore_stack'")


Python: TypeAlias = Callable[[str], str]
"""Runs code with the repository root on its path; its output."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Python]:
    """In a process that has imported neither transformers nor this package."""
    fresh = Fresh(tmp_path_factory.mktemp("fresh"), ROOT)

    def run(code: str) -> str:
        exit_code, output, errors = fresh.run(code)
        assert exit_code == 0, errors
        return output.strip()

    yield run
    fresh.close()


def test_the_kernels_folder_does_not_hide_the_package_that_transformers_imports(python: Python) -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    found = python(
        "import transformers.integrations.hub_kernels\n"
        "module = sys.modules.get('kernels')\n"
        "print(getattr(module, '__file__', None))"
    )
    assert str(ROOT) not in found


def test_an_installed_package_has_every_folder_of_code() -> None:
    listed = re.search(r"^packages = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    declared = set(ast.literal_eval(listed[1]))
    root = ROOT / "manticore"
    code = {file.parent for folder in (root, *root.iterdir()) if folder.is_dir() for file in folder.glob("**/*.py")}
    assert declared >= {".".join(("manticore", *folder.relative_to(root).parts)) for folder in code}


def test_root_folders_are_reached_through_relative_links() -> None:
    for name in ("kernels", "projectors", "recipes"):
        link = ROOT / "manticore" / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / name


def test_importing_manticore_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, manticore; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (finished.stdout.strip(), finished.stderr) == ("[]", "")


def test_the_hybrid_is_registered_whichever_is_imported_first(python: Python) -> None:
    assert python(f"import manticore\n{REGISTERED}") == "ManticoreForCausalLM"
    assert python(f"import transformers, manticore\n{REGISTERED}") == "ManticoreForCausalLM"
    assert (
        python(f"from transformers import AutoModelForCausalLM\nimport manticore\n{REGISTERED}")
        == "ManticoreForCausalLM"
    )


def test_stacks_are_registered_whichever_is_imported_first(python: Python) -> None:
    assert python(f"import manticore.stacks.presets\n{STACKS}") == "StackForCausalLM"
    assert python(f"import manticore\n{STACKS}\n{REGISTERED}") == "StackForCausalLM\nManticoreForCausalLM"


@pytest.mark.parametrize("first", ["import manticore", "from transformers import AutoConfig\nimport manticore"])
def test_a_configuration_loads_where_no_model_class_is_loaded(python: Python, first: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "manticore"}')
    load = f"from transformers import AutoConfig\nprint(type(AutoConfig.from_pretrained({str(tmp_path)!r})).__name__)"
    assert python(f"{first}\n{load}") == "ManticoreConfig"


@pytest.mark.parametrize("name", ["PreTrainedModel", "AutoTokenizer"])
def test_any_part_of_transformers_can_be_the_first_to_be_used(python: Python, name: str) -> None:
    assert python(f"import manticore\nfrom transformers import {name}\n{REGISTERED}") == "ManticoreForCausalLM"


@pytest.mark.parametrize(
    "module",
    ["components.loading", "hybrid.mixing", "hybrid.modeling"],
)
def test_a_module_can_be_the_first_to_be_imported(python: Python, module: str) -> None:
    assert python(f"import manticore.{module}\n{REGISTERED}") == "ManticoreForCausalLM"


def test_every_public_name_leads_to_something(python: Python) -> None:
    names = python("import manticore; print(*[name for name in manticore.__all__ if getattr(manticore, name) is None])")
    assert names == ""


def test_a_function_keeps_its_name_whatever_is_imported_before(python: Python) -> None:
    python(
        "from manticore.search.differentiable.methods import Darts\n"
        "import manticore\n"
        "from manticore import search\n"
        "assert manticore.search is search and callable(search), search\n"
        "from manticore.search.differentiable.halves import AlternatingHalves\n"
        "assert manticore.search is search"
    )
