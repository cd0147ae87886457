"""A plan is right: its FLOPs and parameters are those of the models that a run makes, and it says when it cannot go."""

import copy
import json
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

import manticore
from manticore.errors import ManticoreError
from manticore.kernels.mamba import use_selective_scan
from manticore.modes import recomputed_activations
from manticore.plan.bytes_alive import tensor_bytes
from manticore.plan.cases import Cases, Setting
from manticore.plan.fit import parse_bytes
from manticore.plan.known import KNOWN, known
from manticore.plan.planner import plan
from manticore.plan.skeleton import Shape, Skeleton
from manticore.plan.sources import find_sources
from manticore.schema.loading import load_recipe
from manticore.schema.recipe import Recipe
from manticore.tasks.task import load_task
from manticore.training.budget import cache_cost, count_parameters, flops_per_step
from manticore.training.precision import Precision
from manticore.training.shapes import small_config
from manticore.training.trainable import set_trainable

BATCH, LENGTH = 4, 12


def configs():
    found = [small_config("gpt_neo", layers=3, width=32), small_config("mamba", layers=5, width=24)]
    for config in found:
        config.vocab_size = 48
    return found


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return manticore.combine([AutoModelForCausalLM.from_config(c) for c in configs()], num_blocks=2)


@pytest.mark.parametrize("name", list(KNOWN))
def test_known_configurations_have_the_published_number_of_parameters(name):
    facts = KNOWN[name]
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(facts.family, **facts.fields))
    model.tie_weights()
    assert count_parameters(model).total == facts.parameters


def test_a_hub_id_means_its_checkpoint():
    assert known("EleutherAI/Pythia-6.9b")[0] == "pythia-6.9b"
    assert known("someone/else") is None


@pytest.fixture(scope="module")
def cases():
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = Skeleton(["a", "b"], configs(), Shape(2, "translated", False, "linear", {}, torch.float32), None, mode)
    return Cases(skeleton, mode, lora_rank=8)


