"""Distillation: the losses are what they say, frozen parts stay, the teacher is counted, bad teachers are refused."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from class_tasks import class_task
from copying_task import LENGTH, VOCABULARY, copying_task
from small_models import gpt_model
from tiny_models import gpt_neo_config, mamba_config, seeded
from torch.nn import functional

import manticore
from manticore.errors import ManticoreError
from manticore.flops import counted_flops
from manticore.hybrid.combine import combine
from manticore.kernels.mamba import fast_scan
from manticore.training.answers import Answers
from manticore.training.budget import flops_per_step
from manticore.training.distill import distill
from manticore.training.imitation import blocks_error, divergence, read_positions
from manticore.training.saved_models import load_model
from manticore.training.teacher import Teacher
from manticore.training.tokenizers import train_tokenizer

QUICK = {"batch_size": 8, "cpu": True}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture
def student(hybrid):
    """A path that goes from one component to the other and back, so that two boundaries are new."""
    return manticore.discretize(hybrid, [1, 0])


def slow_divergence(teacher, student, temperature):
    total = 0.0
    for theirs, ours in zip(teacher.double().tolist(), student.double().tolist()):
        p = [math.exp(v / temperature) for v in theirs]
        q = [math.exp(v / temperature) for v in ours]
        total += sum(a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q))) for a, b in zip(p, q))
    return temperature**2 * total


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_divergence_is_that_of_a_slow_reference(temperature):
    teacher, student = 4 * torch.randn(7, 11), 4 * torch.randn(7, 11)
    expected = slow_divergence(teacher, student, temperature)
    assert float(divergence(teacher, student, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(teacher.double(), student.double(), temperature)) == pytest.approx(expected, rel=1e-12)
    # not the other way round, which is another number
    assert float(divergence(student, teacher, temperature)) != pytest.approx(expected, rel=1e-3)
    assert float(divergence(teacher, teacher + 3.0, temperature)) == pytest.approx(0, abs=1e-5)


def test_the_error_of_blocks_is_that_of_a_slow_reference():
    theirs = {1: torch.randn(2, 5, 3), 2: torch.randn(2, 5, 4)}
    ours = [torch.zeros(2, 5, 9), torch.randn(2, 5, 3), torch.randn(2, 5, 4)]
    positions = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    spread = {1: 0.5, 2: 3.0}
    expected = 0.0
    for n, width in ((1, 3), (2, 4)):
        for b, t in positions.nonzero().tolist():
            for d in range(width):
                expected += (float(theirs[n][b, t, d]) - float(ours[n][b, t, d])) ** 2 / width / spread[n] / 2
    assert float(blocks_error(theirs, ours, positions, spread)) == pytest.approx(expected, rel=1e-5)


def test_positions_end_with_the_last_target_and_leave_padding_out():
    targets = torch.tensor([[-100, 3, -100, 4, -100], [5, -100, -100, -100, -100], [-100] * 5])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1] * 5, [1] * 5])
    assert read_positions({"targets": targets}).long().tolist() == [[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0] * 5]
    masked = read_positions({"targets": targets, "attention_mask": mask})
    assert masked.long().tolist() == [[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0] * 5]


@pytest.mark.parametrize(("alpha", "temperature"), [(0, 1), (0.3, 2)])
def test_the_first_loss_mixes_divergence_and_true_targets(student, hybrid, task, alpha, temperature):
    rows = task.data["train"].with_format("torch")[:]
    asked = rows["targets"] != -100
    with torch.no_grad():
        theirs, ours = (model.eval()(input_ids=rows["input_ids"]).logits[asked] for model in (hybrid, student))
    kl = slow_divergence(theirs, ours, temperature) / int(asked.sum())
    expected = (1 - alpha) * kl + alpha * float(functional.cross_entropy(ours, rows["targets"][asked]))
    options = {"alpha": alpha, "temperature": temperature, "phases": "logits", "accumulation": 3}
    found = distill(student, hybrid, task, steps=1, batch_size=24, cpu=True, **options)
    assert found.phases[0].loss_first == pytest.approx(expected, rel=1e-4)


def test_a_teacher_that_says_the_same_leaves_nothing_to_learn(hybrid, task):
    """The supernet at a vertex computes what its path computes, bit for bit."""
    student = manticore.discretize(hybrid, [1, 0])
    hybrid.set_mixture_weights([1, 0])
    found = distill(student, hybrid, task, phases="logits", alpha=0, steps=2, lr=1e-9, warmup_steps=0, **QUICK)
    assert found.history[0]["loss"] == 0
    assert found.history[0]["grad_norm"] == pytest.approx(0, abs=1e-6)


def test_blocks_move_the_projectors_alone_and_towards_the_parents(student, hybrid, task):
    before, theirs = weights(student), weights(hybrid)
    found = distill(student, hybrid, task, phases="blocks", steps=60, block_lr=2e-2, **QUICK)
    assert moved(student, before) == {name for name in before if name.startswith("mixing.projectors.")} != set()
    assert not moved(hybrid, theirs)
    assert [phase.boundaries for phase in found.phases] == [[1, 2]]
    # 1 is what always giving the mean would have
    assert found.phases[0].loss_last < 0.8 * found.phases[0].loss_first
    assert all(parameter.grad is None for parameter in hybrid.parameters())


def test_blocks_are_compared_with_the_components_alone(student, hybrid, task):
    """Against a reference that runs the parent's own model and asks for its hidden states."""
    teacher = Teacher(hybrid, student, task)
    (part,), why = teacher.counterparts(student)
    assert (part.component, part.boundaries, part.edges, why) == (0, (1, 2), (0, 1, 2), "")
    ids = torch.tensor(task.data["train"]["input_ids"][:3])
    held = teacher.features([part], {"input_ids": ids})
    gpt, seen = hybrid.component(0), []
    hook = gpt.transformer.h[1].register_forward_hook(lambda _, args, out: seen.extend([args[0], out]))
    with torch.no_grad():
        gpt.eval()(input_ids=ids, use_cache=False)
    hook.remove()
    after = seen[1][0] if isinstance(seen[1], tuple) else seen[1]
    assert torch.equal(held[1], seen[0])
    assert torch.equal(held[2], after)


