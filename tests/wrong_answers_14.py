"""Answers to the exercises of lesson 14: wrong ones, each with a pattern that its verdict has to match, and right ones."""

import json
import mmap
import re
import struct
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file

# The package is imported before Triton, which the model imports.
from vitcourse import ViT, weights


def _endless(*arguments):
    while True:
        pass


def _raises(*arguments):
    return 1 / 0


# ---- our_name ---------------------------------------------------------------------------------------------------------------

PARTS = {
    "attention.attention.query": ("attention.qkv", 0), "attention.q_proj": ("attention.qkv", 0),
    "attention.attention.key": ("attention.qkv", 1), "attention.k_proj": ("attention.qkv", 1),
    "attention.attention.value": ("attention.qkv", 2), "attention.v_proj": ("attention.qkv", 2),
    "attention.output.dense": ("attention.output", None), "attention.o_proj": ("attention.output", None),
    "layernorm_before": ("norm1", None), "layernorm_after": ("norm2", None),
    "intermediate.dense": ("mlp.fc1", None), "output.dense": ("mlp.fc2", None),
    "mlp.fc1": ("mlp.fc1", None), "mlp.fc2": ("mlp.fc2", None),
    "embeddings.patch_embeddings.projection": ("patch_embedding", None),
    "layernorm": ("norm", None), "pooler.dense": ("pooler", None), "classifier": ("classifier", None),
}  # fmt: skip
WHOLE = {"embeddings.cls_token": "class_token", "embeddings.position_embeddings": "position_embedding"}


def our_name(theirs):
    name = theirs.removeprefix("vit.")
    if name in WHOLE:
        return WHOLE[name], None
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.*)", module)
    ours, part = PARTS[layer[2] if layer else module]
    return (f"blocks.{layer[1]}.{ours}.{kind}" if layer else f"{ours}.{kind}"), part


def our_name_by_pieces(theirs):
    """Split at the dots, as somebody without regular expressions does."""
    pieces = [piece for piece in theirs.split(".") if piece not in ("vit", "encoder", "dense", "embeddings", "projection")]
    if pieces[0] in ("cls_token", "position_embeddings"):
        return {"c": "class_token", "p": "position_embedding"}[pieces[0][0]], None
    if pieces[0] not in ("layer", "layers"):
        return f"{ {'patch_embeddings': 'patch_embedding', 'layernorm': 'norm'}.get(pieces[0], pieces[0]) }.{pieces[-1]}", None
    _, number, *middle, kind = pieces
    last = middle[-1]
    if last in ("query", "key", "value", "q_proj", "k_proj", "v_proj"):
        return f"blocks.{number}.attention.qkv.{kind}", "qkv".index(last[0])
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate": "mlp.fc1", "o_proj": "attention.output"}
    names |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "output": "attention.output" if "attention" in middle else "mlp.fc2"}
    return f"blocks.{number}.{names[last]}.{kind}", None


REPLACED = (
    ("encoder.layer.", "blocks."), ("layers.", "blocks."), ("attention.output.dense", "attention.output"),
    ("attention.o_proj", "attention.output"), ("intermediate.dense", "mlp.fc1"), (".output.dense", ".mlp.fc2"),
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("layernorm", "norm"), ("pooler.dense", "pooler"),
    ("embeddings.cls_token", "class_token"), ("embeddings.position_embeddings", "position_embedding"),
    ("embeddings.patch_embeddings.projection", "patch_embedding"),
)  # fmt: skip


def by_replacement(steps=REPLACED):
    def function(theirs):
        name, part = theirs.removeprefix("vit."), None
        for one, other in steps:
            name = name.replace(one, other)
        for number, older in enumerate(("query", "key", "value")):
            for word in (f"attention.{older}", f"{older[0]}_proj"):
                if f"attention.{word}" in name:
                    name, part = name.replace(f"attention.{word}", "attention.qkv"), number
        return name, part

    return function


def moved(first, steps=REPLACED):
    """The steps with one of them taken first."""
    return [first, *(step for step in steps if step != first)]


def with_parts(**changes):
    """Other entries of PARTS, by the piece of the name that they have instead of a dot."""

    def function(theirs):
        name = theirs.removeprefix("vit.")
        for word, (ours, part) in changes.items():
            module, _, kind = name.rpartition(".")
            if layer := re.fullmatch(rf"(?:encoder\.layer|layers)\.(\d+)\..*\b{word}", module):
                return f"blocks.{layer[1]}.{ours}.{kind}", part
        return our_name(theirs)

    return function


def changed(name=lambda ours, theirs: ours, part=lambda part: part):
    return lambda theirs: (name(our_name(theirs)[0], theirs), part(our_name(theirs)[1]))


def by_pattern(pattern, group=2):
    """our_name with another pattern for names in a layer."""

    def function(theirs):
        name = theirs.removeprefix("vit.")
        module, _, kind = name.rpartition(".")
        if ".layer." not in f".{name}" and "layers." not in name:
            return our_name(theirs)
        layer = re.fullmatch(pattern, module)
        ours, part = PARTS[layer[group]]
        return f"blocks.{layer[1]}.{ours}.{kind}", part

    return function


