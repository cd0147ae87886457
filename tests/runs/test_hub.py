"""To the hub and back: the real client against a hub on this machine, and its cache where there is no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_models import llama, write_gguf
from huggingface_hub import ModelCard
from local_hub import local_hub

import manticore
from manticore.report.sharing import LOADER

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
import manticore

def total(model):
    with torch.no_grad():
        return model.eval()(torch.arange(12)[None]).logits.sum().item()
"""
PUSH = """
hybrid = AutoModelForCausalLM.from_pretrained("hybrid")
hybrid.push_to_hub("me/pushed")
hybrid.save_pretrained("saved", push_to_hub=True, repo_id="me/saved")
from huggingface_hub import HfApi
HfApi().create_repo("me/shared")
HfApi().upload_folder(repo_id="me/shared", folder_path="hybrid")
"""
LOAD = """
found = {}
for name in ("me/pushed", "me/saved", "me/shared"):
    hybrid = AutoModelForCausalLM.from_pretrained(name)
    text = AutoTokenizer.from_pretrained(name).decode(hybrid.tokenizer("return x").input_ids)
    found[name] = [total(hybrid), text]
try:
    AutoModelForCausalLM.from_pretrained("me/pushed", revision="0" * 40)
except OSError:
    found["other revision"] = "refused"
pinned = manticore.combine(["me/a", "me/b"], revisions=[None, sys.argv[1]], num_blocks=2, check=False)
found["parents"] = pinned.config.parents

from manticore.components.loading import load_component
read = load_component("me/quantised:tiny.gguf")
found["gguf"] = [total(read), read.config.dequantized_from]
found["of it"] = manticore.combine(["me/quantised:tiny.gguf"] * 2, num_blocks=2, check=False).config.parents[0]
try:
    load_component("me/quantised:other.gguf")
except manticore.ManticoreError as error:
    found["other file"] = str(error)
print(json.dumps(found))
"""


def python(folder: Path, code: str, *arguments: str, **environment: str) -> str:
    everything = {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "home"),
        "MANTICORE_CACHE": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *arguments],
        cwd=folder,
        env=os.environ | everything | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hybrid_goes_to_the_hub_and_comes_back_by_its_id(checkpoints: list[Path], tmp_path: Path) -> None:
    hybrid = manticore.combine(checkpoints, num_blocks=2, check=False)
    hybrid.save_pretrained(tmp_path / "hybrid")
    manticore.share(tmp_path / "hybrid")
    with torch.no_grad():
        expected = hybrid(torch.arange(12)[None]).logits.sum().item()
    pinned: dict[str, str] = {}
    with local_hub() as hub:
        for name, folder in zip("ab", checkpoints):
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            pinned[name] = hub.commit(f"me/{name}", files | {"README.md": b"---\nlicense: mit\n---\n"})
        held = write_gguf(tmp_path / "tiny.gguf", llama(), "Q8_0")
        hub.commit("me/quantised", {"tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
        latest = hub.commit("me/b", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
        online = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0"}
        python(tmp_path, PUSH, **online)
        # all three say so much; only the folder that was shared has a card of its own and the loader
        for name in ("me/pushed", "me/saved", "me/shared"):
            assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(
                hub.repositories[name]
            )
        assert LOADER in hub.repositories["me/shared"]
        assert "blocks.png" in hub.repositories["me/shared"]
        card = ModelCard(hub.repositories["me/shared"]["README.md"].decode())
        assert card.data.library_name == "transformers"
        found = json.loads(python(tmp_path, LOAD, pinned["b"], **online).splitlines()[-1])
    for name in ("me/pushed", "me/saved", "me/shared"):
        assert found[name] == [pytest.approx(expected), "return x"]
    assert found["other revision"] == "refused"
    assert latest != pinned["b"]
    assert found["parents"] == [
        {"source": f"me/{name}", "commit": pinned[name], "license": "mit"} for name in ("a", "b")
    ]
    assert found["gguf"] == [pytest.approx(held(torch.arange(12)[None]).logits.sum().item()), "Q8_0"]
    assert found["of it"] == {"source": "me/quantised:tiny.gguf", "commit": None, "license": "apache-2.0"}
    assert found["other file"].startswith("me/quantised:other.gguf: no such folder here, and no such file on the hub.")
    # the hub is gone: what was loaded before is in the cache
    again = python(tmp_path, LOAD, pinned["b"], HF_HUB_OFFLINE="1")
    assert json.loads(again.splitlines()[-1]) == found
