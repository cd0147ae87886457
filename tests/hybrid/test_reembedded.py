"""Components with different tokenizers come together on the tokenizer of one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_tokenizers import CODE, LETTERS, PROSE, WORDS, byte_level, with_prefixes
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.token_bytes import TokenBytes
from manticore.components.token_matching import match_tokens
from manticore.errors import ManticoreError
from manticore.tasks.task import load_task

TEXT = "def f(x):\n    return the best\n" * 40


def save(family: str, tokenizer: PreTrainedTokenizerFast | None, folder: Path, padding: int = 0) -> Path:
    rows = 300 if tokenizer is None else len(tokenizer) + padding
    tiny_model(family, vocab_size=rows).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two byte-level checkpoints, one with prefixes, one with the first one's tokenizer; padded and not."""
    root = tmp_path_factory.mktemp("parents")
    made = {
        "code": save("gpt_neo", byte_level(CODE), root / "code", padding=6),
        "prose": save("mamba", byte_level(PROSE), root / "prose", padding=3),
        "prefixes": save("gemma2", with_prefixes([*LETTERS, *WORDS], byte_fallback=True), root / "prefixes"),
        "same": save("gpt_neox", byte_level(CODE), root / "same"),
    }
    return made


def own_logits(folder: Path, ids: Tensor) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("owner", [0, 1, 2])
@torch.no_grad()
def test_the_owner_of_the_tokenizer_stays_as_it_is(owner: int, folders: dict[str, Path]) -> None:
    names = ["code", "prose", "prefixes"]
    hybrid = manticore.combine(
        [folders[name] for name in names], num_blocks=2, tokenizer=names[owner], min_coverage=0.05
    )
    tokenizer = AutoTokenizer.from_pretrained(folders[names[owner]])
    assert hybrid.tokenizer is not None
    assert hybrid.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert hybrid.config.vocab_size == len(tokenizer)
    assert hybrid.config.tokenizer_component == owner
    ids = torch.tensor([tokenizer(TEXT).input_ids[:30]])
    hybrid.set_mixture_weights([owner, owner])
    parent = AutoModelForCausalLM.from_pretrained(folders[names[owner]])
    for holder in (hybrid.config, hybrid.generation_config):
        assert holder.eos_token_id == parent.generation_config.eos_token_id
    assert torch.equal(hybrid(ids).logits, own_logits(folders[names[owner]], ids)[..., : len(tokenizer)])

    reports = hybrid.config.reembedded
    assert [report is None for report in reports] == [k == owner for k in range(3)]
    ours = TokenBytes(tokenizer)
    for k, name in enumerate(names):
        if k == owner:
            continue
        theirs = TokenBytes(AutoTokenizer.from_pretrained(folders[name]))
        matching = match_tokens(ours, theirs)
        assert reports[k] == matching.to_dict()
        table = AutoModelForCausalLM.from_pretrained(folders[name]).get_input_embeddings().weight
        new = hybrid.component(k).get_input_embeddings().weight
        for index, pieces in enumerate(matching.sources):
            if len(pieces) == 1:
                assert torch.equal(new[index], table[pieces[0]])


@torch.no_grad()
def test_where_tokens_agree_a_reembedded_component_computes_what_it_did(folders: dict[str, Path]) -> None:
    hybrid = manticore.combine([folders["code"], folders["prose"]], num_blocks=2, tokenizer=0)
    hybrid.set_mixture_weights([1, 1])
    own = AutoTokenizer.from_pretrained(folders["prose"])
    # letter by letter, so that both cut the text alike
    pieces = list("qQ0zJ~;")
    ids = torch.tensor([hybrid.tokenizer.convert_tokens_to_ids(pieces)])
    theirs = torch.tensor([own.convert_tokens_to_ids(pieces)])
    shared = [token for token in hybrid.tokenizer.get_vocab() if token in own.get_vocab()]
    assert len(shared) >= 258
    torch.testing.assert_close(
        hybrid(ids).logits[..., hybrid.tokenizer.convert_tokens_to_ids(shared)],
        own_logits(folders["prose"], theirs)[..., own.convert_tokens_to_ids(shared)],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "choice",
    [
        lambda folder: 1,
        lambda folder: "1",
        lambda folder: "prose",
        lambda folder: str(folder),
        lambda folder: folder,
    ],
    ids=["index", "digit", "last part", "path", "Path"],
)
def test_a_component_is_named_in_any_way(choice: Callable[[Path], object], folders: dict[str, Path]) -> None:
    hybrid = manticore.combine(
        [folders["code"], folders["prose"]], num_blocks=1, tokenizer=choice(folders["prose"]), check=False
    )
    assert hybrid.config.tokenizer_component == 1