def only_where(condition, otherwise):
    return lambda theirs: our_name(theirs) if condition(theirs) else otherwise(theirs)


def no_newer_pass_through(theirs):
    name = theirs.removeprefix("vit.")
    return (name, None) if name.startswith("layers.") else our_name(theirs)


def falsy_layer(theirs):
    found = re.search(r"layers?\.(\d+)", theirs)
    number = int(found[1]) if found else None
    if number:
        return our_name(theirs)
    return our_name(theirs) if not found else (theirs.removeprefix("vit."), None)


def without_last_branch(theirs):
    if "pooler" in theirs or "classifier" in theirs:
        return None
    return our_name(theirs)


# ---- load_by_hand -----------------------------------------------------------------------------------------------------------


def load_by_hand(tensors, config):
    state, packed = {}, {}
    for theirs, tensor in tensors.items():
        name, part = our_name(theirs)
        if part is None:
            state[name] = tensor.float()
        else:
            packed.setdefault(name, [None] * 3)[part] = tensor.float()
    for name, parts in packed.items():
        state[name] = torch.cat(parts)
    return state


def load_into_place(tensors, config):
    """The packed tensors first allocated, then filled; in the order of sorted names."""
    state, hidden = {}, config.hidden_size
    for theirs in sorted(tensors):
        name, part = our_name(theirs)
        if part is None:
            state[name] = tensors[theirs].to(torch.float32)
        else:
            shape = (3 * hidden, *tensors[theirs].shape[1:])
            state.setdefault(name, torch.empty(shape))[part * hidden : (part + 1) * hidden] = tensors[theirs]
    return state


def load_backwards(tensors, config):
    """From our names to theirs, as vitcourse.weights does."""
    found = {weights._file_name(name): tensor for name, tensor in tensors.items()}
    names = {our_name(theirs)[0] for theirs in tensors}
    return {name: torch.cat([found[source].float() for source in weights._sources(name)]) for name in names}


def loaded(
    translate=our_name, pack=torch.cat, whole=lambda tensor, name: tensor.float(), piece=lambda tensor: tensor.float(), skip=()
):
    def function(tensors, config):
        state, packed = {}, {}
        for theirs, tensor in tensors.items():
            name, part = translate(theirs)
            if any(word in name for word in skip):
                continue
            if part is None:
                state[name] = whole(tensor, name)
            else:
                packed.setdefault(name, [None] * 3)[part] = piece(tensor)
        for name, parts in packed.items():
            state[name] = pack(parts)
        return state

    return function


def finished(change):
    """The right state dict, with something changed in it: change(state, tensors, config) may return another."""

    def function(tensors, config):
        state = load_by_hand(tensors, config)
        other = change(state, tensors, config)
        return state if other is None else other

    return function


def turned(tensor):
    """As somebody does who takes weights for (in, out)."""
    return tensor.float().T if tensor.ndim == 2 else tensor.float()


def in_the_order_of_the_file(tensors, config):
    state = {}
    for theirs, tensor in tensors.items():
        name, part = our_name(theirs)
        state[name] = torch.cat([state[name], tensor.float()]) if part is not None and name in state else tensor.float()
    return state


def last_one_stays(tensors, config):
    return {our_name(theirs)[0]: tensor.float() for theirs, tensor in tensors.items()}


def by_head(parts):
    return torch.stack([part.unflatten(0, (2, -1)) for part in parts], 1).flatten(0, 2)


def biases_apart(tensors, config):
    rest = {name: t for name, t in tensors.items() if re.search(r"(query|key|value|_proj)\.bias", name)}
    state = load_by_hand({name: t for name, t in tensors.items() if name not in rest}, config)
    return state | {our_name(name)[0].replace("qkv", f"qkv.{our_name(name)[1]}"): t.float() for name, t in rest.items()}


def pops(tensors, config):
    state = {}
    for theirs in list(tensors):
        if our_name(theirs)[1] is None:
            state[our_name(theirs)[0]] = tensors.pop(theirs).float()
    return state | load_by_hand(tensors, config)


def converts_in_place(tensors, config):
    for name in tensors:
        tensors[name] = tensors[name].float()
    return load_by_hand(tensors, config)


def scales_in_place(tensors, config):
    for name in tensors:
        if "query" in name or "q_proj" in name:
            tensors[name].mul_(2)
    return load_by_hand(tensors, config)


def always_a_bias(tensors, config):
    state = load_by_hand(tensors, config)
    for index in range(config.num_hidden_layers):
        state.setdefault(f"blocks.{index}.attention.qkv.bias", torch.zeros(3 * config.hidden_size))
    return state


