"""The kinds of projector: initialisations, dtypes, affine maps, and the errors of ``make_projector``."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from manticore import registry
from manticore.errors import ManticoreError
from manticore.projectors.kinds import make_projector
from manticore.projectors.projector import InputMoments, resize

KINDS = [
    ("linear", {}),
    ("linear-skip", {}),
    ("two-layer", {}),
    ("two-layer", {"skip": True}),
    ("two-layer", {"hidden": 37}),
    ("low-rank", {"rank": 3}),
]
WIDTHS = [(5, 9), (9, 5), (7, 7), (1, 4)]
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS)
every_width = pytest.mark.parametrize(("d_in", "d_out"), WIDTHS)


def affine_map(d_in, d_out, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, d_in, generator=generator), torch.randn(d_out, generator=generator)


def test_every_registered_kind_is_tested_here():
    assert set(registry.entries("projector")) == {kind for kind, _ in KINDS}


@every_kind
@every_width
def test_identity_pads_or_cuts(kind, options, d_in, d_out):
    x = torch.randn(2, 3, d_in)
    y = make_projector(kind, d_in, d_out, **options)(x)
    torch.testing.assert_close(y, resize(x, d_out), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"), [("linear", {}), *(k for k in KINDS if "skip" in k[0] or "skip" in k[1]), KINDS[-1]]
)
@pytest.mark.parametrize("parameter_dtype", [torch.float32, torch.bfloat16])
@every_width
def test_identity_is_bit_equal(kind, options, parameter_dtype, d_in, d_out):
    projector = make_projector(kind, d_in, d_out, **options).to(parameter_dtype)
    # the kinds with a skip do not round a float32 stream even when their parameters are in bfloat16
    dtype = parameter_dtype if kind == "linear" else torch.float32
    x = torch.randn(4, 3, d_in).to(dtype)
    y = projector(x)
    assert y.dtype == dtype
    assert torch.equal(y, resize(x, d_out))


def test_resize_pads_on_the_right_and_cuts_the_first_channels():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert resize(x, 5).tolist() == [[1, 2, 3, 0, 0]]
    assert resize(x, 2).tolist() == [[1, 2]]
    assert resize(x, 3) is x


@every_kind
def test_zero_removes_the_learned_part(kind, options):
    projector = make_projector(kind, 6, 4, init="zero", **options)
    x = torch.randn(3, 6)
    skips = kind in ("linear-skip", "low-rank") or options.get("skip", False)
    assert torch.equal(projector(x), resize(x, 4) if skips else torch.zeros(3, 4))


@every_kind
@pytest.mark.parametrize("init", ["identity", "zero", "default"])
def test_one_step_of_training_moves_the_map(kind, options, init):
    projector = make_projector(kind, 6, 6, init=init, **options)
    x, target = torch.randn(8, 6), torch.randn(8, 6)
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.05)
    before = (projector(x) - target).square().mean()
    before.backward()
    optimizer.step()
    assert (projector(x) - target).square().mean() < before


@every_kind
def test_gradients_agree_with_finite_differences(kind, options):
    projector = make_projector(kind, 5, 3, init="default", **options).double()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value, *_: projector(value), (x, *projector.parameters()))


def test_default_draws_what_torch_draws_for_a_linear_layer():
    projector = make_projector("linear", 400, 300, init="default")
    layer = nn.Linear(400, 300)
    assert projector.weight.abs().max() <= 400**-0.5
    torch.testing.assert_close(projector.weight.std(), layer.weight.std(), rtol=0.02, atol=0)
    torch.testing.assert_close(projector.bias.std(), layer.bias.std(), rtol=0.2, atol=0)


@every_kind
@every_width
def test_returns_the_dtype_of_its_input(kind, options, d_in, d_out):
    projector = make_projector(kind, d_in, d_out, init="default", **options)
    x = torch.randn(2, d_in)
    y = projector(x)
    rounded = projector.bfloat16()(x)
    assert y.dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, y, rtol=0.05, atol=0.05)
    assert projector(x.bfloat16()).dtype == torch.bfloat16


@every_kind
@pytest.mark.parametrize("init", ["identity", "zero", "default"])
def test_meta_device(kind, options, init):
    with torch.device("meta"):
        projector = make_projector(kind, 6, 4, init=init, **options)
        assert projector(torch.empty(2, 6)).shape == (2, 4)
    projector.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.fill_(float("nan"))
    projector.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in projector.parameters())


# --- affine maps


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("linear", {}),
        ("linear-skip", {}),
        ("low-rank", {"rank": 9}),
        ("two-layer", {}),
        ("two-layer", {"skip": True}),
        ("two-layer", {"hidden": 21}),
    ],
)
@every_width
def test_set_affine_is_exact_where_the_kind_can_hold_it(kind, options, d_in, d_out):
    projector = make_projector(kind, d_in, d_out, **options)
    weight, bias = affine_map(d_in, d_out)
    x = 3 * torch.randn(50, d_in)
    held_weight, held_bias = projector.set_affine(weight, bias)
    torch.testing.assert_close(held_weight.float(), weight)
    torch.testing.assert_close(held_bias.float(), bias)
    torch.testing.assert_close(projector(x), x @ weight.T + bias, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "rank"), [({"hidden": 7, "skip": True}, 3), ({"hidden": 6}, 3), ({"hidden": 1}, 0)]
)
@pytest.mark.parametrize(("d_in", "d_out"), [(8, 11), (11, 8)])
def test_few_hidden_units_keep_the_largest_singular_values(options, rank, d_in, d_out):
    projector = make_projector("two-layer", d_in, d_out, **options)
    weight, bias = affine_map(d_in, d_out)
    base = torch.eye(d_out, d_in) if "skip" in options else torch.zeros(d_out, d_in)
    u, s, v = torch.linalg.svd(weight - base, full_matrices=False)
    expected = base + u[:, :rank] * s[:rank] @ v[:rank]
    held_weight, _ = projector.set_affine(weight, bias)
    torch.testing.assert_close(held_weight.float(), expected, rtol=1e-4, atol=1e-5)
    x = torch.randn(20, d_in)
    torch.testing.assert_close(projector(x), x @ expected.T + bias, rtol=1e-4, atol=1e-4)


def inputs_of_unequal_scales():
    generator = torch.Generator().manual_seed(1)
    scales = torch.tensor([100.0, 30, 1, 1, 0.1, 0.01, 0.01, 0.01])
    x = torch.randn(4000, 8, generator=generator) * scales + torch.randn(8, generator=generator) * 5
    return x, InputMoments(x.double().mean(0), x.double().T.cov(correction=0))


def lost_variance(x, weight, rank):
    """What the best approximation of rank ``rank`` of the centred outputs leaves over."""
    centred = (x - x.mean(0)).double() @ weight.double().T
    return torch.linalg.svdvals(centred)[rank:].square().sum() / len(x)


def test_set_affine_weighs_by_the_distribution_of_the_inputs():
    """With the inputs' moments, a truncated map is the reduced-rank regression, bias included."""
    x, moments = inputs_of_unequal_scales()
    weight, bias = affine_map(8, 8)
    errors = {}
    for name, given in {"plain": None, "moments": moments}.items():
        projector = make_projector("two-layer", 8, 8, hidden=4, skip=True)
        projector.set_affine(weight, bias, given)
        errors[name] = (projector(x) - x @ weight.T - bias).square().sum(1).mean().double()
    torch.testing.assert_close(errors["moments"], lost_variance(x, weight - torch.eye(8), 2), rtol=1e-3, atol=0)
    assert errors["plain"] > 10 * errors["moments"]


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(("d_in", "d_out"), [(6, 9), (9, 6)])
def test_low_rank_uses_only_as_much_of_the_skip_as_helps(share, d_in, d_out):
    weight, bias = affine_map(d_in, d_out)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    low_rank = u[:, :2] * s[:2] @ v[:2]
    projector = make_projector("low-rank", d_in, d_out, rank=2)
    projector.set_affine(low_rank + share * torch.eye(d_out, d_in), bias)
    x = torch.randn(20, d_in)
    expected = x @ low_rank.T + share * resize(x, d_out) + bias
    torch.testing.assert_close(projector(x), expected, rtol=1e-4, atol=1e-4)
    assert projector.scale.item() == share


