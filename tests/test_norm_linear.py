"""`norm_linear` and `linear_moments` against float64, and `Fused`, the forward pass made of them, against the model."""

import copy
import importlib

import pytest
import torch
import torch.nn.functional as F
from hostile import call, double, guarded_outputs, tensor
from test_parity import hugging_face, pixels, small
from tolerance import assert_close_to_float64

from vitcourse import fused, runtime
from vitcourse.kernels.norm_linear import Folded, Moments, fold, linear_moments, norm_linear
from vitcourse.runtime import Config
from vitcourse.teach import trace
from vitcourse.vit import ViT, ViTConfig

MODULE = importlib.import_module("vitcourse.kernels.norm_linear")
SIZES = [(1, 1, 1), (5, 33, 7), (64, 64, 64), (53, 300, 190)]


def smaller_blocks(monkeypatch: pytest.MonkeyPatch, m: int = 16, n: int = 16, k: int = 16) -> None:
    """In the interpreter, blocks of which any matrix has several. On a GPU the blocks are small enough as they are."""
    if runtime.INTERPRETER:
        config = Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 2})
        monkeypatch.setattr(MODULE, "_interpreter_config", lambda *sizes: config)


def draw(M: int, K: int, N: int, dtype: torch.dtype, scale: float = 1.0, away: float = 0.0) -> dict[str, torch.Tensor]:
    """What both layers take: `input` and `residual` are what `linear_moments` is given, for a result of (M, K)."""
    made = {
        "input": tensor((M, N), dtype, seed=1),
        "before": tensor((K, N), dtype, seed=2, scale=scale * N**-0.5),
        "shift": tensor((K,), dtype, seed=3),
        "residual": tensor((M, K), dtype, seed=4, scale=scale),
        "norm_weight": tensor((K,), dtype, seed=5),
        "norm_bias": tensor((K,), dtype, seed=6),
        "weight": tensor((N, K), dtype, seed=7, scale=K**-0.5),
        "bias": tensor((N,), dtype, seed=8),
    }
    made["residual"] += away
    made["norm_weight"] += 1
    return made


def check_moments(moments: Moments, x: torch.Tensor) -> None:
    """Each piece's mean and squares, of what is stored in `x`, in float32."""
    for index, piece in enumerate(x.double().split(moments.width, dim=-1)):
        mean = piece.mean(-1)
        squares = (piece - mean[:, None]).square().sum(-1)
        eps = torch.finfo(torch.float32).eps
        assert ((moments.values[0, index] - mean).abs() <= 4 * eps * piece.abs().amax(-1)).all()
        # Of differences that are off by a rounding of the mean each.
        allowed = 8 * eps * (squares + piece.shape[-1] * piece.abs().amax(-1).square() * eps)
        assert ((moments.values[1, index] - squares).abs() <= allowed).all()


@pytest.mark.parametrize("away", [0.0, 30.0])
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
@pytest.mark.parametrize(("M", "K", "N"), SIZES)
def test_both_in_a_row(monkeypatch, dtype, M, K, N, activation, away) -> None:
    smaller_blocks(monkeypatch)
    g = draw(M, K, N, dtype, away=away)
    x, moments = call(linear_moments, g["input"], g["before"], g["shift"], residual=g["residual"])
    exact = F.linear(*double(g["input"], g["before"], g["shift"])) + g["residual"].double()
    peer = F.linear(g["input"], g["before"], g["shift"]) + g["residual"]
    assert_close_to_float64(x, exact, peer, intermediate=exact.abs().max().item() + away)
    check_moments(moments, x)

    folded = fold(g["norm_weight"], g["norm_bias"], g["weight"], g["bias"])
    with guarded_outputs():
        result = norm_linear(x, moments, folded, eps=1e-6, activation=activation)
    act = {None: lambda y: y, "gelu": F.gelu, "relu": F.relu}[activation]
    norm = [x, (K,), g["norm_weight"], g["norm_bias"], 1e-6]
    before = F.linear(F.layer_norm(*double(*norm)), *double(g["weight"], g["bias"]))
    peer = act(F.linear(F.layer_norm(*norm), g["weight"], g["bias"]))
    # Rounded here are the weights with the norm's in them, there the normalized rows: each a rounding of every term, and
    # roundings of K terms add up like a random walk of sqrt(K) steps. The terms still hold the row's mean here.
    rstd = (x.double().var(-1, correction=0, keepdim=True) + 1e-6).rsqrt()
    terms = (x.double().abs() @ (g["weight"] * g["norm_weight"]).double().abs().T * rstd).max().item()
    assert_close_to_float64(result, act(before), peer, rounded=terms * K**-0.5, intermediate=terms)