def test_with_both_phases_the_second_moves_what_trainable_says(student, hybrid, task):
    before = weights(student)
    found = distill(student, hybrid, task, steps=12, trainable="projectors", **QUICK)
    assert [(phase.name, phase.steps) for phase in found.phases] == [("blocks", 3), ("logits", 9)]
    # the vocabulary is the task's own from the start; so are embeddings and head
    assert {name.partition(".")[0] for name in moved(student, before)} <= {"mixing", "component_0", "component_1"}
    assert not any("layers" in name or ".h." in name for name in moved(student, before))
    assert [row["phase"] for row in found.history] == ["blocks"] * 3 + ["logits"] * 9
    assert found.metrics != found.metrics_before


def test_the_teacher_answers_in_evaluation_mode_and_stays_as_it_is(student, gpt, task):
    noisy = seeded(gpt_neo_config(VOCABULARY, 16, 2, resid_dropout=0.9, embed_dropout=0.9), 1).train()
    noisy.transformer.h[0].eval()
    noisy.transformer.wte.weight.requires_grad_(False)
    before = weights(noisy), [m.training for m in noisy.modules()], [p.requires_grad for p in noisy.parameters()]
    losses = [
        distill(copy.deepcopy(student), noisy, task, steps=2, phases="logits", seed=seed, **QUICK).history[0]["loss"]
        for seed in (0, 0)
    ]
    assert losses[0] == losses[1]
    assert not moved(noisy, before[0])
    assert [m.training for m in noisy.modules()] == before[1]
    assert [p.requires_grad for p in noisy.parameters()] == before[2]


def test_a_teacher_in_half_precision_keeps_it(student, task):
    teacher = gpt_model().to(torch.bfloat16)
    found = distill(student, teacher, task, steps=2, phases="logits", **QUICK)
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


def test_flops_are_the_students_and_the_teachers(student, hybrid, task):
    found = distill(student, hybrid, task, steps=8, **QUICK)
    blocks, logits = found.phases
    with fast_scan(hybrid):
        answer = flops_per_step(hybrid, 8, LENGTH, backward=False)
    with fast_scan(student):
        learn = flops_per_step(student, 8, LENGTH)
    assert (logits.student_flops, logits.teacher_flops) == (6 * learn, 6 * answer)
    ids = torch.zeros(8, LENGTH, dtype=torch.long)
    gpt = hybrid.component(0)
    with torch.no_grad(), counted_flops() as counter:
        # what enters the last norm is compared; the head does not run
        gpt.eval().transformer(input_ids=ids, use_cache=False)
    assert blocks.teacher_flops == 2 * counter.get_total_flops()
    student.requires_grad_(False)
    student.mixing.projectors.requires_grad_(True)
    with fast_scan(student), counted_flops() as counter:
        states = student.train()(input_ids=ids, output_hidden_states=True, logits_to_keep=1).hidden_states
        (states[1].sum() + states[2].sum()).backward()
    assert blocks.student_flops == 2 * counter.get_total_flops()
    assert found.teacher_flops == blocks.teacher_flops + logits.teacher_flops
    assert found.flops == found.teacher_flops + blocks.student_flops + logits.student_flops