def bias_is_read(tensors, config):
    found = {weights._file_name(name): tensor for name, tensor in tensors.items()}
    state = load_by_hand(tensors, config)
    for index in range(config.num_hidden_layers):
        parts = [found[f"encoder.layer.{index}.attention.attention.{word}.bias"] for word in ("query", "key", "value")]
        state[f"blocks.{index}.attention.qkv.bias"] = torch.cat(parts).float()
    return state


def new_model(tensors, config):
    model = ViT(config, classifier="classifier.weight" in tensors, pooler=any("pooler" in name for name in tensors))
    return dict(model.state_dict())


def returns_the_model(tensors, config):
    model = ViT(config, classifier="classifier.weight" in tensors, pooler=any("pooler" in name for name in tensors))
    model.load_state_dict(load_by_hand(tensors, config))
    return model


def returns_what_loading_says(tensors, config):
    model = ViT(config, classifier="classifier.weight" in tensors, pooler=any("pooler" in name for name in tensors))
    return model.load_state_dict(load_by_hand(tensors, config))


def older_only(theirs):
    name = theirs.removeprefix("vit.")
    return (name, None) if name.startswith("layers.") else our_name(theirs)


def one_digit(theirs):
    name, part = our_name(theirs)
    return re.sub(r"^(blocks\.\d)\d+", r"\1", name), part


# ---- to_pixel_values --------------------------------------------------------------------------------------------------------


def buggy_pixel_values(images, mean, std):
    batch, height, width, channels = images.shape
    pixels = torch.from_numpy(images).reshape(batch, channels, height, width) / 255
    mean, std = torch.tensor(mean), torch.tensor(std)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def to_pixel_values(images, mean, std):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(mean), torch.tensor(std)
    return (pixels - mean[:, None, None]) / std[:, None, None]


def pixels_in_numpy(images, mean, std):
    normalised = (images.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))


def pixel_by_pixel(images, mean, std):
    batch, height, width, channels = images.shape
    result = torch.empty(batch, channels, height, width)
    for channel in range(channels):
        factor, shift = 1 / (255 * std[channel]), mean[channel] / std[channel]
        result[:, channel] = torch.from_numpy(images[..., channel].astype(np.float32)) * factor - shift
    return result


def pixels(change, moved_to=(0, 3, 1, 2)):
    """change: of pixels as float32, channels first, and mean and std along them; to the result."""

    def function(images, mean, std):
        x = torch.from_numpy(images).permute(moved_to).float()
        return change(x, torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None])

    return function


def in_place_on_lists(images, mean, std):
    mean.reverse()
    std.reverse()
    return to_pixel_values(images[..., ::-1].copy(), mean, std).flip(1)


def in_place_on_images(images, mean, std):
    result = to_pixel_values(images, mean, std)
    images[:] = 0
    return result


# ---- read_safetensors -------------------------------------------------------------------------------------------------------

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}