def test_rows_far_from_zero_keep_their_variance(monkeypatch) -> None:
    # Sums of squares would have lost all of it: 1000^2 * eps is larger than 0.01^2.
    smaller_blocks(monkeypatch)
    g = draw(20, 64, 48, torch.float32, scale=0.01, away=1000.0)
    x, moments = linear_moments(g["input"] * 0.01, g["before"], None, residual=g["residual"])
    eye = torch.eye(64, device=x.device)
    flat = fold(torch.ones(64, device=x.device), torch.zeros(64, device=x.device), eye, None)
    spread = x.double().std(-1, correction=0, keepdim=True)
    result = norm_linear(x, moments, flat, eps=0.0)
    exact = (x.double() - x.double().mean(-1, keepdim=True)) / spread
    rounding = 1000 * torch.finfo(torch.float32).eps / spread.min().item()  # of the product and of the mean, by the deviation
    assert (result - exact).abs().max() <= 4 * rounding
    assert abs(result.double().std(-1, correction=0) - 1).max() < 1e-3


def same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """The same bits; on a GPU, where another layout may be read another way, up to a rounding of the largest."""
    floor = 0.0 if runtime.INTERPRETER else 2 * torch.finfo(result.dtype).eps * expected.abs().max()
    return bool(((result - expected).abs() <= floor).all())


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "stepped", "padded"])
def test_layouts(monkeypatch, dtype, layout) -> None:
    smaller_blocks(monkeypatch)
    g = draw(37, 40, 24, dtype)
    x, moments = linear_moments(g["input"], g["before"], residual=g["residual"])
    folded = fold(g["norm_weight"], g["norm_bias"], g["weight"], None)
    expected = norm_linear(x, moments, folded, eps=1e-6)

    def lying(plain: torch.Tensor, seed: int) -> torch.Tensor:
        other = tensor(tuple(plain.shape), dtype, layout, seed=seed)
        other.copy_(plain)
        return other

    y, others = linear_moments(lying(g["input"], 1), lying(g["before"], 2), residual=lying(g["residual"], 3))
    assert same(y, x) and same(others.values, moments.values)
    again = norm_linear(lying(x, 4), moments, Folded(lying(folded.weight, 5), *folded[1:]), eps=1e-6)
    assert same(again, expected)


def test_leading_dimensions_and_nothing(dtype) -> None:
    g = draw(12, 16, 8, dtype)
    flat, _ = linear_moments(g["input"], g["before"], residual=g["residual"])
    x, moments = linear_moments(g["input"].view(3, 4, 8), g["before"], residual=g["residual"].view(3, 4, 16))
    assert x.shape == (3, 4, 16) and torch.equal(x.view(12, 16), flat) and moments.values.shape[2] == 12
    folded = fold(g["norm_weight"], g["norm_bias"], g["weight"], g["bias"])
    assert norm_linear(x, moments, folded, eps=1e-6).shape == (3, 4, 8)
    none, nothing = linear_moments(g["input"][:0], g["before"], residual=g["residual"][:0])
    assert none.shape == (0, 16) and norm_linear(none, nothing, folded, eps=1e-6).shape == (0, 8)


def test_fold_sums_what_it_rounded() -> None:
    torch.manual_seed(0)
    g = {name: torch.randn(shape) for name, shape in {"w": (8, 512), "b": (8,), "nw": (512,), "nb": (512,)}.items()}
    g = {name: value.half() for name, value in g.items()}
    folded = fold(g["nw"], g["nb"], g["w"], g["b"])
    assert folded.weight.dtype == torch.float16 and folded.bias.dtype == folded.column_sums.dtype == torch.float32
    assert torch.equal(folded.weight, g["w"] * g["nw"])
    assert torch.allclose(folded.column_sums.double(), folded.weight.double().sum(1), rtol=1e-6, atol=1e-5)
    assert (folded.column_sums.double() - (g["w"].double() * g["nw"].double()).sum(1)).abs().max() > 1e-4
    assert torch.allclose(folded.bias.double(), g["b"].double() + g["w"].double() @ g["nb"].double(), atol=1e-4)
    assert torch.allclose(fold(g["nw"], g["nb"], g["w"], None).bias, folded.bias - g["b"], atol=1e-4)


