"""The ViT in somebody else's program: what can be done to a torch.nn.Module and has to leave its results as they are.

The types, torch.save and Hugging Face's files are in test_parity.py; each operator under torch.compile and torch.export in
test_drop_in.py; CUDA graphs in test_graphed.py.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from vitcourse import runtime
from vitcourse.classify import DEFAULT_MODEL
from vitcourse.vit import ViT, ViTConfig

# Inductor takes minutes in the interpreter, where it has nothing to fuse.
BACKENDS = ["aot_eager"] + (["inductor"] if runtime.DEVICE.type == "cuda" else [])


@pytest.fixture
def model() -> ViT:
    return ViT.from_pretrained(DEFAULT_MODEL)


def pixels(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(runtime.DEVICE)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# A module like any other


@torch.inference_mode()
def test_to_float16_and_back(model: ViT) -> None:
    plain = model(pixels())
    assert model.to(torch.float16) is model
    half = model(pixels().half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), plain, rtol=0, atol=20 * torch.finfo(torch.float16).eps * plain.abs().max().item())
    back = model.float()(pixels())
    assert back.dtype == torch.float32 and not torch.equal(back, plain), "the weights keep the rounding"
    torch.testing.assert_close(back, plain, rtol=0, atol=5 * torch.finfo(torch.float16).eps * plain.abs().max().item())


@torch.inference_mode()
def test_train_and_eval_reach_every_module(model: ViT) -> None:
    plain = model(pixels())
    for mode in (True, False):
        model.train(mode)
        assert {module.training for module in model.modules()} == {mode}
        assert torch.equal(model(pixels()), plain), "this model has no dropout, so the mode changes nothing"


@torch.inference_mode()
def test_a_state_dict_fits_a_fresh_model(model: ViT) -> None:
    fresh = ViT(ViTConfig(**vars(model.config))).to(runtime.DEVICE).eval()
    assert not torch.equal(fresh(pixels()), model(pixels()))
    assert fresh.load_state_dict(model.state_dict()) == ([], [])
    assert torch.equal(fresh(pixels()), model(pixels()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("blocks.1.norm2.bias"), 'Missing key(s) in state_dict: "blocks.1.norm2.bias"'),
        (lambda state: state.update(head=torch.zeros(3)), 'Unexpected key(s) in state_dict: "head"'),
        (lambda state: state.update({"norm.weight": torch.zeros(3)}), "size mismatch for norm.weight"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(model: ViT, change, told: str) -> None:
    state = model.state_dict()
    change(state)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    assert told in str(caught.value)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
@torch.no_grad()
def test_a_copy_stands_by_itself(model: ViT, how) -> None:
    plain = model(pixels())
    copied = how(model)
    assert copied.config == model.config and copied.training == model.training
    assert torch.equal(copied(pixels()), plain)
    for parameter in copied.parameters():
        parameter.zero_()
    assert torch.equal(model(pixels()), plain)


def test_inside_sequential(model: ViT) -> None:
    scaled = nn.Sequential(nn.Hardtanh(), model, nn.Softmax(-1))
    shares = scaled(pixels())
    assert torch.equal(shares, model(pixels().clamp(-1, 1)).softmax(-1))
    assert list(scaled.state_dict()) == [f"1.{name}" for name in model.state_dict()]
    shares[:, 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


class Features(nn.Module):
    """A model of one's own around the encoder, frozen but for its head."""

    def __init__(self, encoder: ViT):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Linear(encoder.config.hidden_size, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder.forward_features(images).mean(1))


def test_inside_a_module_of_ones_own(model: ViT) -> None:
    outer = Features(model).to(runtime.DEVICE)
    outer(pixels()).sum().backward()
    assert {name for name, parameter in outer.named_parameters() if parameter.grad is not None} == {"head.weight", "head.bias"}


@torch.no_grad()
def test_hooks_and_functional_call(model: ViT) -> None:
    seen = []
    handle = model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    plain = model(pixels())
    handle.remove()
    assert seen == [(2, 17, 64)]
    doubled = {name: 2 * tensor for name, tensor in model.classifier.named_parameters(prefix="classifier")}
    torch.testing.assert_close(torch.func.functional_call(model, doubled, (pixels(),)), 2 * plain)


# torch.compile


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph_that_learns(model: ViT, backend: str, fresh_dynamo) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results, gradients = [], []
    for function in (model, compiled):
        model.zero_grad()
        results.append(function(pixels()))
        results[-1].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(results[1], results[0])
    for found, expected in zip(*reversed(gradients)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_one_compiled_graph_serves_every_batch_from_two_up(model: ViT, backend: str, fresh_dynamo) -> None:
    """PyTorch compiles once more for a batch of 1, as for any size of 1.

    The first batch here is 4 on purpose. With dynamic=True PyTorch takes two sizes that are equal in the first call for
    one and the same number, so that after a first batch of 3, the number of channels, it would compile a second time.
    """
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    compiled(pixels(4))
    first = len(graphs)
    for batch in (2, 3):
        torch.testing.assert_close(compiled(pixels(batch)), model(pixels(batch)))
    assert len(graphs) == first, "compiled again for another batch"
    torch.testing.assert_close(compiled(pixels(1)), model(pixels(1)))


# torch.export


@torch.no_grad()
def test_exported_for_one_batch_size(model: ViT) -> None:
    program = torch.export.export(model, (pixels(),))
    called = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("vitcourse.")}
    assert called == {f"vitcourse.{name}.default" for name in ("patch_embed", "layer_norm", "linear", "attention")}
    assert set(program.state_dict) == set(model.state_dict()), "under the model's own names"
    module = program.module()
    assert torch.equal(module(pixels(seed=1)), model(pixels(seed=1)))
    with pytest.raises((AssertionError, RuntimeError), match="2"):
        module(pixels(3))


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_exported_for_every_batch_size_and_saved(model: ViT, strict: bool, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (pixels(4),), dynamic_shapes={"pixel_values": {0: batch}}, strict=strict)
    torch.export.save(program, tmp_path / "vit.pt2")
    model_in_a_file = torch.export.load(tmp_path / "vit.pt2").module()
    for size in (1, 5, 0):
        expected = model(pixels(size))
        for module in (program.module(), model_in_a_file):
            assert torch.equal(module(pixels(size)), expected)


@torch.inference_mode()
def test_exported_in_half_precision_and_inference_mode(model: ViT) -> None:
    model.half()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (pixels().half(),)), buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(pixels().half()), model(pixels().half()))


def test_an_exported_model_does_not_learn(model: ViT) -> None:
    """torch.export keeps operators and drops the torch.autograd.Functions around them, where this package's gradients are.

    Its result says that it requires a gradient, and PyTorch warns at `backward`, but no parameter gets one: export to run a
    model, and train the model itself.
    """
    module = torch.export.export(model, (pixels(),)).module()
    result = module(pixels())
    assert torch.equal(result, model(pixels()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result.sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is not None] == []


def test_an_exported_model_has_no_modes(model: ViT) -> None:
    """PyTorch refuses `eval()` and `train()` on what `program.module()` returns: it runs as the model was when exported."""
    module = torch.export.export(model, (pixels(),)).module()
    for change in (module.eval, module.train):
        with pytest.raises(NotImplementedError):
            change()