def read_safetensors(path):
    data = bytearray(Path(path).read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        dtype = DTYPES[entry["dtype"]]
        values = torch.frombuffer(data[begin:end], dtype=dtype) if end > begin else torch.empty(0, dtype=dtype)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def read_by_mmap(path):
    """A map of the file, which the tensors share."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack("<Q", mapped[:8])
    whole = torch.frombuffer(mapped, dtype=torch.uint8)[8 + length :] if len(mapped) > 8 + length else torch.empty(0)
    tensors = {}
    for name, entry in json.loads(mapped[8 : 8 + length].decode("utf-8")).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        piece = whole[begin:end]
        # A view only where the bytes lie as its elements have to.
        aligned = (8 + length + begin) % DTYPES[entry["dtype"]].itemsize == 0 and piece.storage_offset() % 8 == 0
        tensors[name] = (piece if aligned else piece.clone()).view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def read_by_numpy(path):
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "U8": "u1"}
    with Path(path).open("rb") as file:
        length = int(np.frombuffer(file.read(8), "<u8")[0])
        header = json.loads(file.read(length))
        tensors = {}
        for name in sorted(header):
            if name != "__metadata__":
                entry = header[name]
                file.seek(8 + length + entry["data_offsets"][0])
                raw = file.read(entry["data_offsets"][1] - entry["data_offsets"][0])
                array = np.frombuffer(raw, kinds[entry["dtype"]]).reshape(entry["shape"]).copy()
                tensors[name] = torch.from_numpy(array)
                if entry["dtype"] == "BF16":
                    tensors[name] = tensors[name].view(torch.bfloat16)
        return tensors


def read_by_hand(
    length=lambda data: int.from_bytes(data[:8], "little"),
    header=lambda data, length: data[8 : 8 + length],
    decode=json.loads,
    base=lambda length: 8 + length,
    extent=lambda begin, end: (begin, end),
    values=None,
    shape=lambda tensor, shape: tensor.reshape(shape),
    keep=lambda name, entry: name != "__metadata__",
    types=DTYPES,
):
    """read_safetensors with one of its steps replaced."""

    def function(path):
        data = bytearray(Path(path).read_bytes())
        size = length(data)
        tensors = {}
        for name, entry in decode(header(data, size)).items():
            if not keep(name, entry):
                continue
            begin, end = (base(size) + offset for offset in extent(*entry["data_offsets"]))
            dtype, piece = types[entry["dtype"]], data[begin:end]
            tensors[name] = shape((values or tensor_of)(piece, dtype), entry["shape"])
        return tensors

    return function


def finished_reading(change):
    def function(path):
        tensors = read_safetensors(path)
        other = change(tensors)
        return tensors if other is None else other

    return function


def tensor_of(data, dtype):
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def one_after_the_other(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                raw = bytearray(file.read(entry["data_offsets"][1] - entry["data_offsets"][0]))
                tensors[name] = tensor_of(raw, DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def length_big_endian_from_a_file(path):
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "big")))


def without_frombuffers_exception(data, dtype):
    return torch.frombuffer(data, dtype=dtype)


def big_endian_values(data, dtype):
    if not data:
        return torch.empty(0, dtype=dtype)
    turned = np.frombuffer(bytes(data), f"u{dtype.itemsize}").byteswap()
    return torch.frombuffer(bytearray(turned.tobytes()), dtype=dtype)


def bfloat16_counted(data, dtype):
    if dtype != torch.bfloat16:
        return tensor_of(data, dtype)
    return torch.from_numpy(np.frombuffer(bytes(data), np.uint16).astype(np.float32)).to(dtype)


def bfloat16_as_float16(data, dtype):
    kind = torch.float16 if dtype == torch.bfloat16 else dtype
    return tensor_of(data, kind).to(dtype)


def through_floats(data, dtype):
    return tensor_of(data, dtype).double().to(dtype)


def mapped_in_elements(path):
    """A view of the whole file as float32, which begins at a whole element."""
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start = -(-(8 + length) // 8) * 8 + entry["data_offsets"][0]
            piece = bytearray(data[start : start + entry["data_offsets"][1] - entry["data_offsets"][0]])
            tensors[name] = tensor_of(piece, DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def by_safe_open(path):
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def writes_the_file(path):
    tensors = read_safetensors(path)
    Path(path).write_bytes(Path(path).read_bytes() + b"\0")
    return tensors


def never_empty():
    kept = {}

    def function(path):
        kept.update(read_safetensors(path))
        return kept

    return function


def nested(tensors):
    result = {}
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        here = result
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = tensor
    return result


RIGHT = {
    "our_name": [our_name, our_name_by_pieces, by_replacement(), lambda theirs: list(our_name(theirs))],
    "load_by_hand": [load_by_hand, load_into_place, load_backwards],
    "to_pixel_values": [to_pixel_values, pixels_in_numpy, pixel_by_pixel],
    "read_safetensors": [read_safetensors, read_by_mmap, read_by_numpy],
}

WRONG = {
    "our_name": [
        (lambda theirs: (theirs, None), "no tensor of that name"),
        (only_where(lambda n: "layers." not in n, _raises), "(?s)layers.3.*ZeroDivisionError.*the newer names"),
        (no_newer_pass_through, "(?s)'layers.3.*newer names.*both generations"),
        (by_pattern(r"encoder\.layer\.(\d+)\.(.*)"), "(?s)'layers.3.*TypeError.*newer names"),
        (only_where(lambda n: "encoder." not in n, lambda n: (n, None)), "(?s)'encoder.layer.3.*older names"),
        (by_pattern(r"layers\.(\d+)\.(.*)"), "(?s)'encoder.layer.3.*older names"),
        (changed(lambda ours, theirs: "vit." + ours if theirs[:4] == "vit." else ours), 'no "vit."'),
        (only_where(lambda n: n[:4] != "vit.", lambda n: our_name("vit." + n)), '"vit." before the names'),
        (lambda theirs: our_name(theirs[4:]), 'Not every name begins with "vit."'),
        (lambda theirs: our_name(theirs.split("vit.")[1]), 'IndexError.*Not every name begins with "vit."'),
        (by_pattern(r"(?:encoder\.layer|layers)\.(\d)\.(.*)"), "(?s)layer.10.*more than one digit"),
        (changed(lambda ours, t: re.sub(r"^blocks\.\d*(\d)\.", r"blocks.\1.", ours)), "last digit"),
        (changed(lambda ours, t: re.sub(r"^blocks\.(\d)\d*\.", r"blocks.\1.", ours)), "first digit"),
        (by_pattern(r"(?:encoder\.layer|layers)\.(\d|1[01])\.(.*)"), "(?s)layer.23.*ViT-B has 12 layers"),
        (by_pattern(r"(?:encoder\.layer|layers)\.(\d\d?)\.(.*)"), r"(?s)layer\.N\..*N of three digits.*whatever it is"),
        (falsy_layer, "(?s)layer.0.*Layer 0 is"),
        (with_parts(layernorm_before=("norm2", None), layernorm_after=("norm1", None)), "is our norm1; layernorm_after"),
        (by_replacement(moved(("layernorm", "norm"))), 'how "layernorm_before"'),
        (by_replacement(moved((".output.dense", ".mlp.fc2"))), 'ends in "output.dense" as well'),
        (by_replacement(moved(("output.dense", "mlp.fc2"))), 'ends in "output.dense" as well'),
        (by_pattern(r"(?:encoder\.layer|layers)\.(\d+)\.(?:.*?\.)?(output\.dense|intermediate\.dense|\w+\.\w+|layernorm_.*)"),
         "KeyError: 'attention.query'.*Your table has no such entry"),
        (by_replacement([step for step in REPLACED if "attention.output" not in step[0]]), 'ends in "output.dense" as well'),
        (changed(lambda ours, t: ours.replace("mlp.fc2", "attention.output") if ".output.dense" in t else ours),
         'no "attention" before it'),
        (changed(lambda ours, t: {"1": ours.replace("fc1", "fc2"), "2": ours.replace("fc2", "fc1")}["12"["fc2" in ours]]),
         "intermediate, is fc1"),
        (changed(part=lambda part: {None: None, 0: 0, 1: 2, 2: 1}[part]), "yours are 0, 2 and 1"),
        (changed(part=lambda part: {None: None, 0: 1, 1: 0, 2: 2}[part]), "yours are 1, 0 and 2"),
        (changed(part=lambda part: None if part is None else part + 1), "yours are 1, 2 and 3"),
        (changed(part=lambda part: part or 0), "no part of one"),
        (changed(part=lambda part: part or None), "(?s)query.*0 is a part"),
        (changed(part=lambda part: None), "part is missing"),
        (changed(part=lambda part: None if part is None else "qkv"[part]), "part is a str.*one of the numbers"),
        (changed(part=lambda part: None if part is None else str(part)), "part is a str"),
        (changed(lambda ours, t: ours.replace("qkv", ("query", "key", "value")[our_name(t)[1] or 0])), "one name with us"),
        (lambda t: (our_name(t)[0].replace("qkv", ("query", "key", "value")[our_name(t)[1] or 0]), None), "one name with us"),
        (lambda theirs: our_name(theirs)[0], "returned a str.*pair"),
        (lambda theirs: our_name(theirs)[::-1], "first of the pair is a NoneType.*in this order"),
        (lambda theirs: (*our_name(theirs), theirs), "returned 3 things"),
        (changed(lambda ours, t: re.sub(r"\.(weight|bias)$", "", ours)), "end is missing"),
        (changed(lambda ours, t: re.sub(r"\.bias$", ".weight", ours)), "comes out as a weight"),
        (changed(lambda ours, t: re.sub(r"blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + 1}", ours)), "numbered from 0"),
        (changed(lambda ours, t: re.sub(r"blocks\.\d+", "blocks.0", ours)), "one number"),
        (by_replacement(REPLACED[2:]), 'is "blocks" in ours'),
        (by_replacement([("layer.", "blocks."), *REPLACED]), r"encoder\.blocks.*is \"blocks\" in ours|older names"),
        (only_where(lambda n: "pooler" not in n, lambda n: (n.removeprefix("vit."), None)), "pooler's linear layer"),
        (only_where(lambda n: "classifier" not in n, _raises), "classifier keeps its name"),
        (only_where(lambda n: "layer." in n or "layers." in n, _raises), "belong to no layer"),
        (only_where(lambda n: "layer." not in n and "layers." not in n, lambda n: (n, None)), "belong to a layer"),
        (only_where(lambda n: not n.endswith("bias"), _raises), "(?s)Biases are translated"),
        (only_where(lambda n: "cls_token" not in n, lambda n: ("cls_token", None)), "no tensor of that name"),
        (only_where(lambda n: "position" not in n, lambda n: ("class_token", None)), "another tensor of ours"),
        (without_last_branch, "(?s)pooler.dense.weight.*returned None.*pooler's linear"),
        (only_where(lambda n: "after" not in n, lambda n: None), "(?s)layernorm_after.*returned None.*No branch"),
        (lambda theirs: ("class_token", None), "(?s)Expected .'position_embedding', None"),
        (_endless, "did not finish"),
        (_raises, "ZeroDivisionError"),
        (lambda theirs: undefined(theirs), "NameError.*spelled"),  # noqa: F821
    ],
    "load_by_hand": [
        (loaded(whole=lambda t, n: turned(t), piece=turned),
         r"(?s)one layer, older names.*blocks.0.attention.qkv.weight.*nothing is to be transposed"),
        (loaded(whole=lambda t, n: turned(t)), "(?s)attention.output.weight.*nothing is to be transposed"),
        (loaded(whole=lambda t, n: turned(t) if "fc1" in n else t.float()), "(?s)mlp.fc1.weight.*shape.*transposed"),
        (loaded(whole=lambda t, n: t.float().mT if t.ndim == 4 else t.float()), "(?s)patch_embedding.weight.*transposed"),
        (loaded(pack=lambda parts: torch.cat([parts[1], parts[0], parts[2]])), "yours are in the order key, query, value"),
        (loaded(pack=lambda parts: torch.cat(parts[::-1])), "yours are in the order value, key, query"),
        (in_the_order_of_the_file, "(?s)reverse order.*in the order of the file"),
        (loaded(pack=lambda parts: torch.cat(parts, -1)), "along the second dimension"),
        (loaded(pack=lambda parts: torch.cat(parts, -1).reshape(-1, *parts[0].shape[1:])), "Rows of the three alternate"),
        (loaded(pack=lambda parts: torch.cat(parts, 1)), "IndexError.*Biases have one dimension only"),
        (loaded(pack=torch.stack), "makes a new dimension"),
        (loaded(pack=lambda parts: torch.stack(parts, 1).flatten(0, 1)), "three alternate: with us"),
        (loaded(pack=by_head), "alternate head by head"),
        (loaded(pack=lambda parts: torch.cat([parts[0], parts[0], parts[2]])), "the key did not come through"),
        (loaded(pack=lambda parts: torch.cat([parts[0]] * 3)), "the key and the value did not"),
        (loaded(pack=lambda parts: torch.cat(parts[:2])), "all three, each once"),
        (loaded(pack=lambda parts: torch.cat([parts[0] / 2**0.5, *parts[1:]])), "The query came through changed"),
        (biases_apart, "(?s)qkv.bias, which is missing.*Biases are packed"),
        (loaded(skip=("qkv.bias",)), "(?s)qkv.bias, which is missing.*Biases are packed"),
        (last_one_stays, "each assignment replaces"),
        (finished(lambda state, t, c: {("vit." + n if any(m[:4] == "vit." for m in t) and "classifier" not in n else n): v
                                       for n, v in state.items()}), 'no "vit."'),
        (loaded(translate=lambda n: (n, None)), "still Hugging Face's"),
        (loaded(translate=older_only), "(?s)newer names.*which is missing.*still Hugging Face's"),
        (loaded(translate=one_digit), "(?s)12 layers.*blocks.1.norm1.*layers' numbers are mixed up"),
        (loaded(skip=("classifier",)), "(?s)classifier.weight, which is missing.*classifier is missing"),
        (loaded(skip=("pooler",)), "(?s)pooler.weight, which is missing.*pooler is missing"),
        (loaded(skip=("class_token",)), "(?s)class_token, which is missing.*which branch"),
        (loaded(skip=("blocks.1",)), "(?s)two layers.*blocks.1.*Only some of the layers"),
        (lambda tensors, config: {}, "state dict is empty"),
        (loaded(whole=lambda t, n: t, piece=lambda t: t), "(?s)float16.*class_token. It is in float16.*float32 until"),
        (loaded(piece=lambda t: t), "(?s)in float16.*qkv.weight. It is in float16"),
        (loaded(whole=lambda t, n: t.double()), "It is in float64"),
        (loaded(whole=lambda t, n: t.half().float()), "rounded on the way"),
        (loaded(whole=lambda t, n: t.float().squeeze()), "(?s)class_token. It has the shape.*same shape with both"),
        (loaded(whole=lambda t, n: t.float().flatten(1) if t.ndim == 4 else t.float()),
         "(?s)patch_embedding.*same shape with both"),
        (loaded(translate=with_parts(layernorm_before=("norm2", None), layernorm_after=("norm1", None))),
         "has the values of blocks.0.norm2.weight"),
        (loaded(translate=with_parts(key=("attention.qkv", 2), value=("attention.qkv", 1))), "in the order query, value, key"),
        (always_a_bias, "(?s)no bias.*qkv.bias, which the model has not.*qkv_bias is False"),
        (bias_is_read, "(?s)with no bias.*KeyError.*qkv_bias is False"),
        (finished(lambda state, t, c: state | t), "which the model has not.*under ours already"),
        (finished(lambda state, t, c: {**state, "pooler.weight": torch.zeros(4, 4)}), "does not belong in"),
        (pops, "changed the dictionary.*no longer in it"),
        (converts_in_place, "changed the dictionary.*cls_token is another tensor now"),
        (scales_in_place, "changed a tensor that it was given"),
        (new_model, "what a new model or tensor has"),
        (returns_the_model, "returned a model"),
        (returns_what_loading_says, "returned a _IncompatibleKeys"),
        (finished(lambda state, t, c: list(state.items())), "returned a list"),
        (finished(lambda state, t, c: {n: v.numpy() for n, v in state.items()}), "class_token is a ndarray"),
        (finished(lambda state, t, c: {(n, None): v for n, v in state.items()}), "is a tuple.*a pair"),
        (loaded(translate=lambda n: None), "(?s)TypeError.*does our_name pass its check"),
        (_endless, "did not finish"),
        (_raises, "ZeroDivisionError"),
    ],
    "to_pixel_values": [
        (buggy_pixel_values, "(?s)2 x 2 pixels of one colour.*reshape keeps the order"),
        (pixels(lambda x, m, s: (x / 255 - m) / s, (0, 3, 2, 1)), "(?s)two columns differ.*Height and width are exchanged"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).flip(1)), "(?s)one pixel of three channels.*RGB stays RGB"),
        (pixels(lambda x, m, s: (x.flip(1) / 255 - m) / s), "RGB stays RGB"),
        (pixels(lambda x, m, s: (x / 255 - m.flip(0)) / s.flip(0)), "mean and std are in the reverse order"),
        (lambda images, mean, std: to_pixel_values(images, std, mean), "deviation are exchanged"),
        (pixels(lambda x, m, s: (x / 256 - m) / s), "(?s)one pixel of one channel.*divide by 255"),
        (pixels(lambda x, m, s: (x - m) / s), "bytes are divided by 255 first"),
        (pixels(lambda x, m, s: (x - m) / s / 255), "divides by 255 last"),
        (pixels(lambda x, m, s: (x / 255 / 255 - m) / s), "divided by 255 twice"),
        (pixels(lambda x, m, s: (x / 255 - m.mean()) / s.mean()), "here all share one"),
        (pixels(lambda x, m, s: (x / 255 - m[0]) / s[0]), "share the first's"),
        (pixels(lambda x, m, s: (x / 255 - m.mean()) / s), "mean of its own"),
        (pixels(lambda x, m, s: (x / 255 - m) / s**2), "not the variance"),
        (pixels(lambda x, m, s: (x / 255 - m) / s.sqrt()), "not the variance"),
        (pixels(lambda x, m, s: (x / 255 - m) * s), "here it multiplies"),
        (pixels(lambda x, m, s: (x / 255 + m) / s), "here it is added"),
        (pixels(lambda x, m, s: (m - x / 255) / s), "sign is wrong"),
        (pixels(lambda x, m, s: x / 255 / s), "mean is not subtracted"),
        (pixels(lambda x, m, s: x / 255 - m), "divided by the standard deviation"),
        (pixels(lambda x, m, s: x / 255), "mean and std are not used"),
        (pixels(lambda x, m, s: x / 127.5 - 1), "0.5 for some checkpoints"),
        (pixels(lambda x, m, s: x / 255 - m / s), "then divide the difference"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).clamp(min=0)), "may be negative"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).clamp(0, 1)), "below 0 and above 1"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).clamp(-1, 1)), "below -1 and above 1"),
        (pixels(lambda x, m, s: (x // 255 - m) / s), "whole numbers gives 0"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).double()), "wrong type: float64.*NumPy computes in float64"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).half()), "wrong type: float16"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).to(torch.uint8)), "wrong type: uint8.*no whole numbers"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).half().float()), "got -1.2002.*float16 on the way"),
        (lambda images, mean, std: torch.from_numpy((images / 255 - mean) / std).permute(0, 3, 1, 2), "wrong type: float64"),
        (lambda images, mean, std: (images.astype(np.float32).transpose(0, 3, 1, 2) / 255), "returned a ndarray"),
        (lambda images, mean, std: (torch.from_numpy(images) / 255 - torch.tensor(mean)) / torch.tensor(std),
         "(?s)three channels.*has the shape .1, 1, 1, 3.*still last"),
        (lambda images, mean, std: (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - torch.tensor(mean)) / torch.tensor(std),
         "height and a width of 1"),
        (pixels(lambda x, m, s: (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, correction=0)),
         "own mean"),
        (pixels(lambda x, m, s: (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True, correction=0)), "own mean"),
        (pixels(lambda x, m, s: ((x[:1] / 255 - m) / s).expand(x.shape)), "(?s)two pictures.*comes out as the first"),
        (pixels(lambda x, m, s: ((x[:1] / 255 - m) / s)), "(?s)two pictures.*has the shape.*two pictures"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).flip(2)), "(?s)two rows differ.*upside down"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s).flip(3)), "(?s)two columns differ.*mirrored"),
        (pixels(lambda x, m, s: ((x[:, :3] / 255 - m[:3]) / s[:3])), "(?s)four channels.*has the shape.*images.shape.3"),
        (pixels(lambda x, m, s: ((x / 255 - m) / s)[0]), "has the shape .1, 1, 1.*batch of one picture too"),
        (in_place_on_lists, "changed its input mean"),
        (in_place_on_images, "changed its input images"),
        (lambda images, mean, std: torch.zeros(images.shape).permute(0, 3, 1, 2), r"(?s)expected -1.2, got 0"),
        (_endless, "did not finish"),
        (_raises, "ZeroDivisionError"),
    ],
    "read_safetensors": [
        (lambda path: load_file(path), "lets safetensors read"),
        (by_safe_open, "lets safetensors read"),
        (lambda path: safetensors.torch.load(path.read_bytes()), "lets safetensors read"),
        (read_by_hand(length=lambda data: int.from_bytes(data[:8], "big")), "little-endian"),
        (length_big_endian_from_a_file, "little-endian"),
        (read_by_hand(header=lambda data, length: data[:length]), "(?s)one float32 vector.*DecodeError.*begins at byte 8"),
        (read_by_hand(header=lambda data, length: data[8:length]), "ends at byte 8 . length"),
        (read_by_hand(header=lambda data, length: data[8 : 7 + length]), "(?s)no multiple of 8.*ends at byte 8 . length"),
        (read_by_hand(header=lambda data, length: data[: 8 + length]), "begins at byte 8"),
        (read_by_hand(header=lambda data, length: data[8:]), "reaches past the end"),
        (read_by_hand(header=lambda data, length: data[4 : 4 + length], length=lambda data: int.from_bytes(data[:4], "little")),
         "8 bytes, not 4"),
        (read_by_hand(length=lambda data: data[0]), "(?s)DecodeError.*too few bytes"),
        (read_by_hand(length=lambda data: int.from_bytes(data[:2], "little")), "(?s)65,536.*too few bytes"),
        (read_by_hand(header=lambda data, length: b""), "No bytes were left"),
        (read_by_hand(base=lambda length: 0), "(?s)one float32 vector.*First wrong element of x.*and the header itself"),
        (read_by_hand(base=lambda length: 8), "not only its length"),
        (read_by_hand(base=lambda length: length), "8 bytes that hold its length"),
        (mapped_in_elements, "(?s)no multiple of 8.*nothing is rounded up"),
        (one_after_the_other, "(?s)another order.*where one lies say its data_offsets"),
        (read_by_hand(extent=lambda begin, end: (begin, begin + end)), "(?s)three float32 tensors.*not how many bytes"),
        (read_by_hand(extent=lambda begin, end: (0, end - begin)), "(?s)three float32 tensors.*all begin at 0"),
        (read_by_hand(extent=lambda begin, end: (4 * begin, 4 * end)), "(?s)three float32 tensors.*count bytes, not elements"),
        (read_by_hand(keep=lambda name, entry: True), "(?s)metadata.*KeyError.*no tensor"),
        (finished_reading(lambda tensors: {**tensors, "__metadata__": torch.zeros(1)} if len(tensors) == 2 else None),
         "about the file, and no tensor"),
        (read_by_hand(shape=lambda tensor, shape: tensor), "(?s)2 x 3.*reshape to it"),
        (read_by_hand(shape=lambda tensor, shape: tensor.reshape(shape[::-1])), "do not turn it round"),
        (read_by_hand(shape=lambda tensor, shape: tensor.reshape(shape or [-1])), "(?s)a scalar.*takes it for no shape"),
        (read_by_hand(shape=lambda tensor, shape: tensor.reshape(shape) if tensor.numel() else tensor),
         "(?s)no elements has a shape"),
        (read_by_hand(keep=lambda name, entry: name != "__metadata__" and 0 not in entry["shape"]),
         "A tensor with no elements is one"),
        (read_by_hand(values=lambda data, dtype: tensor_of(data, dtype) if data else torch.empty(0)), "none is in float32"),
        (read_by_hand(values=without_frombuffers_exception), "(?s)no elements.*ValueError.*frombuffer refuses"),
        (read_by_hand(types={"F32": torch.float32}), "(?s)all five types.*KeyError.*The header says each tensor's type"),
        (read_by_hand(types={**DTYPES, "BF16": torch.float16}), "(?s)bfloat16 was expected.*BF16"),
        (read_by_hand(types=dict.fromkeys(DTYPES, torch.float32)), "(?s)all five types.*The header says"),
        (finished_reading(lambda tensors: {n: t.float() for n, t in tensors.items()}), "in float32, and .* was expected"),
        (read_by_hand(values=big_endian_values), "(?s)one float32 vector.*other way round"),
        (read_by_hand(values=bfloat16_counted), "for a whole number first"),
        (read_by_hand(values=bfloat16_as_float16), "no float16's"),
        (read_by_hand(values=through_floats), "do not fit in a float"),
        (read_by_hand(decode=lambda data: json.loads(data.decode("ascii"))), "(?s)not ASCII.*The header is UTF-8"),
        (read_by_hand(decode=lambda data: json.loads(data.decode("latin-1"))), "(?s)not ASCII.*missing.*Names are UTF-8"),
        (finished_reading(nested), "(?s)dots.*missing.*whole"),
        (finished_reading(lambda tensors: {n: t.view(torch.uint8).numpy() for n, t in tensors.items() if t.ndim}),
         "x is a ndarray"),
        (finished_reading(lambda tensors: list(tensors.values())), "returned a list"),
        (finished_reading(lambda tensors: {}), "Your dictionary is empty"),
        (finished_reading(lambda tensors: {n: torch.zeros_like(t) for n, t in tensors.items()}),
         "First wrong element of x: index 0"),
        (never_empty(), "left over from a file that was read before"),
        (writes_the_file, "changed the file"),
        (lambda path: torch.load(path), "lets safetensors read|UnpicklingError"),
        (lambda path: open(str(path) + ".bin", "rb"), "FileNotFoundError"),
        (_endless, "did not finish"),
        (_raises, "ZeroDivisionError"),
    ],
}  # fmt: skip