def test_low_rank_is_never_worse_than_with_a_fixed_skip_or_without():
    x, moments = inputs_of_unequal_scales()
    weight, bias = affine_map(8, 8)
    projector = make_projector("low-rank", 8, 8, rank=2)
    projector.set_affine(weight, bias, moments)
    error = (projector(x) - x @ weight.T - bias).square().sum(1).mean().double()
    for scale in (0.0, 1.0):
        assert error < 1.001 * lost_variance(x, weight - scale * torch.eye(8), 2)


def test_units_beyond_the_affine_map_can_be_trained():
    projector = make_projector("two-layer", 4, 4, hidden=12)
    projector.set_affine(*affine_map(4, 4))
    projector(torch.randn(8, 4)).square().mean().backward()
    assert (projector.weight_out.grad[:, 8:] != 0).any()


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_set_affine_and_reset_keep_dtype_and_parameters(kind, options, dtype):
    projector = make_projector(kind, 5, 7, init="default", **options).to(dtype)
    before = dict(projector.named_parameters())
    projector.set_affine(*affine_map(5, 7))
    projector.reset_identity()
    after = dict(projector.named_parameters())
    assert all(after[name] is before[name] and after[name].dtype == dtype for name in before)
    x = torch.randn(3, 5).to(dtype)
    torch.testing.assert_close(projector(x), resize(x, 7), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_set_affine_refuses_a_transposed_weight():
    with pytest.raises(ManticoreError, match=r"weight has shape \[5, 7\] .expected \[7, 5\]"):
        make_projector("linear", 5, 7).set_affine(torch.zeros(5, 7), torch.zeros(7))


# --- inside a transformers model


class ProjectorModel(PreTrainedModel):
    config_class = PreTrainedConfig
    base_model_prefix = ""

    def __init__(self, config):
        super().__init__(config)
        self.projectors = nn.ModuleDict(
            {str(i): make_projector(kind, 6, 4, init="default", **o) for i, (kind, o) in enumerate(KINDS)}
        )
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def test_survives_saving_and_loading_in_transformers(tmp_path):
    model = ProjectorModel(PreTrainedConfig())
    model.save_pretrained(tmp_path)
    loaded = ProjectorModel.from_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))
    # an explicit reset acts although transformers has marked the parameters as loaded
    loaded.projectors["0"].reset_identity()
    assert torch.equal(loaded.projectors["0"].weight, torch.eye(4, 6))