def _given(**changes):
    g = draw(6, 16, 8, torch.float32)
    x, moments = linear_moments(g["input"], g["before"], residual=g["residual"])
    folded = fold(g["norm_weight"], g["norm_bias"], g["weight"], g["bias"])
    given = {"input": x, "moments": moments, "folded": folded, "eps": 1e-6}
    return {name: changes[name](value) if name in changes else value for name, value in given.items()}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": lambda x: x[:, :-1]}, ValueError, r"input is \(6, 15\) and weight \(8, 16\)"),
        ({"input": lambda x: x.half()}, TypeError, "weight is torch.float32 and input is torch.float16"),
        ({"moments": lambda m: m._replace(values=m.values[..., :5])}, ValueError, "moments is .*is accepted"),
        ({"moments": lambda m: m._replace(width=3)}, ValueError, r"moments is .*; \(2, 6, 6\) is accepted"),
        ({"folded": lambda f: f._replace(bias=f.bias[:3])}, ValueError, r"bias is \(3,\); \(8,\) is accepted"),
        ({"folded": lambda f: f._replace(column_sums=f.column_sums[:3])}, ValueError, "column_sums is"),
        ({"folded": lambda f: f._replace(weight=f.weight.requires_grad_())}, ValueError, "requires a gradient"),
    ],
)
def test_refusals_of_norm_linear(changes, error, message) -> None:
    with pytest.raises(error, match=f"norm_linear: .*{message}"):
        norm_linear(**_given(**changes))


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="norm_linear: activation is 'silu'"):
        norm_linear(**_given(), activation="silu")
    g = draw(6, 16, 8, torch.float32)
    with pytest.raises(ValueError, match=r"linear_moments: residual is \(5, 16\); \(6, 16\) is accepted"):
        linear_moments(g["input"], g["before"], residual=g["residual"][:5])
    with pytest.raises(TypeError, match=r"linear_moments: residual is torch\.float16"):
        linear_moments(g["input"], g["before"], residual=g["residual"].half())


# ---- Fused ------------------------------------------------------------------------------------------------------------------

MODELS = {
    "vit": {},
    "one block": {"num_hidden_layers": 1},
    "no block": {"num_hidden_layers": 0},
    "no bias": {"qkv_bias": False},
    "relu": {"hidden_act": "relu"},
    "no classifier": {"classifier": False},
    "two classifiers": {"family": "DeiT", "teacher": True},
}


@pytest.fixture(params=MODELS)
def pair(request, tmp_path) -> tuple[torch.nn.Module, ViT]:
    """A small model of Hugging Face's with drawn weights, and ours with the same."""
    theirs = hugging_face(3, **small(**MODELS[request.param]))
    theirs.save_pretrained(tmp_path)
    return theirs, ViT.from_pretrained(tmp_path)


@torch.inference_mode()
def test_fused_is_as_near_to_the_truth_as_the_model(pair) -> None:
    theirs, ours = pair
    x = pixels(ours.config)
    exact = copy.deepcopy(theirs).double()(x.cpu().double())
    exact = (exact.logits if ours.classifier is not None else exact.last_hidden_state).to(x.device)
    plain, result = ours(x), fused.Fused(ours)(x)
    assert result.shape == plain.shape and result.dtype == plain.dtype
    # The same rounding of float32 in other places: not the same error, but one of its size.
    floor = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert (result - exact).abs().max() <= 4 * (plain - exact).abs().max() + floor


@torch.inference_mode()
def test_operations_are_those_launched(pair) -> None:
    _, ours = pair
    if ours.classifier is None or ours.distillation_classifier is not None or not ours.config.num_hidden_layers:
        pytest.skip("`operations` are a ViT's to logits")
    x = pixels(ours.config)
    for forward, whether in ((ours, False), (fused.Fused(ours), True)):
        names = fused.operations(ours.config, whether)
        launched = trace.launched(forward, x)
        assert len(names) == len(launched)
        for name, kernel in zip(names, launched):
            kind = "patch_embed" if "patch" in name else "attention" if "attention" in name else "linear"
            assert ("layer_norm" if name == "layer norm" else kind) in kernel, (name, kernel)


@torch.inference_mode()
def test_weights_written_in_place_are_folded_again(pair) -> None:
    _, ours = pair
    model = fused.Fused(ours)
    x = pixels(ours.config)
    before = model(x)
    addresses = [tensor.data_ptr() for folded in model._folded.values() for tensor in folded]
    assert not model.refold() and torch.equal(model(x), before)
    ours.load_state_dict({name: value * 0.7 for name, value in ours.state_dict().items()})
    if model._folded:
        assert model.refold() and not model.refold()
    assert [tensor.data_ptr() for folded in model._folded.values() for tensor in folded] == addresses
    floor = 64 * torch.finfo(torch.float32).eps * ours(x).abs().max()
    assert (model(x) - ours(x)).abs().max() <= floor and not torch.equal(model(x), before)


def test_a_model_made_in_inference_mode_has_no_counters_and_runs() -> None:
    with torch.inference_mode():
        config = ViTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8)
        model = ViT(config).to(runtime.DEVICE).eval()
        assert not fused.Fused(model).refold()


def test_it_pays_for_few_rows() -> None:
    config = ViTConfig()
    assert fused.pays(config, 1) and fused.pays(config, 8) and not fused.pays(config, 32) and not fused.pays(config, 256)
