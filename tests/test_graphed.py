"""`ViT.graphed`: which calls replay a graph and which run the model, and that both give what the model gives.

Where there is no GPU, `simulated.Recording` takes the place of CUDA graphs. It shows what is copied where, and when a graph
is asked. That the GPU can record this model, and that two graphs may share their memory, only a GPU shows.
"""

import contextlib
import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from vitcourse import fused, runtime, vit
from vitcourse.classify import DEFAULT_MODEL
from vitcourse.teach import simulated
from vitcourse.vit import ViT

ON_GPU = runtime.DEVICE.type == "cuda"


class StandIn(simulated.Recording):
    """For `torch.cuda.CUDAGraph`. Its memory is the tensors that it saw while it was recorded."""

    pools: list[object]  # that were asked for, by all graphs of a test

    def __init__(self):
        super().__init__()
        self._pool = object()

    @classmethod
    def record(cls, graph: "StandIn", pool: object | None = None) -> "StandIn":
        cls.pools.append(pool)
        graph._pool = pool or graph._pool
        return graph

    def pool(self) -> object:
        return self._pool


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """CUDA graphs on a GPU, the stand-in without one."""
    monkeypatch.setattr(StandIn, "pools", [], raising=False)
    if not ON_GPU:
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(vit, "runtime", SimpleNamespace(**(vars(runtime) | {"DEVICE": torch.device("cuda")})))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
        monkeypatch.setattr(torch.cuda, "graph", StandIn.record)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    return StandIn


class Counted(ViT):
    """A ViT that counts its own forward passes: a replayed graph is none."""

    passes = 0

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().forward(pixel_values)


def same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal up to rounding: what a graph runs for so few rows is `fused.Fused`."""
    floor = 32 * torch.finfo(torch.float32).eps * expected.abs().max()
    return result.shape == expected.shape and bool((result - expected).abs().max() <= floor)


@pytest.fixture
def model() -> Counted:
    loaded = ViT.from_pretrained(DEFAULT_MODEL)
    loaded.__class__ = Counted
    return loaded


def pixels(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(runtime.DEVICE, dtype)


def passes(model: Counted, function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """What `function` returns, and how often it ran the model."""
    before = model.passes
    return function(), model.passes - before


@pytest.mark.skipif(ON_GPU, reason="of a process with no CUDA GPU")
def test_without_a_gpu_it_is_the_model(model: Counted) -> None:
    fast = model.graphed(pixels(2))
    assert model.passes == 0, "nothing is recorded"
    for batch in (2, 3):
        result, ran = passes(model, lambda batch=batch: fast(pixel_values=pixels(batch)))
        assert ran == 1 and result.requires_grad and torch.equal(result, model(pixels(batch)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_results_of_two_shapes_are_the_models_and_stay(model: Counted, graphs, mode) -> None:
    fast = model.graphed(torch.zeros_like(pixels(2)), torch.zeros_like(pixels(1)))
    inputs = [pixels(2, seed=1), pixels(1, seed=2), pixels(2, seed=3), pixels(1, seed=4)]
    with mode():
        found, ran = passes(model, lambda: [fast(pixel_values=x) for x in inputs])
        assert ran == 0, "a graph is replayed"
        for x, result in zip(inputs, found):
            assert same(result, model(x)) and not result.requires_grad
            assert result.is_inference() == (mode is torch.inference_mode)


def test_a_graph_made_in_inference_mode_serves_outside_of_it(model: Counted, graphs) -> None:
    with torch.inference_mode():
        x = pixels(2)
        fast = model.graphed(x)
    with torch.no_grad():
        result, ran = passes(model, lambda: fast(pixels(2, seed=1)))
        assert ran == 0 and same(result, model(pixels(2, seed=1)))
        assert same(fast(x), model(x)), "an input of inference mode"


@pytest.mark.skipif(ON_GPU, reason="asks the stand-in which pool it was given")
def test_the_graphs_share_one_pool(model: Counted, graphs) -> None:
    model.graphed(pixels(1), pixels(2), pixels(3))
    first, second, third = graphs.pools
    assert first is None and second is not None and second is third


@torch.inference_mode()
def test_any_other_input_runs_the_model(model: Counted, graphs) -> None:
    fast = model.graphed(pixels(2))
    for batch in (1, 3, 0):
        result, ran = passes(model, lambda batch=batch: fast(pixels(batch)))
        assert ran == 1 and torch.equal(result, model(pixels(batch)))
    with pytest.raises(TypeError, match="one type for all"):
        fast(pixels(2, dtype=torch.float16))
    with pytest.raises(ValueError, match="this model takes"):
        fast(pixels(2)[:, :1])
    if ON_GPU:
        with pytest.raises(ValueError, match="cpu"):
            fast(pixels(2).cpu())
    assert passes(model, lambda: fast(pixels(2)))[1] == 0, "and the graph is still there"


def test_an_example_that_the_model_refuses_is_refused(model: Counted, graphs) -> None:
    with pytest.raises(ValueError, match="this model takes"):
        model.graphed(pixels(2), pixels(2)[:, :1])


def test_where_gradients_are_recorded_the_model_runs(model: Counted, graphs) -> None:
    fast = model.graphed(pixels(2))
    result, ran = passes(model, lambda: fast(pixels(2)))
    assert ran == 1
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_in_training_mode_the_model_runs(model: Counted, graphs) -> None:
    fast = model.graphed(pixels(2))
    model.train()
    assert passes(model, lambda: fast(pixels(2)))[1] == 1
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        model.graphed(pixels(2))
    model.eval()
    assert passes(model, lambda: fast(pixels(2)))[1] == 0


@pytest.mark.skipif(not ON_GPU, reason="CUDA's autocast needs a GPU")
@torch.inference_mode()
def test_under_autocast_the_model_runs(model: Counted) -> None:
    fast = model.graphed(pixels(2))
    with torch.autocast("cuda", dtype=torch.float16):
        result, ran = passes(model, lambda: fast(pixels(2)))
        assert ran == 1 and result.dtype == torch.float16
        late = model.graphed(pixels(2))
    result, ran = passes(model, lambda: late(pixels(2)))
    assert ran == 0 and same(result, model(pixels(2))), "and what was recorded under it is not"


@torch.inference_mode()
def test_weights_written_in_place_are_seen(model: Counted, graphs) -> None:
    fast = model.graphed(pixels(2))
    before = fast(pixels(2))
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    model.load_state_dict(other.state_dict())
    result, ran = passes(model, lambda: fast(pixels(2)))
    assert ran == 0 and same(result, other(pixels(2))) and not torch.equal(result, before)


@pytest.mark.parametrize("how", ["to", "assign"])
@torch.no_grad()
def test_weights_that_lie_elsewhere_run_the_model(model: Counted, graphs, how: str) -> None:
    fast = model.graphed(pixels(2))
    before = fast(pixels(2))
    if how == "to":
        model.to(torch.float16).to(torch.float32)
    else:
        model.load_state_dict({name: tensor / 2 for name, tensor in model.state_dict().items()}, assign=True)
    result, ran = passes(model, lambda: fast(pixels(2)))
    assert ran == 1 and torch.equal(result, model(pixels(2))) and not torch.equal(result, before)


@torch.inference_mode()
def test_where_folding_does_not_pay_nothing_is_folded(model: Counted, graphs, monkeypatch) -> None:
    monkeypatch.setattr(fused, "pays", lambda config, batch: False)
    monkeypatch.setattr(fused, "Fused", None)
    fast = model.graphed(pixels(2))
    assert torch.equal(fast(pixels(2, seed=1)), model(pixels(2, seed=1)))
