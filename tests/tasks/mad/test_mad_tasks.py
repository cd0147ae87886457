import numpy as np
import pytest
from typer.testing import CliRunner

from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.stacks.autoencoder import StackForAutoEncoding
from manticore.stacks.configuration import StackConfig
from manticore.tasks.mad.examples import KINDS, generate
from manticore.tasks.mad.tasks import in_context_recall, noisy_in_context_recall
from manticore.tasks.metrics import IGNORE
from manticore.tasks.task import load_task
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune
from tests.conftest import gpt_neo

SMALL = {"num_train_examples": 40, "num_test_examples": 10}
SHORT = {"vocab_size": 20, "seq_len": 48, "num_validation_examples": 8, **SMALL}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))


def short(name, **options):
    more = {"num_tokens_to_copy": 6} if name == "selective-copying" else {}
    noise = {"noise_vocab_size": 4} if name.startswith("noisy") else {}
    return load_task(f"mad/{name}", **{**SHORT, **more, **noise, **options})


@pytest.mark.parametrize("name", KINDS)
def test_the_task_holds_the_published_examples_and_a_validation_split(name):
    task = load_task(f"mad/{name}", num_validation_examples=12, **SMALL)
    data = generate(name, **SMALL)
    for split in ("train", "test"):
        assert (task.data[split][:]["input_ids"].numpy() == data[split][0]).all()
        assert (task.data[split][:]["targets"].numpy() == data[split][1]).all()
    assert task.data["validation"].num_rows == 12
    assert task.vocab_size == KINDS[name].baseline["vocab_size"]
    assert task.length == data["train"][0].shape[1]
    assert task.backbone == ("autoencoder" if name == "compression" else "causal")


def test_the_task_scores_what_its_data_say():
    task = load_task("mad/in-context-recall", num_validation_examples=12, **SMALL)
    assert (task.vocab_size, task.length, task.chance) == (16, 127, 0.125)
    train, test = task.data["train"][:], task.data["test"][:]
    assert (train["targets"][:, :-1] == train["input_ids"][:, 1:]).all()
    scored = test["targets"][:, :-1] != IGNORE
    assert (test["targets"][:, :-1][scored] == test["input_ids"][:, 1:][scored]).all()
    assert (test["targets"][:, -1] >= 8).all()
    state = task.metric_state()
    perfect = 9.0 * (test["targets"].clamp(min=0).unsqueeze(-1) == np.arange(16)).float()
    state.update(perfect, test["targets"])
    assert state.compute()[task.primary_metric] == 1.0


@pytest.mark.parametrize("name", KINDS)
def test_chance_is_the_accuracy_of_guessing_among_possible_answers(name):
    # an odd vocabulary leaves as many values as keys in memorization: every value belongs to a key
    task = short(name, num_test_examples=3000, vocab_size=21)
    test = task.data["test"][:]
    answers = test["targets"].numpy()
    if name == "compression":
        assert (answers[:, -1] == 20).all()
        assert task.chance == pytest.approx((47 / 20 + 1) / 48)
    else:
        assert task.chance == pytest.approx(1 / len(np.unique(answers[answers != IGNORE])))


@pytest.mark.parametrize("name", ["in-context-recall", "fuzzy-in-context-recall", "selective-copying", "compression"])
def test_validation_shares_no_sequence_with_train_or_test(name):
    task = short(name, num_train_examples=300, num_validation_examples=200, num_test_examples=200)
    rows = [tuple(row.tolist()) for split in task.data.values() for row in split[:]["input_ids"]]
    assert len(set(rows)) == len(rows)


def test_validation_of_memorization_asks_for_the_same_facts():
    task = short("memorization", data_seed=3)
    facts = {}
    for split in task.data.values():
        rows = split[:]
        for key, value in zip(
            rows["input_ids"][:, 0::2].flatten().tolist(), rows["targets"][:, 1::2].flatten().tolist()
        ):
            assert facts.setdefault(key, value) == value
    other = short("memorization", data_seed=4).data["train"][:]
    pairs = zip(other["input_ids"][:, 0::2].flatten().tolist(), other["targets"][:, 1::2].flatten().tolist())
    assert any(facts.get(key, value) != value for key, value in pairs)


def test_noisy_task_knows_its_chance():
    task = noisy_in_context_recall(num_validation_examples=3, **SMALL)
    assert (task.vocab_size, task.chance) == (32, 0.125)


def test_a_causal_model_trains_on_a_causal_task():
    task = short("fuzzy-in-context-recall")
    result = finetune(gpt_neo(), task, steps=2, batch_size=8)
    assert set(result.metrics) == {"loss", "accuracy", "mad_macro", "mad_perplexity"}
    assert np.isfinite(result.metrics["loss"])


def test_a_causal_model_is_refused_where_it_could_copy_what_it_should_restore():
    task = short("compression")
    for use in (lambda: finetune(gpt_neo(20), task, steps=1), lambda: evaluate(gpt_neo(20), task)):
        with pytest.raises(ManticoreError, match=r"mad/compression is made for models with backbone 'autoencoder'"):
            use()


def test_an_auto_encoder_trains_on_compression_and_is_refused_elsewhere():
    def model():
        return StackForAutoEncoding(StackConfig(layers=["mh-attention", "swiglu"], hidden_size=32, vocab_size=20))

    result = finetune(model(), short("compression"), steps=2, batch_size=8)
    assert 0 <= result.metrics["accuracy"] <= 1
    with pytest.raises(ManticoreError, match="made for models with backbone 'causal'"):
        evaluate(model(), short("selective-copying"))


def test_all_six_are_listed_and_shown_with_their_options():
    listed = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ls", "tasks"]).output
    for name in KINDS:
        assert f"mad/{name}" in listed
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", "mad/selective-copying"]).output
    assert "num_tokens_to_copy" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 127}, "seq_len is 127 (expected an even number"),
        ({"seq_len": 2}, "Fix: seq_len=4"),
        ({"vocab_size": 3}, "Fix: vocab_size=4"),
        ({"vocab_size": 16.5}, "expected a whole number"),
        ({"vocab_size": "16"}, "expected a whole number"),
        ({"vocab_size": True}, "expected a whole number"),
        ({"num_train_examples": 0}, "num_train_examples is 0"),
        ({"num_test_examples": -1}, "num_test_examples is -1"),
        ({"num_validation_examples": None}, "num_validation_examples is None"),
        ({"vocabsize": 16}, "Did you mean 'vocab_size'"),
        ({"data_seed": -1}, "data_seed is -1"),
        ({"data_seed": "x"}, "data_seed is 'x'"),
    ],
)
def test_bad_options_end_in_one_line(options, message):
    with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
        load_task("mad/in-context-recall", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frac_noise": 1.0}, "frac_noise is 1.0"),
        ({"frac_noise": "much"}, "expected a number"),
        ({"noise_vocab_size": 0}, "noise_vocab_size is 0"),
        ({"noise_vocab_size": 30}, "leaves 2 tokens"),
        ({"seq_len": 4, "frac_noise": 0.99}, "held noise only"),
    ],
)
def test_bad_noise_ends_in_one_line(options, message):
    with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
        noisy_in_context_recall(**options, **SMALL)
    assert message in str(caught.value)


def test_an_unknown_task_is_refused():
    with pytest.raises(ManticoreError, match="unknown task"):
        load_task("mad/in-context")


def test_the_published_seed_is_the_default():
    assert (
        in_context_recall(num_validation_examples=1, **SMALL).data["train"][:]["input_ids"].numpy()
        == generate("in-context-recall", seed=12345, **SMALL)["train"][0]
    ).all()
