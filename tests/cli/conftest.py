"""Checkpoints on disk, good and bad ones: a few thousand random parameters each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import gpt_neo_config, mamba_config, seeded
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from manticore.hybrid.combine import combine

WORDS = ["[UNK]", "[EOS]", *(f"w{index}" for index in range(46))]


def _tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[EOS]")


def _gpt() -> PreTrainedModel:
    return seeded(gpt_neo_config(len(WORDS), 16, 3), 0)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints: gpt, mamba, and one for each way a checkpoint can be unusable."""
    shelf = tmp_path_factory.mktemp("shelf")
    _gpt().save_pretrained(shelf / "gpt")
    _tokenizer(WORDS).save_pretrained(shelf / "gpt")
    mamba = seeded(mamba_config(len(WORDS), 12, 2, expand=1), 1)
    mamba.save_pretrained(shelf / "mamba")
    _tokenizer(WORDS).save_pretrained(shelf / "mamba")

    mamba.save_pretrained(shelf / "foreign")
    _tokenizer([*WORDS[:2], *WORDS[:1:-1]]).save_pretrained(shelf / "foreign")

    damaged = _gpt()
    with torch.no_grad():
        damaged.transformer.ln_f.bias[1] = float("nan")
    damaged.save_pretrained(shelf / "damaged")
    sick = combine([_gpt(), mamba], num_blocks=2)
    with torch.no_grad():
        next(iter(sick.mixing.projectors.values())).weight[0, 0] = float("nan")  # type: ignore[union-attr]
    sick.save_pretrained(shelf / "sick")

    bert = BertConfig(vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(shelf / "bert")

    pickled = _gpt()
    pickled.config.save_pretrained(shelf / "pickled")
    torch.save(pickled.state_dict(), shelf / "pickled" / "pytorch_model.bin")

    _gpt().save_pretrained(shelf / "remote")
    config = json.loads((shelf / "remote" / "config.json").read_text())
    config.update(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (shelf / "remote" / "config.json").write_text(json.dumps(config))
    (shelf / "remote" / "modeling_mine.py").write_text("raise SystemExit('code from a checkpoint was run')\n")
    return shelf