@pytest.mark.parametrize("phases", ["blocks", "logits", "both"])
def test_a_budget_pays_for_both(student, hybrid, task, phases):
    whole = distill(copy.deepcopy(student), hybrid, task, steps=8, phases=phases, **QUICK).flops
    found = distill(copy.deepcopy(student), hybrid, task, budget_flops=whole, phases=phases, **QUICK)
    assert found.flops <= whole
    dearest = max((p.student_flops + p.teacher_flops) / p.steps for p in found.phases)
    assert found.flops > whole - dearest
    with pytest.raises(ManticoreError, match="one step costs"):
        distill(copy.deepcopy(student), hybrid, task, budget_flops=1000, phases=phases, **QUICK)


def test_a_parent_is_a_teacher_where_its_blocks_are(student, hybrid, gpt, mamba, task):
    for teacher, expected in ((gpt, [1, 2]), (mamba, [])):
        found, why = Teacher(teacher, student, task).counterparts(student)
        assert [n for part in found for n in part.boundaries] == expected
        assert bool(why) == (not expected)
    # it comes after the hand-over to the other one, and before that nothing is new
    assert [p.name for p in distill(student, mamba, task, steps=4, **QUICK).phases] == ["logits"]


def test_of_two_parents_of_one_shape_the_one_is_compared_whose_weights_are_there(task):
    parents = [seeded(mamba_config(VOCABULARY, 12, 3), seed) for seed in (1, 2)]
    student = manticore.discretize(combine([copy.deepcopy(p) for p in parents], num_blocks=3, check=False), [0, 1, 0])
    found = [Teacher(parent, student, task).counterparts(student)[0] for parent in parents]
    assert [[n for part in parts for n in part.boundaries] for parts in found] == [[2, 3], [1]]
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01)
    assert "not to be told" in Teacher(parents[0], student, task).counterparts(student)[1]


def test_an_interpolation_is_a_teacher_of_text_alone(student, gpt, mamba, task):
    soft = combine([gpt, mamba], num_blocks=2, output="bayes", check=False)
    with pytest.raises(ManticoreError, match=r"distill: the teacher: targets of copying .* are not the next tokens"):
        distill(student, soft, task, steps=2, **QUICK)
    rows = task.data["train"].map(lambda row: {"targets": [*row["input_ids"][1:], -100]})
    for split in task.data:
        task.data[split] = rows
    found = distill(student, soft, task, steps=8, **QUICK)
    # its components run alone too, so that blocks have somebody to learn from
    assert [phase.name for phase in found.phases] == ["blocks", "logits"]


def test_kept_answers_change_nothing_but_what_the_teacher_costs(student, hybrid, task, tmp_path):
    given = {"steps": 9, "phases": "logits", **QUICK}
    computed = distill(copy.deepcopy(student), hybrid, task, **given)
    kept = distill(copy.deepcopy(student), hybrid, task, keep_answers=True, out=tmp_path, **given)
    for (name, one), other in zip(weights(computed.model).items(), weights(kept.model).values()):
        assert torch.allclose(one, other, atol=1e-5), name
    # three passes over 24 examples, of which the first is paid for
    assert kept.teacher_flops == computed.teacher_flops / 3
    assert kept.flops - kept.teacher_flops == computed.flops - computed.teacher_flops
    (file,) = (tmp_path / "logits/answers").glob("*.logits")
    assert file.stat().st_size == 24 * LENGTH * VOCABULARY * 4
    budget = distill(
        copy.deepcopy(student), hybrid, task, keep_answers=True, budget_flops=kept.flops, **QUICK | {"phases": "logits"}
    )
    assert (budget.steps, budget.flops) == (9, kept.flops)


def test_answers_that_were_damaged_are_computed_again(student, hybrid, task, tmp_path, caplog):
    teacher = Teacher(hybrid, student, task)
    device, rows = torch.device("cpu"), task.data["train"].with_format("torch")[3:7]
    with teacher.answering(device):
        made = [Answers(tmp_path, teacher, task, batch_size=8, device=device)]
        (file,) = tmp_path.glob("*.logits")
        content = file.read_bytes()
        file.write_bytes(b"\0" * 400 + content[400:])
        made.append(Answers(tmp_path, teacher, task, batch_size=8, device=device))
        expected = teacher.logits({"input_ids": rows["input_ids"]})
    assert "is damaged; it is made again" in caplog.text
    assert file.read_bytes() == content
    assert torch.allclose(made[1].of({"input_ids": rows["input_ids"]}), expected, atol=1e-6)