def test_everything_goes_on_from_there(folders: dict[str, Path], tmp_path: Path) -> None:
    hybrid = manticore.combine([folders["code"], folders["prefixes"]], num_blocks=2, tokenizer="code", min_coverage=0)
    report = manticore.align(hybrid, [TEXT * 3, TEXT[5:] * 3], tokens=512, length=16, batch_size=8)
    assert report.tokens > 0
    scores = manticore.evaluate(hybrid, load_task("text", tokenizer=hybrid.tokenizer, source=[TEXT * 9], length=8))
    assert scores["loss"] > 0
    hybrid.save_pretrained(tmp_path / "hybrid")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hybrid")
    assert again.tokenizer.get_vocab() == hybrid.tokenizer.get_vocab()
    assert again.config.reembedded == hybrid.config.reembedded
    assert again.config.reembedded[0] is None
    ids = torch.tensor([again.tokenizer("def f").input_ids])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, hybrid(ids).logits)
    small = manticore.discretize(again, [1, 0])
    assert small.config.reembedded == again.config.reembedded
    for model in (again, small):
        assert model.generate(ids, max_new_tokens=3, min_new_tokens=3).shape[1] == ids.shape[1] + 3
    again.with_vocabulary(12)
    assert again.config.reembedded is again.config.tokenizer_component is None
    assert again(torch.tensor([[3, 11]])).logits.shape == (1, 2, 12)


@torch.no_grad()
def test_equal_tokenizers_leave_nothing_to_do(folders: dict[str, Path]) -> None:
    ids = torch.tensor([[5, 9, 200]])
    models = [folders["code"], folders["same"]]
    plain = manticore.combine(models, num_blocks=2)
    chosen = manticore.combine(models, num_blocks=2, tokenizer="same")
    assert torch.equal(chosen(ids).logits, plain(ids).logits)
    assert chosen.config.reembedded is chosen.config.tokenizer_component is None
    # beside a third with another one, only that is touched
    three = manticore.combine([*models, folders["prose"]], num_blocks=2, tokenizer=0)
    assert [report is None for report in three.config.reembedded] == [True, True, False]


def test_a_task_with_its_own_vocabulary_needs_no_choice(folders: dict[str, Path]) -> None:
    hybrid = manticore.combine([folders["code"], folders["prose"]], num_blocks=2, tokenizer="code", vocab_size=20)
    assert hybrid.tokenizer is None
    assert hybrid.config.reembedded is None


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("porse", r"tokenizer 'porse' is not a component. Did you mean 'prose'\?"),
        ("2", r"tokenizer '2' is not a component \(expected a name or an index\). Fix: give the index, 0 to 1"),
        (-1, "tokenizer -1 is not a component"),
        (True, "tokenizer True is not a component"),
        (1.0, "tokenizer 1.0 is not a component"),
    ],
)
def test_unknown_components_are_refused(choice: object, reason: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ManticoreError, match=reason) as caught:
        manticore.combine([folders["code"], folders["prose"]], num_blocks=2, tokenizer=choice)
    assert "\n" not in str(caught.value)


def test_a_last_part_that_two_share_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders["prose"], tmp_path / "code")
    with pytest.raises(
        ManticoreError, match=r"tokenizer 'code' names several components .*Fix: give the index, 0 to 1"
    ):
        manticore.combine([folders["code"], other], num_blocks=2, tokenizer="code")
    assert (
        manticore.combine([folders["code"], other], num_blocks=2, tokenizer=str(other)).config.tokenizer_component == 1
    )


def test_too_little_in_common_is_refused_with_the_numbers(folders: dict[str, Path]) -> None:
    models = [folders["prefixes"], folders["code"]]
    with pytest.raises(
        ManticoreError,
        match=r"of the \d+ tokens of .*prefixes .*code has \d+ exactly and 2 by role \(coverage 0\.\d+, "
        r"min_coverage 0.95\). Fix: keep the tokenizer of .*code \(coverage 0\.\d+\), or lower min_coverage",
    ) as caught:
        manticore.combine(models, num_blocks=2, tokenizer=0, min_coverage=0.95)
    assert "\n" not in str(caught.value)
    with pytest.raises(ManticoreError, match=r"min_coverage is 1.5 \(expected a share\). Fix: give 0 to 1"):
        manticore.combine(models, num_blocks=2, tokenizer=0, min_coverage=1.5)


def test_a_checkpoint_without_a_tokenizer_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    bare = save("mamba", None, tmp_path / "bare")
    for models in ([folders["code"], bare], [bare, folders["code"]]):
        with pytest.raises(ManticoreError, match=r"bare carries no tokenizer.* Fix: save its tokenizer in its folder"):
            manticore.combine(models, num_blocks=2, tokenizer="code")


def test_the_report_in_the_configuration_is_small(folders: dict[str, Path], tmp_path: Path) -> None:
    hybrid = manticore.combine([folders["code"], folders["prose"]], num_blocks=2, tokenizer="prose")
    hybrid.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    found = stored["reembedded"][0]
    assert set(found) == {"tokens", "exact", "role", "pieces", "none", "coverage"}
    assert sum(found[kind] for kind in ("exact", "role", "pieces", "none")) == found["tokens"]