def test_keys_missing_from_a_checkpoint_are_initialised(tmp_path):
    model = ProjectorModel(PreTrainedConfig())
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("projectors.1.")}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = ProjectorModel.from_pretrained(tmp_path)
    weight = loaded.projectors["1"].weight
    assert weight.isfinite().all()
    assert 0 < weight.abs().max() <= 6**-0.5
    assert torch.equal(loaded.projectors["0"].weight, model.projectors["0"].weight)


# --- errors


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("liner", {}, r"unknown projector 'liner'. Did you mean 'linear'\?"),
        ("low-rank", {"rnak": 4}, r"unknown option 'rnak'\. Did you mean 'rank'\? Fix:"),
        ("linear", {"rank": 4}, r"projector 'linear': unknown option 'rank' \(expected one of init\)\. Fix:"),
        ("linear", {"init": "eye"}, r"init is 'eye' \(expected one of identity, zero, default\)"),
        ("low-rank", {"rank": 0}, "rank is 0 .expected a whole number.. Fix: give 1 or more"),
        ("low-rank", {"rank": True}, "rank is True .expected a whole number"),
        ("two-layer", {"hidden": 2.5}, "hidden is 2.5 .expected a whole number"),
        ("two-layer", {"skip": 1}, "skip is 1 .expected true or false"),
    ],
)
def test_bad_options_name_themselves(kind, options, message):
    with pytest.raises(ManticoreError, match=message):
        make_projector(kind, 4, 6, **options)


def test_bad_width():
    with pytest.raises(ManticoreError, match=r"d_out is 0 .expected a whole number"):
        make_projector("linear", 4, 0)
