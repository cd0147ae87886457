"""What a tokenizer says beside its vocabulary: chat templates are kept, tokens around a text do not make it another."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import PROSE, byte_level
from tokenizers import processors
from transformers import AutoModelForCausalLM

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def parent(folder: Path, family: str, *, template: str | None = None, begins: bool = False) -> Path:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    if begins:
        token = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, tokenizer.eos_token_id)]
        )
    tiny_model(family, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parents")
    return {
        "plain": parent(root / "plain", "gpt2"),
        "chat": parent(root / "chat", "mamba", template=TEMPLATE),
        "other chat": parent(root / "other chat", "llama", template="{{ messages[0]['content'] }}"),
        "begins": parent(root / "begins", "mamba", begins=True),
    }


@pytest.mark.parametrize("names", [("plain", "chat"), ("chat", "plain"), ("begins", "plain", "chat")])
@pytest.mark.parametrize("owner", [None, 0])
def test_the_chat_template_that_there_is_is_kept(
    names: tuple[str, ...], owner: int | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    hybrid = manticore.combine([folders[name] for name in names], num_blocks=2, tokenizer=owner, check=False)
    hybrid.save_pretrained(tmp_path)
    for tokenizer in (hybrid.tokenizer, AutoModelForCausalLM.from_pretrained(tmp_path).tokenizer):
        assert tokenizer is not None
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.apply_chat_template([{"role": "user", "content": "a b"}], tokenize=False) == "a b\n"


def test_of_two_templates_the_owners_is_kept_and_it_is_said(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    hybrid = manticore.combine([folders["chat"], folders["other chat"]], num_blocks=2, check=False)
    assert hybrid.tokenizer is not None
    assert hybrid.tokenizer.chat_template == TEMPLATE
    assert "the chat templates of" in caplog.text


@pytest.mark.parametrize("owner", [None, 0])
@pytest.mark.parametrize("names", [("plain", "begins"), ("begins", "plain")])
def test_tokens_around_a_text_are_the_owners_and_it_is_said(
    names: tuple[str, str], owner: int | None, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    hybrid = manticore.combine([folders[name] for name in names], num_blocks=2, tokenizer=owner, check=False)
    assert hybrid.tokenizer is not None
    assert hybrid.config.reembedded is None
    assert hybrid.tokenizer("").input_ids == ([0] if names[0] == "begins" else [])
    assert "around a text" in caplog.text


def test_another_vocabulary_is_still_another(folders: dict[str, Path], tmp_path: Path) -> None:
    other = byte_level(PROSE)
    tiny_model("mamba", vocab_size=len(other)).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(ManticoreError, match="have different tokenizers"):
        manticore.combine([folders["chat"], tmp_path], num_blocks=2)
