"""Hugging Face's ViT and DeiT checkpoints in and out: safetensors only, both generations of names, any misfit an error."""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import runtime
from .images import expand
from .vit import ViT, ViTConfig

# Our name to Hugging Face's name in files, where one tensor is one tensor. "N" is the layer's number.
NAMES = {
    "class_token": "embeddings.cls_token",
    "distillation_token": "embeddings.distillation_token",
    "position_embedding": "embeddings.position_embeddings",
    "patch_embedding.": "embeddings.patch_embeddings.projection.",
    "blocks.N.norm1.": "encoder.layer.N.layernorm_before.",
    "blocks.N.attention.output.": "encoder.layer.N.attention.output.dense.",
    "blocks.N.norm2.": "encoder.layer.N.layernorm_after.",
    "blocks.N.mlp.fc1.": "encoder.layer.N.intermediate.dense.",
    "blocks.N.mlp.fc2.": "encoder.layer.N.output.dense.",
    "norm.": "layernorm.",
    "pooler.": "pooler.dense.",
    "classifier.": "classifier.",
    "distillation_classifier.": "distillation_classifier.",
}

# Theirs. The first stands alone; the other two, on the class and the distillation token, stand together.
CLASSIFIERS = ("classifier.", "cls_classifier.", "distillation_classifier.")

# Ours is the three of theirs stacked along the first dimension.
QKV = "blocks.N.attention.qkv."
QKV_PARTS = tuple(f"encoder.layer.N.attention.attention.{part}." for part in ("query", "key", "value"))

# What the modules are called since transformers 5, and what files have called them all along.
NEWER_NAMES = (
    (r"^layers\.(\d+)\.attention\.([qkv])_proj\.", lambda m: f"encoder.layer.{m[1]}.attention.attention.{_WORDS[m[2]]}."),
    (r"^layers\.(\d+)\.attention\.o_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^layers\.(\d+)\.", r"encoder.layer.\1."),
)
_WORDS = {"q": "query", "k": "key", "v": "value"}


INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or fitted; the message says which and what to do."""


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a checkpoint: `name_or_path` itself if it is one, else the hub's files, fetched or from the cache."""
    path = expand(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; a folder with config.json and model.safetensors is accepted")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(name_or_path)):
        raise CheckpointError(
            f"{path} is no folder, and not of the form of a Hugging Face id (such as google/vit-base-patch16-224)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=["*.json", "*.safetensors"]))
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise CheckpointError(
            f"the Hugging Face hub has no public model {name_or_path}, and there is no folder of that name"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name_or_path} is no local folder, and the Hugging Face hub could not be reached. With no network, copy the "
            "model's config.json, preprocessor_config.json and model.safetensors into a folder and give its path instead"
        ) from error


def read_config(folder: Path) -> dict:
    """The folder's `config.json`, refused where it is missing, unreadable or not a ViT's or DeiT's."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("model_type") not in ("vit", "deit"):
        kind = values.get("model_type", "nothing") if isinstance(values, dict) else "nothing"
        raise CheckpointError(f'{file} is not a ViT\'s: its model_type is "{kind}", and "vit" or "deit" is accepted')
    return values


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the folder's safetensors file, or of all the files its index names, under the files' names.

    Where there are both it is the one file, as in transformers: whoever saves a model again may leave an old index behind.
    """
    index = folder / INDEX
    if index.exists() and not (folder / "model.safetensors").is_file():
        try:
            files = sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} cannot be read: {error!r}") from error
        if any(file.parent != folder for file in files):
            raise CheckpointError(f"{index} names files outside its folder")
    else:
        files = [folder / "model.safetensors"]
    tensors = {}
    for file in files:
        if not file.is_file():
            pickles = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
            if pickles:
                raise CheckpointError(
                    f"{folder} has no {file.name}, only {', '.join(sorted(pickles))}: pickle files can run code when they are "
                    "opened and are not read. Convert it where you trust it: load it in transformers, then save_pretrained()"
                )
            raise CheckpointError(f"{folder} has no {file.name}")
        try:
            with safe_open(file, "pt") as handle:
                tensors.update({name: handle.get_tensor(name) for name in handle.keys()})
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
    return tensors


def _file_name(name: str, model_type: str = "vit") -> str:
    """A tensor's name as the hub's files have it, without the "vit." or "deit." of a model with a head."""
    name = name.removeprefix(f"{model_type}.")
    for pattern, replacement in NEWER_NAMES:
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name


def _sources(name: str, two_classifiers: bool = False) -> tuple[str, ...]:
    """The names, in files, of what makes up our tensor `name`: one, or three for the packed queries, keys and values."""
    if name.startswith("classifier.") and two_classifiers:
        return (f"cls_{name}",)
    layer = re.search(r"^blocks\.(\d+)\.", name)
    general = re.sub(r"^blocks\.\d+\.", "blocks.N.", name)
    if general.startswith(QKV):
        theirs = tuple(part + general.removeprefix(QKV) for part in QKV_PARTS)
    else:
        prefix = next(ours for ours in NAMES if general == ours or (ours.endswith(".") and general.startswith(ours)))
        theirs = (NAMES[prefix] + general.removeprefix(prefix),)
    return tuple(their.replace("N", layer[1], 1) if layer else their for their in theirs)