def test_answers_that_have_no_room_are_refused(student, hybrid, task, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ManticoreError, match=r"answers take .* has room for .*Fix: keep_answers=False"):
        distill(student, hybrid, task, steps=2, keep_answers=True, out=tmp_path, **QUICK)


def test_low_rank_updates_are_merged_and_blocks_do_not_train_them(student, hybrid, task):
    before = weights(student)
    found = distill(student, hybrid, task, steps=6, trainable="lora", lora_rank=2, lr=1e-2, **QUICK)
    assert weights(found.model).keys() == before.keys()
    assert any(".h." in name or "layers" in name for name in moved(found.model, before))


def test_micro_batches_change_nothing_but_rounding(student, hybrid, task):
    ragged = task.data["train"].map(
        lambda row, i: {"targets": [*row["targets"][: LENGTH - i % 5], *[-100] * (i % 5)]}, with_indices=True
    )
    task.data["train"] = ragged
    runs = [
        distill(copy.deepcopy(student), hybrid, task, steps=4, accumulation=parts, phases="both", **QUICK)
        for parts in (1, 4)
    ]
    for row, other in zip(*(run.history for run in runs)):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for (name, one), other in zip(weights(runs[0].model).items(), weights(runs[1].model).values()):
        assert torch.allclose(one, other, atol=2e-5), name


def test_text_is_packed_and_tables_of_unequal_length_agree(tokenizer, checkpoints, tmp_path):
    text = ["def f(x):\n    return x + 1\n" * 40, "import os\n" * 120]
    found = distill(str(checkpoints[0]), str(checkpoints[1]), text, steps=1, batch_size=2, test_examples=2, cpu=True)
    assert found.teacher == str(checkpoints[1])
    assert [phase.name for phase in found.phases] == ["logits"]
    assert found.metrics["bits_per_byte"] > 0


def other_tokenizer(folder, source):
    load_model(source)[0].save_pretrained(folder)
    train_tokenizer(["zz yy xx " * 50], 260).save_pretrained(folder)
    return str(folder)


def test_bad_input_is_one_line_each(student, hybrid, gpt, task, checkpoints, tmp_path):
    classifier = manticore.ManticoreForSequenceClassification.from_causal_lm(hybrid, num_labels=2)
    other = seeded(gpt_neo_config(VOCABULARY + 3, 16, 2), 0)
    small = seeded(gpt_neo_config(VOCABULARY, 16, 2, max_position_embeddings=4), 0)
    cases = {
        "the teacher is the student itself": (student, student, task, {}),
        "copy .*": (student, copy.deepcopy(student), task, {}),
        "another vocabulary: 16 tokens, and copying has 13 tokens": (student, other, task, {}),
        "predicts no tokens": (student, classifier, task, {}),
        "the model has 4 positions": (student, small, task, {}),
        r"the teacher is a int \(expected": (student, 3, task, {}),
        "no block can be compared .*no hybrid": (gpt, hybrid, task, {"phases": "both"}),
        "no block can be compared .*supernet": (hybrid, gpt, task, {"phases": "blocks"}),
        "no block can be compared .*no projector": (
            manticore.discretize(hybrid, [0, 0]), hybrid, task, {"phases": "both"},
        ),
        "each of two phases takes one": (student, hybrid, task, {"phases": "both", "steps": 1}),
        "alpha": (student, hybrid, task, {"alpha": 1.0}),
        "temperature": (student, hybrid, task, {"temperature": 0.0}),
        "phases": (student, hybrid, task, {"phases": "block"}),
        "another tokenizer": (
            str(checkpoints[0]), other_tokenizer(tmp_path / "other", checkpoints[1]), ["x y " * 500], {},
        ),
    }  # fmt: skip
    for expected, (learner, teacher, data, options) in cases.items():
        wanted = "the teacher is the student itself" if expected.startswith("copy") else expected
        with pytest.raises(ManticoreError, match=wanted) as refused:
            distill(learner, teacher, data, **{"steps": 4, **QUICK, **options})
        assert "\n" not in str(refused.value), expected
        assert "Fix:" in str(refused.value) or "Did you mean" in str(refused.value), expected


def test_a_task_with_classes_is_refused(student, hybrid):
    with pytest.raises(ManticoreError, match=r"has classes.*Fix: fine-tune"):
        distill(student, hybrid, class_task(), steps=2, **QUICK)


def test_weights_that_are_not_finite_are_refused(student, hybrid):
    hybrid.component(0).transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ManticoreError, match=r"distill: the teacher.*"):
        distill(student, hybrid, copying_task(), steps=2, **QUICK)