@pytest.mark.parametrize("path", [None, [0, 0], [1, 0]], ids=["supernet", "gpt", "mamba-gpt"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("trainable", ["all", "lora", "frozen"])
def test_flops_and_parameters_are_those_of_the_real_model(cases, supernet, trainable, checkpointing, path):
    case = cases.measure(Setting(trainable, checkpointing, False), path, batch_size=BATCH, length=LENGTH, mixture=False)
    real = copy.deepcopy(supernet) if path is None else manticore.discretize(supernet, path)
    set_trainable(real, trainable)
    for weights in real.mixing.mixture_parameters():
        weights.requires_grad_(False)
    use_selective_scan(real)
    counted = count_parameters(real)
    assert (case.held.parameters, case.held.trained) == (counted.total, counted.trainable)
    with recomputed_activations(real) if checkpointing else nullcontext():
        assert case.flops == flops_per_step(real, BATCH, LENGTH)


def test_given_boundaries_are_counted_as_they_cut():
    mode, cuts, path = FakeTensorMode(allow_non_fake_inputs=True), [[0, 1, 3], [0, 4, 5]], [0, 1]
    shape = Shape(2, "translated", False, "linear", {}, torch.float32, boundaries=cuts)
    case = Cases(Skeleton(["a", "b"], configs(), shape, None, mode), mode, lora_rank=8).measure(
        Setting("all", False, False), path, batch_size=BATCH, length=LENGTH, mixture=False
    )
    models = [AutoModelForCausalLM.from_config(config) for config in configs()]
    real = manticore.discretize(manticore.combine(models, boundaries=cuts, check=False), path)
    set_trainable(real, "all")
    use_selective_scan(real)
    assert case.held.parameters == count_parameters(real).total
    assert case.flops == flops_per_step(real, BATCH, LENGTH)


@pytest.mark.parametrize("path", [None, [0, 1], [1, 0]], ids=["supernet", "gpt-mamba", "mamba-gpt"])
def test_the_released_function_is_counted_as_it_runs(path):
    """Heads are tied, and those of the first block's components."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = Skeleton(["a", "b"], configs(), Shape(2, "gated", True, "linear", {}, torch.float32), None, mode)
    case = Cases(skeleton, mode, lora_rank=8).measure(
        Setting("all", False, False), path, batch_size=BATCH, length=LENGTH, mixture=False
    )
    models = [AutoModelForCausalLM.from_config(config) for config in configs()]
    real = manticore.combine(models, num_blocks=2, mixing="gated", released=True)
    real = real if path is None else manticore.discretize(real, path)
    set_trainable(real, "all")
    use_selective_scan(real)
    counted = count_parameters(real)
    assert (case.held.parameters, case.held.trained) == (counted.total, counted.trainable)
    assert case.flops == flops_per_step(real, BATCH, LENGTH)


@pytest.mark.parametrize("output", ["logits", "bayes", "gate"])
def test_an_ensemble_is_counted_as_it_runs_whatever_its_output(output):
    """At R = I nothing crosses; a gate has parameters, and weights that follow the text leave a state."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shape = Shape(2, "routed", False, "linear", {}, torch.float32, output)
    skeleton = Skeleton(["a", "b"], configs(), shape, None, mode)
    cases = Cases(skeleton, mode, lora_rank=8)
    models = [AutoModelForCausalLM.from_config(config) for config in configs()]
    real = manticore.combine(models, num_blocks=2, mixing="routed", output=output, check=False)
    use_selective_scan(real)
    for path in (None, [1, 0]):
        case = cases.measure(Setting("all", False, False), path, batch_size=BATCH, length=LENGTH, mixture=False)
        model = real if path is None else manticore.discretize(real, path)
        set_trainable(model, "all")
        counted = count_parameters(model)
        assert case.held.parameters == counted.total
        assert case.flops == flops_per_step(model, BATCH, LENGTH)
    rows = real.config.vocab_size
    alone = copy.deepcopy(real)
    alone.set_mixture_weights([0, 0])
    # the layers that are kept count, whether they run or not
    beside = cache_cost(real).state_bytes - cache_cost(alone).state_bytes
    assert beside == (2 * (1 + rows) * 4 if output == "bayes" else 0)


@pytest.mark.parametrize(("dtype", "bf16"), [("auto", False), ("auto", True), ("bfloat16", False)])
@pytest.mark.parametrize("trainable", ["all", "frozen"])
def test_half_precision_weights_are_counted_in_the_type_that_they_train_in(supernet, trainable, dtype, bf16):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    skeleton = Skeleton(["a", "b"], configs(), Shape(2, "translated", False, "linear", {}, torch.bfloat16), None, mode)
    own = Setting(trainable, False, bf16, dtype)
    held = Cases(skeleton, mode, lora_rank=8).measure(own, None, batch_size=2, length=8, mixture=False).held
    components = [AutoModelForCausalLM.from_config(c, dtype=torch.bfloat16) for c in configs()]
    real = manticore.combine(components, num_blocks=2, check=False)
    precision = Precision(real, dtype, bf16=bf16, cpu=True, stage="finetune")
    set_trainable(real, trainable)
    for weights in real.mixing.mixture_parameters():
        weights.requires_grad_(False)
    precision.hold()
    assert held.weight_bytes == tensor_bytes(list(real.parameters()))
    assert held.trained_bytes == tensor_bytes([p for p in real.parameters() if p.requires_grad])
    assert skeleton.hybrid.component(0).dtype == torch.bfloat16


def recipe(**changes) -> Recipe:
    entries = [
        {"name": "gpt", "family": "gpt_neo", "layers": 3, "width": 32, "vocab_size": 48},
        {"name": "mamba", "family": "mamba", "layers": 5, "width": 24, "vocab_size": 48},
    ]
    sections = {
        "name": "small",
        "pretrain": entries,
        "components": [{"name": entry["name"], "source": entry["name"]} for entry in entries],
        "task": {"name": "text", "options": {"length": LENGTH}},
        "combine": {"num_blocks": 2},
        "align": {"tokens": 128, "length": 8, "batch_size": 4},
        "search": {"method": "darts", "steps": 3, "batch_size": BATCH},
        "finetune": {"steps": 2, "batch_size": BATCH},
        "compare": None,
    }
    return Recipe(**{**sections, **changes})


def test_a_comparison_is_priced_at_the_micro_batches_that_it_makes():
    kept = {"search": None, "align": None, "discretize": {"path": [0, 1]}, "compare": {"seeds": [0]}}
    tuning = {"steps": 2, "batch_size": 4 * BATCH}
    whole, cut = (
        plan(recipe(finetune={**tuning, "accumulation": parts}, **kept), device_memory=1e12) for parts in (1, 4)
    )
    prices = [next(stage for stage in found.stages if stage.name == "compare") for found in (whole, cut)]
    assert prices[0].step_flops == pytest.approx(prices[1].step_flops)
    assert prices[1].bytes == cut.fits["compare"][0].data_parallel < prices[0].bytes


@pytest.mark.parametrize(
    ("task", "refused"),
    [
        ("mad/in-context-recall", []),
        ("mad/compression", ["compare.generate: mad/compression writes nothing: leave generate out"]),
    ],
)
def test_what_models_write_is_told_and_not_counted(task, refused):
    kept = {"search": None, "align": None, "discretize": {"path": [0, 1]}, "task": {"name": task, "options": {}}}
    plain, found = (plan(recipe(compare={"generate": on}, **kept), device_memory=1e12) for on in (False, True))
    before, stage = (next(each for each in one.stages if each.name == "compare") for one in (plain, found))
    assert stage.flops == before.flops
    assert stage.what == before.what + ("" if refused else ", what they write is not counted")
    assert [problem for problem in found.problems if "generate" in problem] == refused


def test_a_comparison_over_budgets_is_priced_by_the_run_that_passes_them_all():
    kept = {"search": None, "align": None, "discretize": {"path": [0, 1]}}
    tuning, options = {"steps": 8, "batch_size": BATCH}, {"seeds": [0, 1], "ensemble": False}

    def price(schedule="constant", **more):
        found = plan(
            recipe(finetune={**tuning, "schedule": schedule}, compare={**options, **more}, **kept), device_memory=1e12
        )
        return next(stage for stage in found.stages if stage.name == "compare")

    over = price(budgets=[0, 0.25, 1], larger="gpt")
    # two parents, the supernet, what is found and the one that is shown for scale
    assert over.what == "5 models × 4, 3 budgets in one run"
    own = price("linear", learning_rates=[1e-3], budgets=[0, 0.25, 1])
    assert own.what == "4 models × 2, 3 budgets in runs of their own"
    # own: each of four models makes two runs to each budget. over: each of five makes three to the end with the first
    # seed; with the second at most one to the end and one to the quarter
    assert over.flops / 5 / (3 + 1.25) == pytest.approx(own.flops / 4 / (2 * 1.25), rel=1e-3)


def test_candidates_are_priced_with_the_batches_and_on_the_task_of_the_search():
    tuning, search = {"steps": 12, "batch_size": 4 * BATCH}, {"method": "race", "batch_size": BATCH}
    task = {"name": "text", "options": {"length": LENGTH}}
    found = plan(recipe(search=search, finetune=tuning, task=task, compare={"seeds": [0]}), device_memory=1e12)
    real = manticore.combine([AutoModelForCausalLM.from_config(c) for c in configs()], num_blocks=2)
    costs = []
    for k in range(2):
        parent = manticore.discretize(real, [k, k])
        set_trainable(parent, "all")
        use_selective_scan(parent)
        costs.append(flops_per_step(parent, BATCH, LENGTH))
    stages = {stage.name: stage for stage in found.stages}
    assert stages["search"].step_flops == max(costs)
    assert stages["search"].what.startswith("4 paths, ")
    # two parents, their two ensembles, and what is found: nothing is soft; three learning rates
    assert stages["compare"].what == "5 models × 3"
    shorter = plan(
        recipe(search={**search, "task_options": {"length": LENGTH // 2}}, finetune=tuning, task=task),
        device_memory=1e12,
    )
    cheaper = next(stage for stage in shorter.stages if stage.name == "search")
    assert cheaper.step_flops < 0.6 * stages["search"].step_flops


def test_a_plan_counts_what_the_stages_count(supernet):
    found = plan(recipe(), device_memory=1e9)
    stages = {stage.name: stage for stage in found.stages}
    torch.manual_seed(0)
    real = manticore.combine([AutoModelForCausalLM.from_config(c) for c in configs()], num_blocks=2)
    rows = torch.randint(0, 48, (16, 8)).tolist()
    from datasets import Dataset

    given = {"tokens": 128, "batch_size": 4, "withdraw": False}
    report = manticore.align(real, Dataset.from_dict({"input_ids": rows}), **given)
    assert stages["align"].flops == report.flops
    set_trainable(real, "all")
    use_selective_scan(real)
    for weights in real.mixing.mixture_parameters():
        weights.requires_grad_(True)
    scored = [manticore.discretize(real, list(p)) for p in ([0, 0], [1, 1], [0, 0], [0, 1], [1, 0], [1, 1])]
    # parents before and after it, each path on as few examples as there may be
    scoring = 32 * sum(flops_per_step(model, 1, LENGTH, backward=False) for model in scored)
    assert stages["search"].flops == 3 * flops_per_step(real, BATCH, LENGTH) + scoring
    assert stages["search"].what == "supernet, then 4 one-hot paths on held-out data"
    assert stages["search"].trained == count_parameters(real).trainable
    paths = {tuple(p): manticore.discretize(real, list(p)) for p in ([0, 0], [0, 1], [1, 0], [1, 1])}
    costs = {}
    for path, model in paths.items():
        set_trainable(model, "all")
        use_selective_scan(model)
        costs[path] = flops_per_step(model, BATCH, LENGTH)
    assert stages["finetune"].flops == 2 * max(costs.values())
    assert costs[tuple(found.paths["cheapest"])] == min(costs.values())
    cache = cache_cost(real)
    assert found.cache["supernet"] == (cache.bytes_per_token, cache.state_bytes)
    assert found.runnable
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("blocks", "examples", "trainable"), [(2, 40, "all"), (3, 8, "all"), (2, 8, "lora")], ids=["all", "few", "lora"]
)
def test_a_search_that_learns_weights_costs_what_the_plan_says(blocks, examples, trainable):
    options = {"vocab_size": 8, "seq_len": 12, "num_train_examples": 64, "num_validation_examples": examples}
    tuning = {"batch_size": BATCH, "lora_rank": 2}
    found = plan(
        recipe(
            combine={"num_blocks": blocks},
            task={"name": "mad/in-context-recall", "options": options},
            search={"method": "gaea", "steps": 20, "trainable": trainable, **tuning},
            finetune={"steps": 2, **tuning},
        ),
        device_memory=1e12,
    )
    hybrid = manticore.combine([AutoModelForCausalLM.from_config(c) for c in configs()], num_blocks=blocks, check=False)
    task = load_task("mad/in-context-recall", num_test_examples=8, **options)
    result = manticore.search(hybrid, task, method="gaea", steps=20, trainable=trainable, cpu=True, **tuning)
    stage = next(stage for stage in found.stages if stage.name == "search")
    # low-rank updates, which parents have before the search, are not in the plan
    assert result.flops == pytest.approx(stage.flops, rel=0.01 if trainable == "lora" else 0)
    assert result.shared_examples == examples


def test_what_does_not_fit_says_what_would():
    tight = plan(recipe(), device_memory=1e9)
    asked = tight.fits["finetune"][0]
    milder = next(f for f in tight.fits["finetune"] if str(f.setting) == "all + checkpointing")
    assert milder.data_parallel < asked.data_parallel
    between = (asked.data_parallel + milder.data_parallel) / 2
    found = plan(recipe(search=None, discretize={"path": asked_path(tight)}), device_memory=between / 0.95)
    stage = next(stage for stage in found.stages if stage.name == "finetune")
    assert stage.verdict.startswith("does not fit")
    assert "all + checkpointing" in stage.verdict
    assert not found.runnable


def asked_path(found) -> list[int]:
    return found.paths["costliest"]


def test_more_devices_take_less_each_and_a_search_is_never_sharded():
    found = plan(recipe(), devices=2, device_memory=1e9)
    alone = plan(recipe(), devices=1, device_memory=1e9)
    assert found.fits["finetune"][0].sharded < alone.fits["finetune"][0].data_parallel
    assert found.fits["search"][0].sharded is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**12), ("hidden_size", -4), ("vocab_size", 0), ("num_hidden_layers", 0)],
)
def test_absurd_sizes_are_refused_in_one_line(tmp_path, field, value):
    config = json.loads(configs()[1].to_json_string(use_diff=False)) | {field: value, "architectures": None}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    components = [{"name": name, "source": str(tmp_path / name)} for name in ("a", "b")]
    with pytest.raises(ManticoreError, match="Fix:") as caught:
        plan(recipe(pretrain=[], components=components), device_memory=1e9)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_nowhere_is_not_downloaded():
    components = [{"name": name, "source": f"nobody/{name}"} for name in ("a", "b")]
    with pytest.raises(ManticoreError, match="a plan downloads nothing"):
        plan(recipe(pretrain=[], components=components), device_memory=1e9)


def test_different_tokenizers_are_told():
    components = [{"name": name, "source": name} for name in ("gpt2", "mamba-130m-hf")]
    found = plan(
        recipe(pretrain=[], components=components, search=None, align=None, discretize={"path": [0, 1]}),
        device_memory=1e12,
    )
    assert found.tokenizers == "differ (gpt2, gpt-neox)"
    assert not found.runnable


def test_more_blocks_than_layers_are_refused():
    with pytest.raises(ManticoreError, match="num_blocks <= 3"):
        plan(recipe(combine={"num_blocks": 4}), device_memory=1e9)


def test_sizes_of_memory():
    assert parse_bytes("80GB") == 80 * 10**9
    assert parse_bytes("24 GiB") == 24 * 2**30
    for wrong in ("lots", "-1GB", "0", "80 GBs"):
        with pytest.raises(ManticoreError, match="--device-memory"):
            parse_bytes(wrong)


def test_a_given_tokenizer_counts_and_a_new_one_too(tokenizer, tmp_path):
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens([f"<extra {index}>" for index in range(500)])
    larger.save_pretrained(tmp_path / "tokens")
    small = ["pretrain.gpt.layers=1", "pretrain.mamba.layers=1", "combine.num_blocks=1", "align=null", "search=null"]
    small += ["discretize.path=[0]", "compare=null"]
    overrides = [f"pretrain.{name}.tokenizer={tmp_path / 'tokens'}" for name in ("gpt", "mamba")]
    recipe = load_recipe("quickstart", [*small, *overrides]).recipe
    sources = find_sources(recipe)
    assert [source.config.vocab_size for source in sources] == [len(larger)] * 2
    assert [source.config.vocab_size for source in find_sources(load_recipe("quickstart").recipe)] == [1024] * 2
    # as many parameters as the model that pretraining makes
    model = AutoModelForCausalLM.from_config(sources[0].config)
    stage = next(stage for stage in plan(recipe, device_memory=1e12).stages if stage.what.startswith("gpt"))
    assert stage.trained == sum(p.numel() for p in model.parameters())
    with pytest.raises(ManticoreError, match=r"plan: gpt: no tokenizer .* is here"):
        find_sources(load_recipe("quickstart", [f"pretrain.gpt.tokenizer={tmp_path}"]).recipe)
