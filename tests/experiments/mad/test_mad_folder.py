"""A folder of MAD results: files, scores, resuming, and what is refused."""

import json
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from manticore import ManticoreForSequenceClassification
from manticore.cli.app import app
from manticore.errors import ManticoreError
from manticore.experiments.mad.models import Candidate, candidates
from manticore.experiments.mad.run import MadFolder
from manticore.report.mad_scores import write_scores_figure
from manticore.runs.lock import locked
from manticore.tasks.mad.grid import Setting
from manticore.tasks.mad.protocol import PROTOCOLS
from tests.conftest import gpt_neo

SETTINGS = [
    Setting("in-context-recall", (("seq_len", 12), ("num_train_examples", 40))),
    Setting("compression", (("seq_len", 8), ("num_train_examples", 40))),
    Setting("memorization", (("vocab_size", 21), ("seq_len", 8), ("num_train_examples", 40))),
]
SHORT = replace(PROTOCOLS["published"], epochs=1, batch_size=40, lrs=(1e-3, 1e-2), weight_decays=(0.0,))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path):
    gpt_neo().save_pretrained(tmp_path / "gpt")
    return str(tmp_path / "gpt")


def test_one_file_per_run_and_scores_over_them(tmp_path, saved):
    told = []
    out = MadFolder(tmp_path / "mad", candidates([saved]), SETTINGS, SHORT, tier="smoke")
    reached = []
    out.run(cpu=True, say=told.append, progress=lambda done, whole, row: reached.append((done, whole)))
    files = sorted(
        str(file.relative_to(tmp_path / "mad" / "runs")) for file in (tmp_path / "mad" / "runs").rglob("*.json")
    )
    assert len(files) == 4
    assert files[0].endswith("in-context-recall/seq_len=12,num_train_examples=40/lr=0.001,wd=0.json")
    assert any("compression" in line and "left out, it has no form with backbone autoencoder" in line for line in told)
    assert reached[-1] == (3, 3)
    row = json.loads(next((tmp_path / "mad" / "runs").rglob("lr=0.01,wd=0.json")).read_text())
    assert (row["ended"], row["best_epoch"], row["together"], len(row["history"])) == ("all epochs", 1, 1, 1)
    scores = json.loads((tmp_path / "mad" / "scores.json").read_text())
    (model,) = scores["mad_macro"]
    assert set(model["tasks"]) == {"in-context-recall", "memorization"}
    assert model["num_scored_tasks"] == 2
    best = max(r["test"]["mad_macro"] for r in out.results() if r["task"] == "memorization")
    assert model["tasks"]["memorization"]["score"] == best
    assert model["score"] == pytest.approx(sum(task["score"] for task in model["tasks"].values()) / 2)
    assert scores["accuracy"][0]["score"] != model["score"]
    assert "test split" in scores["note"]
    write_scores_figure(tmp_path / "mad", out.scores("mad_macro"), tier="smoke", chance=out.chance())
    assert (tmp_path / "mad" / "scores.svg").read_text().startswith("<?xml")
    assert (tmp_path / "mad" / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_resuming_makes_only_what_is_missing_and_the_same_numbers(tmp_path, saved):
    settings = SETTINGS[2:]
    make = lambda resume: MadFolder(tmp_path / "mad", candidates([saved]), settings, SHORT, tier="smoke", resume=resume)  # noqa: E731
    make(False).run(cpu=True)
    files = sorted((tmp_path / "mad" / "runs").rglob("*.json"))
    kept, lost = files
    before = {file: json.loads(file.read_text()) for file in files}
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    make(True).run(cpu=True)
    assert kept.stat().st_mtime_ns == stamp
    assert json.loads(lost.read_text())["test"] == before[lost]["test"]
    told = []
    make(True).run(cpu=True, say=told.append)
    assert told == [f"{saved} on {settings[0].name}: done before"]


def test_a_folder_of_other_results_is_refused(tmp_path, saved):
    models = candidates([saved])
    MadFolder(tmp_path / "mad", models, SETTINGS, SHORT, tier="smoke")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    for out, protocol, resume, message in (
        ("mad", SHORT, False, "holds results already. Fix: --resume"),
        ("mad", replace(SHORT, epochs=9), True, "was started with another protocol (epochs: 1, now 9)"),
        ("full", SHORT, True, "is not a folder of MAD results"),
    ):
        with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
            MadFolder(tmp_path / out, models, SETTINGS, protocol, tier="smoke", resume=resume)
        assert message in str(caught.value)


def test_models_whose_names_look_alike_keep_their_results_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/b", "a_b"):
        gpt_neo().save_pretrained(tmp_path / folder)
    names = ["./a/b", "./a_b"]
    quick = replace(SHORT, lrs=(1e-3,))
    scores = MadFolder("mad", candidates(names), SETTINGS[:1], quick, tier="smoke").run(cpu=True)
    assert [score.model for score in scores] == names
    assert len(list((tmp_path / "mad" / "runs").iterdir())) == 2


def test_one_process_at_a_time_works_in_a_folder(tmp_path, saved):
    out = MadFolder(tmp_path / "mad", candidates([saved]), SETTINGS[:1], SHORT, tier="smoke")
    with locked(tmp_path / "mad"), pytest.raises(ManticoreError, match=r"is working in this run folder. Fix: wait"):
        out.run(cpu=True)
    assert not (tmp_path / "mad" / "runs").exists()


def test_a_damaged_record_is_named(tmp_path, saved):
    (tmp_path / "mad").mkdir()
    (tmp_path / "mad" / "grid.json").write_text('{"tier": ')
    with pytest.raises(ManticoreError, match=r"^[^\n]*grid.json: cannot be read [^\n]*Fix: choose another name"):
        MadFolder(tmp_path / "mad", candidates([saved]), SETTINGS, SHORT, tier="smoke", resume=True)


def test_a_run_that_failed_does_not_hide_the_best_of_the_others(tmp_path, saved):
    told = []
    diverging = replace(SHORT, lrs=(1e30, 1e-3))
    MadFolder(tmp_path / "mad", candidates([saved]), SETTINGS[:1], diverging, tier="smoke").run(
        cpu=True, say=told.append
    )
    assert json.loads(next((tmp_path / "mad").rglob("lr=1e+30,wd=0.json")).read_text())["ended"] == "not finite"
    assert "best mad_macro 0." in told[-1]


def test_a_stopped_command_says_what_is_kept_and_goes_on_from_there(tmp_path, saved, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    out = str(tmp_path / "mad")
    arguments = ["mad", saved, "--task", "memorization", "--epochs", "1", "--cpu", "--select", "validation", "-o", out]
    runner = CliRunner(env={"COLUMNS": "200"})
    with monkeypatch.context() as patch:
        patch.setattr("manticore.experiments.mad.run.train_runs", stop)
        stopped = runner.invoke(app, arguments)
    assert stopped.exit_code == 130
    assert "finished runs are kept" in stopped.output
    command = stopped.output.splitlines()[-1].removeprefix("next: manticore ")
    finished = runner.invoke(app, shlex.split(command))
    assert finished.exit_code == 0, finished.output
    following = finished.output.splitlines()[-1]
    assert "--tier baseline --select validation --task memorization --cpu" in following


def test_a_hybrid_from_scratch_trains_at_equal_weights():
    (hybrid,) = candidates(["hf:gpt_neo+hf:mamba"])
    model = hybrid.build(vocab_size=9, positions=11, seed=0)
    assert model.config.vocab_size == 9
    assert model.mixture_weights.tolist() == [[0.5, 0.5]] * 2
    assert not any(weights.requires_grad for weights in model.mixing.mixture_parameters())
    same, other = (hybrid.build(vocab_size=9, positions=11, seed=seed) for seed in (0, 1))
    states = [dict(built.named_parameters()) for built in (model, same, other)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])


def test_stacks_are_scored_on_compression_too(tmp_path):
    names = ["stack:short-gated-convolution,swiglu"]
    quick = replace(SHORT, lrs=(1e-3,))
    out = MadFolder(tmp_path / "mad", candidates(names), SETTINGS, quick, tier="smoke")
    (score,) = out.run(cpu=True)
    assert set(score.tasks) == {"in-context-recall", "compression", "memorization"}
    named = candidates(["striped-mh-hyena-swiglu"])[0].build(vocab_size=16, positions=128, seed=0)
    assert named.config.layers == ["mh-hyena", "swiglu", "mh-attention", "swiglu"]
    assert (named.config.vocab_size, named.config.max_position_embeddings) == (16, 128)


def test_a_model_that_no_task_fits_or_that_sees_the_answers_is_refused_before_anything_is_written(tmp_path, saved):
    only_compression = SETTINGS[1:2]
    for name, settings, message in (
        (saved, only_compression, "has no form for any of the tasks (compression)"),
        ("hf:bert", SETTINGS, "hf:bert sees later tokens"),
    ):
        with pytest.raises(ManticoreError, match=r"^[^\n]*Fix: [^\n]*$") as caught:
            MadFolder(tmp_path / "mad", candidates([name]), settings, SHORT, tier="smoke")
        assert message in str(caught.value)
    assert not (tmp_path / "mad").exists()


def test_a_width_that_heads_do_not_divide_ends_the_command_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide").mkdir()
    config = {"model_type": "manticore_stack", "hidden_size": 100, "layers": ["mh-attention"], "vocab_size": 16}
    (tmp_path / "wide" / "config.json").write_text(json.dumps(config))
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["mad", "./wide", "-o", "out"])
    assert result.exit_code == 2
    assert "16 heads do not divide width 100. Fix: a width that is a multiple of 16" in result.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_saved_model_keeps_its_layers_and_gets_the_vocabulary(saved):
    model = Candidate(saved).build(vocab_size=9, positions=11, seed=0)
    assert model.get_input_embeddings().weight.shape == (9, 32)
    assert (model.transformer.h[0].mlp.c_fc.weight == gpt_neo().transformer.h[0].mlp.c_fc.weight).all()
    with pytest.raises(ManticoreError, match=r"has 64 positions, but sequences have 127 tokens"):
        Candidate(saved).build(vocab_size=9, positions=127, seed=0)