def load(name_or_path: str | Path) -> ViT:
    """A ViT from a Hugging Face folder or hub id, in float32 on `runtime.DEVICE`, in eval mode.

    Raises CheckpointError where the folder, its config or its weights are missing, unreadable or do not fit each other.
    """
    folder = resolve(name_or_path)
    values = read_config(folder)
    try:
        config = ViTConfig.from_dict(values)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a ViT that this package can build: {error}") from error
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in read_tensors(folder).items():
        if _file_name(name, config.model_type) in tensors:
            raise CheckpointError(f"{folder} has {name} twice, under two names")
        tensors[_file_name(name, config.model_type)] = tensor
    alone, *beside = (f"{name}weight" in tensors for name in CLASSIFIERS)
    two = config.model_type == "deit" and any(beside)
    with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
        model = ViT(
            config,
            classifier=alone or two,
            pooler="pooler.dense.weight" in tensors,
            distillation_classifier=two,
        )
    for name in CLASSIFIERS:
        weight = tensors.get(f"{name}weight")
        if weight is not None and weight.ndim == 2 and len(weight) != config.num_labels:
            raise CheckpointError(f"{folder}: {name}weight has {len(weight)} rows and config.json {config.num_labels} labels")

    missing, misshapen, state = [], [], {}
    if model.classifier is None and config.num_labels and "ForImageClassification" in str(values.get("architectures")):
        missing.append("classifier.weight")
    for name, parameter in model.state_dict().items():
        sources = _sources(name, two)
        absent = [source for source in sources if source not in tensors]
        missing += absent
        if absent:
            continue
        shape = (parameter.shape[0] // len(sources), *parameter.shape[1:])
        wrong = [source for source in sources if tensors[source].shape != shape]
        misshapen += [f"{source} is {tuple(tensors[source].shape)} and should be {tuple(shape)}" for source in wrong]
        if not wrong:
            state[name] = torch.cat([tensors[source].float() for source in sources])
    used = {source for name in model.state_dict() for source in _sources(name, two)}
    surplus = sorted(set(tensors) - used)
    problems = [
        f"{kind}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("not expected", surplus), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{folder}: the weights do not fit config.json; " + "; ".join(problems))
    model.load_state_dict(state, assign=True)
    return model.to(runtime.DEVICE).eval()


def state_dict_for_files(model: ViT) -> dict[str, torch.Tensor]:
    """The model's tensors under the names that the hub's files use, queries, keys and values apart.

    A parameter that stands in two places comes out as two tensors: a file of this kind knows no sharing.
    """
    tensors, places = {}, set()
    for name, tensor in model.state_dict().items():
        sources = _sources(name, model.distillation_classifier is not None)
        for source, part in zip(sources, tensor.chunk(len(sources))):
            outside = model.classifier is None or source.startswith(CLASSIFIERS)
            part = part.detach().cpu().contiguous()
            part = part.clone() if part.data_ptr() in places else part
            places.add(part.data_ptr())
            tensors[source if outside else f"{model.config.model_type}.{source}"] = part
    return tensors


def architecture(model: ViT) -> str:
    """The name of transformers' class for this model."""
    family = {"vit": "ViT", "deit": "DeiT"}[model.config.model_type]
    if model.classifier is None:
        return f"{family}Model"
    return f"{family}ForImageClassification" + ("WithTeacher" if model.distillation_classifier is not None else "")


def save(model: ViT, path: str | Path) -> None:
    """Write the folder that `load`, and Hugging Face's transformers, read. Each file is written whole or not at all.

    Raises ValueError for a model that its own configuration does not describe, such as one whose classifier was replaced.
    """
    with torch.device("meta"):
        described = ViT(
            model.config,
            classifier=model.classifier is not None,
            pooler=model.pooler is not None,
            distillation_classifier=model.distillation_classifier is not None,
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in described.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if shapes.get(name) != tuple(tensor.shape):
            raise ValueError(
                f"save: {name} is {tuple(tensor.shape)}, and {shapes.get(name)} by the model's config; change that too"
            )
    folder = expand(path)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    config = {"architectures": [architecture(model)], "dtype": dtype, **model.config.to_dict()}
    scratch = folder / "model.safetensors.part", folder / "config.json.part"
    try:
        save_file(state_dict_for_files(model), scratch[0], metadata={"format": "pt"})
        scratch[1].write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file in scratch:  # only once both are there
            file.replace(file.with_suffix(""))
        (folder / INDEX).unlink(missing_ok=True)  # of a checkpoint in several files that lay here before
    finally:
        for file in scratch:
            file.unlink(missing_ok=True)
