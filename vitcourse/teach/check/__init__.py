"""The checks of the exercises: each takes a reader's function and says what is right or wrong with it.

    check.add(my_add)
    Wrong. Smallest failing case: size 1 in float32.
    Program (0, 0, 0) of my_kernel loads outside of x_ptr: element 1, and it has 1.
    The line: `x = tl.load(x_ptr + offsets)`
    Hint: This load has no mask, and the last block reaches past the end: add mask=offsets < size.

`judge` is how they judge; `lesson_NN` has the checks of a lesson: cases, typical mistakes with their hints, and rules.
"""

from .judge import Verdict
from .lesson_00 import floor_us, linear_cost, tiles
from .lesson_01 import add, add3, axpy, persistent_add
from .lesson_02 import add_positions, add_row, add_strided, sum_rows
from .lesson_03 import bias_gelu, gelu_tanh, silu, silu_backward
from .lesson_04 import log_softmax, merge, softmax, softmax_backward, wide_softmax
from .lesson_05 import add_layer_norm, layer_norm, rms_norm, weight_gradients
from .lesson_06 import matmul, matmul_traffic, persistent_matmul, tile_of
from .lesson_07 import activation_gradient, epilogue_bytes, linear, split_linear
from .lesson_08 import attention_traffic, bmm, head_offset, plain_attention
from .lesson_09 import attention, merge_attention, query_gradient
from .lesson_10 import image_gradient, patch_embed, patches, pixel_offset
from .lesson_11 import cross_entropy, cross_entropy_gradient, dropout
from .lesson_12 import block, block_traffic, parallel_block
from .lesson_13 import flops, parameters, resize_positions, vit
from .lesson_14 import load_by_hand, our_name, read_safetensors, to_pixel_values
from .lesson_15 import faults, first_divergence, layer_outputs, relative_error
from .lesson_16 import busy_and_idle, fold, graphed, time_model

__all__ = [
    "Verdict",
    "activation_gradient",
    "add",
    "add3",
    "add_layer_norm",
    "add_positions",
    "add_row",
    "add_strided",
    "attention",
    "attention_traffic",
    "axpy",
    "bias_gelu",
    "block",
    "block_traffic",
    "bmm",
    "busy_and_idle",
    "cross_entropy",
    "cross_entropy_gradient",
    "dropout",
    "epilogue_bytes",
    "faults",
    "first_divergence",
    "floor_us",
    "flops",
    "fold",
    "gelu_tanh",
    "graphed",
    "head_offset",
    "image_gradient",
    "layer_norm",
    "layer_outputs",
    "linear",
    "linear_cost",
    "load_by_hand",
    "log_softmax",
    "matmul",
    "matmul_traffic",
    "merge",
    "merge_attention",
    "our_name",
    "parallel_block",
    "parameters",
    "patch_embed",
    "patches",
    "persistent_add",
    "persistent_matmul",
    "pixel_offset",
    "plain_attention",
    "query_gradient",
    "read_safetensors",
    "relative_error",
    "resize_positions",
    "rms_norm",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "split_linear",
    "sum_rows",
    "tile_of",
    "tiles",
    "time_model",
    "to_pixel_values",
    "vit",
    "weight_gradients",
    "wide_softmax",
]