def test_a_classifier_is_refused_as_one(tmp_path):
    ManticoreForSequenceClassification.from_causal_lm(gpt_neo(), num_labels=2).save_pretrained(tmp_path / "classes")
    with pytest.raises(ManticoreError, match=r"is a ManticoreForSequenceClassification, [^\n]*Fix: give a causal"):
        MadFolder(tmp_path / "mad", candidates([str(tmp_path / "classes")]), SETTINGS, SHORT, tier="smoke")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hf:mamba", "hf:mamba"], "named twice"),
        (["hf:"], "cannot read 'hf:'"),
        (["hf:mamba:x"], "cannot read 'hf:mamba:x'"),
        (["hf:mamba:0"], "cannot read"),
        (["hf:mamba+"], "has an empty part"),
        (["transformer+hf:mamba:1"], "hybrids A+B have 2 blocks, but hf:mamba:1 has fewer layers. Fix: 2 layers"),
    ],
)
def test_names_that_cannot_be_read_end_in_one_line(names, message):
    with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
        candidates(names)
    assert message in str(caught.value)


def test_the_verb_prints_a_table_and_says_what_was_chosen_on_test_data(tmp_path, saved):
    out = str(tmp_path / "mad")
    arguments = ["mad", saved, "--task", "memorization", "--epochs", "1", "--cpu", "-o", out]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for text in (
        "1 model, 1 setting, 1 run each: 1 run of at most 1 epoch,",
        "mad_macro",
        "no MAD scores",
        "on the test split",
        "next: manticore mad",
    ):
        assert text in result.output
    again = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--resume"])
    assert "done before" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf:gpt_neo", "--tier", "ful"], "unknown tier 'ful'. Did you mean 'full'?"),
        (["hf:gpt_neo", "--protocol", "paper"], "unknown protocol 'paper'"),
        (["hf:gpt_neo", "--select", "train"], "unknown select 'train'"),
        (["hf:gpt_neo", "--task", "compresion"], "Did you mean 'compression'?"),
        (["hf:gpt_neo", "--mixing", "routd"], "Did you mean 'routed'?"),
        (["hf:gpt_neoo"], "Did you mean 'gpt_neo'?"),
        (["./nowhere"], "nowhere"),
        (["transfomer"], "Did you mean 'transformer'?"),
        (["transformer+mambo"], "Did you mean 'mamba'?"),
        (["stack:mamba,swigl"], "unknown layer 'swigl'. Did you mean 'swiglu'?"),
    ],
)
def test_bad_choices_end_in_one_line_and_leave_nothing_behind(tmp_path, arguments, message):
    out = tmp_path / "mad"
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["mad", *arguments, "--cpu", "-o", str(out)])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not out.exists()
