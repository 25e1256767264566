"""How wrong a kernel may be: never much more than PyTorch is, in the same type and on the same device.

A fixed tolerance is too loose for one shape and too tight for the next. So every result here is held against the same
operation in float64 on the same inputs, and its largest error may be at most twice the largest error of PyTorch's own
function in the result's type (the rule of flash-attention's tests), plus a floor.

The floor is there because PyTorch may be lucky: on a single element it is often exact. It is

    eps(type) * largest value that is rounded to the result's type
    + 4 * eps(float32) * largest value that float32 arithmetic rounds on the way.

The first term is two correct roundings (eps / 2 each) of the largest result. The second allows a few float32 roundings of
the largest intermediate value, because kernels accumulate in float32 whatever the type. Without further word both values are
the largest result. An operation whose result can be much smaller than what it is made of (a sum that cancels) has to say
how large that was: no float32 arithmetic can do better than a rounding of it.
"""

import torch


def largest(tensor: torch.Tensor) -> float:
    """The largest finite magnitude in `tensor`; 0 where there is none."""
    finite = tensor[torch.isfinite(tensor)]
    return finite.abs().max().item() if finite.numel() else 0.0


def assert_close_to_float64(
    result: torch.Tensor,
    reference: torch.Tensor,
    peer: torch.Tensor,
    *,
    rounded: float | None = None,
    intermediate: float | None = None,
    what: str = "result",
) -> None:
    """Fail unless `result` is as close to `reference` as this module's docstring asks.

    reference: the float64 result for the same inputs. peer: PyTorch's result in the type that `result` has to have.
    rounded, intermediate: the two magnitudes of the floor, where they are not the reference's own.

    Shape, type and device have to be the peer's. NaN and infinities have to be where the reference has them (an element
    too large for the type counts as infinite), and nowhere else.
    """
    assert reference.dtype == torch.float64, f"{what}: the reference is {reference.dtype}"
    assert result.shape == reference.shape, f"{what}: shape {tuple(result.shape)}; the reference has {tuple(reference.shape)}"
    assert result.dtype == peer.dtype, f"{what}: type {result.dtype}; PyTorch returns {peer.dtype}"
    assert result.device == peer.device, f'{what}: on "{result.device}"; PyTorch returns it on "{peer.device}"'
    if result.numel() == 0:
        return

    expected = reference.to(result.dtype)
    finite = torch.isfinite(expected)
    missing_nan = torch.isnan(expected) & ~torch.isnan(result)
    assert not missing_nan.any(), f"{what}: {_count(missing_nan)} not NaN, where the reference is NaN"
    wrong = ~torch.isfinite(result) & finite
    assert not wrong.any(), f"{what}: {_count(wrong)} NaN or infinite, where the reference is finite"
    wrong = torch.isinf(expected) & (result != expected)
    assert not wrong.any(), f"{what}: {_count(wrong)} not the infinity that the reference is"
    if not finite.any():
        return

    error = torch.where(finite, (result.double() - reference).abs(), 0.0)
    # PyTorch may overflow on the way where the kernel does not; an infinite error of its own allows us nothing.
    peer_error = (peer.double() - reference).abs()
    peer_error = torch.where(finite & torch.isfinite(peer_error), peer_error, 0.0).max().item()
    magnitude = largest(reference)
    floor = torch.finfo(result.dtype).eps * max(magnitude, rounded or 0.0)
    floor += 4 * torch.finfo(torch.float32).eps * max(magnitude, intermediate or 0.0)
    worst = error.max().item()
    assert worst <= 2 * peer_error + floor, (
        f"{what}: off by {worst:.3g} at {_index(error)} of {tuple(result.shape)}; "
        f"accepted: {2 * peer_error + floor:.3g}, twice PyTorch's own {peer_error:.3g} and a floor of {floor:.3g}"
    )


def _count(wrong: torch.Tensor) -> str:
    return f"{int(wrong.sum())} of {wrong.numel()} elements (the first at {_index(wrong)})"


def _index(values: torch.Tensor) -> tuple[int, ...]:
    """Where the largest value of `values` is."""
    place = int(values.reshape(-1).to(torch.float64).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(place), values.shape))
