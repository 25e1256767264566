"""The checks of lesson 14: the names, the tensors, the pixels and the bytes of a pretrained model."""

import contextlib
import copy
import functools
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import trace as tracing
from . import judge
from .judge import NO_FUNCTION, NOT_ATTEMPTED, Verdict, Wrong, _bits, _describe, _exception_hint, _show, index_text, type_name

# vitcourse.weights and the model are imported where they are used: lessons on one kernel import this module as well.


@dataclass
class _Case:
    """One call. label: how a verdict names it. news: the hint for what this case has and those before it have not."""

    label: str
    arguments: tuple
    expected: Any = None
    news: str = ""


@dataclass
class _Outcome:
    """What a case came to: a result or an exception, and what is wrong with it; a hint of "" is still to be found."""

    case: _Case
    result: Any = None
    error: BaseException | None = None
    wrong: Wrong | None = None


def _judge(
    function: Callable,
    cases: list[_Case],
    compare: Callable[[_Case, tuple, Any], None],
    explain: Callable[[list[_Outcome]], str],
    tried: str,
    clean: Callable[[_Case, str], str] = lambda case, text: text,
) -> Verdict:
    """Judge a function that runs no kernel. cases: the smallest first, and each gets a copy of its arguments.

    compare: raises Wrong for a result that is. explain: the hint for the first outcome that is wrong, from all of them.
    clean: takes out of a message what differs from run to run.
    """
    if function is None or function is ...:
        return NOT_ATTEMPTED
    if not callable(function):
        return NO_FUNCTION
    outcomes: list[_Outcome] = []
    for case in cases:
        outcome = _Outcome(case)
        outcomes.append(outcome)
        arguments = copy.deepcopy(case.arguments)
        try:
            with tracing.time_limit(judge.SECONDS):
                outcome.result = function(*arguments)
            if outcome.result is None or outcome.result is ...:
                raise Wrong(judge.RETURNED_NONE, "")
            compare(case, arguments, outcome.result)
        except Wrong as wrong:
            outcome.wrong = wrong
        except tracing.TookTooLong as error:
            outcome.error = error
            outcome.wrong = Wrong(
                "Your function did not finish and was stopped.",
                "A loop does not end: does each turn bring its variable nearer to the end?",
            )
            break
        except (Exception, SystemExit) as error:
            outcome.error = error
            outcome.wrong = Wrong(_describe(error), "")
    if all(_nothing(outcome) for outcome in outcomes):
        stub = outcomes[0].error is not None or judge.is_stub(function)
        return NOT_ATTEMPTED if stub else Verdict("wrong", judge.RETURNED_NONE, judge.END_WITH_A_RETURN)
    for outcome in outcomes:
        if outcome.wrong is not None:
            case, wrong = outcome.case, outcome.wrong
            message = clean(case, f"Smallest failing case: {case.label}.\n{wrong.message}")
            return Verdict("wrong", message, wrong.hint or explain(outcomes))
    return Verdict("right", f"Tried: {tried}.")


def _nothing(outcome: _Outcome) -> bool:
    """Whether a stub may have answered so."""
    if outcome.error is not None:
        return judge._is_readers_own(outcome.error)
    return outcome.result is None or outcome.result is ...


def _first_wrong(outcomes: list[_Outcome]) -> _Outcome:
    return next(outcome for outcome in outcomes if outcome.wrong is not None)


def _made_by(mistake: Callable, outcomes: list[_Outcome], same: Callable[[Any, Any], bool]) -> bool:
    """Whether a function that makes a mistake answers, and raises, as the reader's does; it may not raise everywhere."""
    answered = False
    for outcome in outcomes:
        try:
            other = mistake(*outcome.case.arguments)
        except Exception:
            if outcome.error is None:
                return False
            continue
        if outcome.error is not None or not same(outcome.result, other):
            return False
        answered = True
    return answered


# ---- Names ------------------------------------------------------------------------------------------------------------------

# The older names of a layer's modules, in all files until transformers 5, and the newer ones.
_GENERATIONS = {
    "older": (
        "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
        "layernorm_before", "layernorm_after", "intermediate.dense", "output.dense",
    ),
    "newer": (
        "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
        "layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2",
    ),
}  # fmt: skip
_LAYER = {"older": "encoder.layer.{}.", "newer": "layers.{}."}
_EMBEDDINGS = (
    "embeddings.cls_token", "embeddings.position_embeddings",
    "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.projection.bias",
)  # fmt: skip
_ENDS = ("layernorm.weight", "layernorm.bias", "pooler.dense.weight", "pooler.dense.bias")
_HEAD = ("classifier.weight", "classifier.bias")


def _model_names() -> list[str]:
    """The names of our tensors, of a model of one layer with everything."""
    from ...vit import ViT, ViTConfig

    config = ViTConfig(4, 1, 2, 6, image_size=4, patch_size=2, num_channels=1)
    with torch.device("meta"):
        return list(ViT(config, classifier=True, pooler=True).state_dict())


def _sources() -> dict[str, tuple[str, int | None]]:
    """The older name of each tensor of a model with one layer, with no "vit.", and what `vitcourse.weights` makes of it."""
    from ... import weights

    found: dict[str, tuple[str, int | None]] = {}
    for ours in _model_names():
        theirs = weights._sources(ours)
        found |= {name: (ours, part if len(theirs) > 1 else None) for part, name in enumerate(theirs)}
    return found


@functools.cache
def _translator() -> Callable[[str], tuple[str, int | None]]:
    from ... import weights

    sources = _sources()

    def translate(theirs: str) -> tuple[str, int | None]:
        older = weights._file_name(theirs)
        layer = re.match(r"encoder\.layer\.(\d+)\.", older)
        ours, part = sources[re.sub(r"^(encoder\.layer\.)\d+", r"\g<1>0", older)]
        return (ours.replace("blocks.0.", f"blocks.{layer[1]}.") if layer else ours), part

    return translate


def _number(theirs: str) -> int | None:
    found = re.search(r"layers?\.(\d+)\.", theirs)
    return int(found[1]) if found else None


# Which names are meant, and the hint where all of them fail and the first failing one is among them.
_FAMILIES: list[tuple[Callable[[str], bool], str]] = [
    (lambda n: n.startswith("vit."),
     'Some files have "vit." before the names, and some have not: take it away where it is there, and translate the rest.'),
    (lambda n: not n.startswith("vit."),
     'Not every name begins with "vit.": it may only be taken away where it is there.'),
    (lambda n: "encoder.layer." in n,
     "These are the older names, encoder.layer.N and what follows: most files have them, and both generations have to be read."),
    (lambda n: n.removeprefix("vit.").startswith("layers."),
     "These are the newer names, layers.N and what follows, of transformers 5: both generations have to be read."),
    (lambda n: _number(n) is not None,
     "These belong to a layer: encoder.layer.N or layers.N becomes blocks.N, and what follows is translated on its own."),
    (lambda n: _number(n) is None, "These belong to no layer: embeddings, the last layernorm, the pooler and the classifier."),
    (lambda n: (_number(n) or 0) > 9, "The layer's number may have more than one digit: which pattern reads all of them?"),
    (lambda n: (_number(n) or 0) > 11, "ViT-B has 12 layers and other models have more: take the number from the name."),
    (lambda n: (_number(n) or 0) > 99, "Take the layer's number from the name, whatever it is."),
    (lambda n: _number(n) == 0, "Layer 0 is a layer as the others are: an `if` takes the number 0 for nothing."),
    (lambda n: n.endswith(".bias"), "Biases are translated as weights are, and keep their .bias."),
    (lambda n: n.endswith(".weight"), "Weights are translated as biases are, and keep their .weight."),
    (lambda n: bool(re.search(r"query|key|value|[qkv]_proj", n)),
     "Queries, keys and values are one tensor of ours, attention.qkv, and their parts are 0, 1 and 2."),
    (lambda n: n.startswith("classifier."), 'The classifier keeps its name, and has no "vit." before it in any file.'),
    (lambda n: "pooler" in n, "The pooler's linear layer is pooler.dense with them and pooler with us."),
]  # fmt: skip


def _name_mistakes(translate: Callable) -> list[tuple[str, Callable]]:
    def named(change: Callable[[str, str], str]) -> Callable:
        """change: of our name and theirs, to a wrong one of ours."""
        return lambda theirs: (change(translate(theirs)[0], theirs), translate(theirs)[1])

    def parted(change: Callable) -> Callable:
        return lambda theirs: (translate(theirs)[0], change(translate(theirs)[1]))

    def exchanged(one: str, other: str) -> Callable:
        swap = {one: other, other: one}
        return named(lambda ours, theirs: re.sub(f"{re.escape(one)}|{re.escape(other)}", lambda m: swap[m[0]], ours))

    def numbered(change: Callable[[str], Any]) -> Callable:
        return named(lambda ours, theirs: re.sub(r"(?<=^blocks\.)\d+", lambda m: str(change(m[0])), ours))

    def attention_as_mlp(to: str) -> Callable:
        return named(lambda ours, t: re.sub(r"attention\.output(?=\.)", to, ours) if "attention.output.dense" in t else ours)

    def unpacked(ours: str, theirs: str) -> str:
        part = translate(theirs)[1]
        return ours if part is None else ours.replace("qkv", ("query", "key", "value")[part])

    def half(ours: str, theirs: str) -> str:
        return (
            re.sub(r"norm[12]", "norm_before" if "before" in theirs else "norm_after", ours) if "layernorm_" in theirs else ours
        )

    longer = '"attention.output.dense" ends in "output.dense" as well, and is the attention\'s: look for the longer name first.'
    orders = [
        (f"The parts are 0 for query, 1 for key and 2 for value; yours are {p[0]}, {p[1]} and {p[2]}.",
         parted(lambda part, p=p: part if part is None else p[part]))
        for p in [*itertools.permutations(range(3)), (1, 2, 3)] if p != (0, 1, 2)
    ]  # fmt: skip
    return [
        ('Our names have no "vit.": take it away before the rest is translated.',
         named(lambda ours, theirs: "vit." + ours if theirs.startswith("vit.") else ours)),
        ("layernorm_before, the one before the attention, is our norm1; layernorm_after is norm2.",
         exchanged("norm1", "norm2")),
        ('"layernorm" is also how "layernorm_before" and "layernorm_after" begin: a replacement changes them too.', named(half)),
        (longer, attention_as_mlp("mlp.fc2")),
        (longer, attention_as_mlp("attention.mlp.fc2")),
        ('An "output.dense" with no "attention" before it is the MLP\'s second linear layer, mlp.fc2.',
         named(lambda ours, t: ours.replace("mlp.fc2", "attention.output") if re.search(r"\d\.output\.dense", t) else ours)),
        ("The MLP's first linear layer, intermediate, is fc1; the second, output, is fc2.", exchanged("mlp.fc1", "mlp.fc2")),
        *orders,
        ("A whole tensor is no part of one: its part is None, and 0 is the query's.", parted(lambda part: part or 0)),
        ("0 is a part, the query's, and not nothing: `part or None` and `if part` take it for None.",
         parted(lambda part: part or None)),
        ("The part is missing: 0, 1 and 2 tell queries, keys and values apart, which have one name with us.",
         parted(lambda part: None)),
        ("Queries, keys and values have one name with us, attention.qkv: which of them it is says the part.", named(unpacked)),
        ("Queries, keys and values have one name with us, attention.qkv: which of them it is says the part.",
         lambda theirs: (unpacked(translate(theirs)[0], theirs), None)),
        ("Only the number's last digit came through: layers 10 and 11 have two.", numbered(lambda digits: digits[-1])),
        ("Only the number's first digit came through: layers 10 and 11 have two.", numbered(lambda digits: digits[0])),
        ("Layers are numbered from 0 with both: the number stays.", numbered(lambda digits: int(digits) + 1)),
        ("Layers are numbered from 0 with both: the number stays.", numbered(lambda digits: int(digits) - 1)),
        ("Every layer comes out with one number: take it from the name.", numbered(lambda digits: 0)),
        ("The name's end is missing: .weight and .bias are the same with both.",
         named(lambda ours, theirs: re.sub(r"\.(weight|bias)$", "", ours))),
        ("A bias comes out as a weight: the name's end, .weight or .bias, stays.",
         named(lambda ours, theirs: re.sub(r"\.bias$", ".weight", ours))),
        ('What is "encoder.layer" or "layers" in their names is "blocks" in ours.',
         named(lambda ours, theirs: re.sub(r"^blocks\.", re.search(r"(encoder\.layer|layers)\.|$", theirs)[0], ours))),
        ('What is "encoder.layer" or "layers" in their names is "blocks" in ours.',
         named(lambda ours, theirs: re.sub(r"^blocks\.", "encoder.blocks.", ours) if "encoder" in theirs else ours)),
    ]  # fmt: skip


def our_name(function: Callable) -> Verdict:
    """Lesson 14: `function(theirs)`, the name of a tensor in a Hugging Face ViT file translated to (our name, part).

    part: 0, 1 or 2 for query, key and value, which are rows of one tensor with us, attention.qkv; else None. Names of both
    generations, encoder.layer.N… and layers.N…, with and without a leading "vit.".
    """
    translate = _translator()
    drawn = int(np.random.default_rng().integers(101, 999))
    whole = (*_EMBEDDINGS, *_ENDS)
    names = [*whole, *_HEAD]
    for number in (3, 0, 10, 11, 23, drawn):
        for generation, modules in _GENERATIONS.items():
            layer = [_LAYER[generation].format(number) + f"{m}.{kind}" for m in modules for kind in ("weight", "bias")]
            names += layer
            if number == 3 and generation == "older":
                names += [f"vit.{name}" for name in whole]
            names += [f"vit.{name}" for name in layer]

    def clean(text: str) -> str:
        return text.replace(str(drawn), "N")

    def label(theirs: str) -> str:
        return f"our_name({clean(theirs)!r})" + (", N of three digits" if _number(theirs) == drawn else "")

    cases = [_Case(label(theirs), (theirs,), translate(theirs)) for theirs in names]
    known = set(_model_names())

    def compare(case, arguments, result):
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            kind = f"{len(result)} things" if isinstance(result, (tuple, list)) else f"a {type(result).__name__}"
            raise Wrong(f"Your function returned {kind}.", "Return a pair: (our name, part). part is None for a whole tensor.")
        name, part = result
        if not isinstance(name, str):
            raise Wrong(f"The first of the pair is a {type(name).__name__}.", "The pair is (our name, part), in this order.")
        if part is not None and (isinstance(part, bool) or not isinstance(part, int)):
            raise Wrong(f"The part is a {type(part).__name__}.", "The part is one of the numbers 0, 1 and 2, or None.")
        if (name, part) != case.expected:
            got = _show((name if len(name) <= 80 else name[:80] + "…", part))
            raise Wrong(f"Expected {_show(case.expected)}, got {got}.", "")

    def same(result, other):
        return isinstance(result, (tuple, list)) and tuple(result) == other

    def explain(outcomes):
        first = _first_wrong(outcomes)
        theirs = first.case.arguments[0]
        mistakes = _name_mistakes(translate)

        def kind(name):
            return name.startswith("vit."), "encoder." in name, _number(name) is None, _number(name)

        alike = [outcome for outcome in outcomes if kind(outcome.case.arguments[0]) == kind(theirs)]
        for group in (outcomes, alike):
            for hint, mistake in mistakes:
                if translate(theirs) != mistake(theirs) and _made_by(mistake, group, same):
                    return hint
        wrong = {outcome.case.arguments[0] for outcome in outcomes if outcome.wrong is not None}
        families = []
        for belongs, hint in _FAMILIES:
            family = {name for name in names if belongs(name)}
            if theirs in family and family <= wrong and len(wrong) < len(names):
                families.append((len(family), hint))
        if families:
            return max(families)[1]
        if first.error is not None and "NoneType" in str(first.error):
            return "A pattern does not fit this name and gives None: print the name beside the pattern."
        if isinstance(first.error, KeyError):
            return "Your table has no such entry: print what you look up, and compare it with the table's keys."
        if first.error is not None:
            return _exception_hint(first.error)
        if first.result is None:
            return "No branch of your code is for this name: print it, and see where it goes."
        name = first.result[0]
        if name == first.case.expected[0]:
            return "The name is right. The part is 0, 1 or 2 for query, key and value, and None for a whole tensor."
        if re.sub(r"^blocks\.\d+\.", "blocks.0.", name) in known:
            return "That is another tensor of ours: which piece of their name tells the two apart?"
        return "Our model has no tensor of that name: compare it with list(ViT(config).state_dict())."

    return _judge(
        function,
        cases,
        compare,
        explain,
        'every tensor of a model with pooler and classifier by its older and its newer name, with and without "vit.", in layers '
        "0, 3, 10, 11 and 23, and in one drawn at random",
        lambda case, text: clean(text) if _number(case.arguments[0]) == drawn else text,
    )


# ---- A state dict -----------------------------------------------------------------------------------------------------------


@dataclass
class _Checkpoint:
    """A file as `load_by_hand` is tried with it."""

    label: str
    news: str = ""
    generation: str = "older"
    vit: bool = False  # whether "vit." stands before the names, and a classifier follows
    pooler: bool = False
    layers: int = 1
    bias: bool = True
    order: str = "as in the model"
    dtype: torch.dtype = torch.float32
    image: tuple[int, int, int] = (1, 4, 4)

    def draw(self) -> tuple[dict[str, torch.Tensor], Any, dict[str, torch.Tensor]]:
        """The file's tensors, the configuration, and the state dict that they make."""
        from ... import weights
        from ...vit import ViT, ViTConfig

        channels, *size = self.image
        config = ViTConfig(
            4, self.layers, 2, 6, image_size=tuple(size), patch_size=2, num_channels=channels, qkv_bias=self.bias,
            id2label=dict(enumerate("abc")),
        )  # fmt: skip
        with torch.device("meta"):
            model = ViT(config, classifier=self.vit, pooler=self.pooler)
        tensors, state = {}, {}
        newer = dict(zip(_GENERATIONS["older"], _GENERATIONS["newer"]))
        for ours, parameter in model.state_dict().items():
            values = torch.randn(parameter.shape).to(self.dtype)
            state[ours] = values.float()
            theirs = weights._sources(ours)
            for source, part in zip(theirs, values.chunk(len(theirs))):
                layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)\.(\w+)", source)
                if layer and self.generation == "newer":
                    source = _LAYER["newer"].format(layer[1]) + f"{newer[layer[2]]}.{layer[3]}"
                tensors[f"vit.{source}" if self.vit and not source.startswith("classifier.") else source] = part.clone()
        items = list(tensors.items())
        if self.order == "reverse":
            items.reverse()
        if self.order == "alphabetical":
            items.sort()
        if self.order == "shuffled":
            items = [items[index] for index in torch.randperm(len(items), generator=torch.Generator().manual_seed(14)).tolist()]
        return dict(items), config, state


_CHECKPOINTS = (
    _Checkpoint("one layer, older names, no classifier"),
    _Checkpoint("one layer, newer names, no classifier", generation="newer",
                news="The names are of the newer generation here, layers.N…: does your our_name pass its check?"),
    _Checkpoint('two layers, older names, "vit." before them, a classifier', vit=True, layers=2,
                news='"vit." stands before the names here, the classifier\'s excepted, and there are two layers.'),
    _Checkpoint('two layers, newer names, "vit." before them, a classifier', "", "newer", vit=True, layers=2),
    _Checkpoint("one layer, older names, a pooler", pooler=True, news="This checkpoint has a pooler: its tensors go in as well."),
    _Checkpoint("one layer, older names, queries, keys and values with no bias", bias=False,
                news="config.qkv_bias is False here: queries, keys and values have no bias, and no qkv.bias is to be made."),
    _Checkpoint("one layer, older names, the file's tensors in reverse order", order="reverse",
                news="The file's tensors come in another order here: go by their names."),
    _Checkpoint("one layer, newer names, the file's tensors in alphabetical order", generation="newer", order="alphabetical",
                news="The file's tensors come in another order here: go by their names."),
    _Checkpoint("one layer, older names, the file in float16", dtype=torch.float16,
                news="The file's tensors are in float16 here; the state dict is in float32."),
    _Checkpoint('12 layers, newer names, "vit." before them, wide images, a shuffled order',
                "This model has 12 layers: numbers of two digits, and images that are not square.",
                "newer", vit=True, layers=12, order="shuffled", image=(3, 4, 6)),
    _Checkpoint('12 layers, older names, "vit." before them, a pooler and a classifier, a shuffled order, float16', "",
                vit=True, pooler=True, layers=12, order="shuffled", dtype=torch.float16),
)  # fmt: skip

_PARTS = ("query", "key", "value")


def _holds(value: torch.Tensor, other: torch.Tensor) -> bool:
    return value.shape == other.shape and torch.equal(value, other)


def _first_difference(state: Mapping, expected: dict[str, torch.Tensor]) -> tuple[str, str]:
    """The first tensor of the model that is wrong, and what is: "missing", "shape", "type" or "values"; or a "surplus" one."""
    for name, right in expected.items():
        if name not in state:
            return name, "missing"
        if state[name].shape != right.shape:
            return name, "shape"
        if state[name].dtype != torch.float32:
            return name, "type"
        if not torch.equal(state[name].detach(), right):
            return name, "values"
    surplus = sorted(set(state) - set(expected))
    return (surplus[0], "surplus") if surplus else ("", "")


def _missing_hint(case: _Case, state: Mapping, name: str) -> str:
    tensors, expected = case.arguments[0], case.expected
    missing, surplus = set(expected) - set(state), set(state) - set(expected)
    if {f"vit.{one}" for one in missing} & surplus:
        return 'Our names have no "vit.": take it away before the rest is translated.'
    if name.endswith("qkv.bias") and name.replace("bias", "weight") in state:
        return "Biases are packed as weights are: their queries, keys and values are one tensor with us as well."
    if "attention.qkv" in name and any(re.search(r"query|key|value|[qkv]_proj", one) for one in surplus):
        return "Queries, keys and values are one tensor with us: stack the three under the name attention.qkv."
    if "attention.qkv" in name and any("qkv" in one for one in surplus):
        return "attention.qkv is one tensor: stack the three parts into it, and do not give each a name of its own."
    if surplus & set(tensors):
        return "Some names are still Hugging Face's: a state dict has the model's names, which our_name gives."
    for word in ("classifier", "pooler"):
        if all(one.startswith(f"{word}.") for one in missing):
            return f"The {word} is missing: every tensor of the file goes into the state dict, under the model's name."
    layers = {_number_of(one) for one in missing}
    if None not in layers and layers != {_number_of(one) for one in expected if _number_of(one) is not None}:
        return (
            "Only some of the layers came through: config.num_hidden_layers says how many there are, and each name which it is."
        )
    if not surplus:
        hint = "Each tensor of the file goes into the state dict: which branch of your code lets this one fall?"
        return "Your state dict is empty: does the function put the tensors into it before it returns?" if not state else hint
    return case.news or "The model has no tensor of some of your names: compare them with list(ViT(config).state_dict())."


def _number_of(ours: str) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", ours)
    return int(found[1]) if found else None


def _packed_hint(value: torch.Tensor, right: torch.Tensor, order: tuple[int, ...]) -> str:
    """For a wrong attention.qkv of the right shape. order: in which the file has the three."""
    parts = right.chunk(3)

    def stacked(these, dim=0):
        return torch.cat([parts[part] for part in these], dim)

    wanted = "queries, then keys, then values"
    for these in itertools.product(range(3), repeat=3):
        if not _holds(value, stacked(these)):
            continue
        if len(set(these)) < 3:
            lost = [_PARTS[part] for part in range(3) if part not in these]
            return f"Of query, key and value, the {' and the '.join(lost)} did not come through: each fills its own third."
        if these == order:
            return f"The three are stacked in the order of the file, which can be any. Go by their names: the rows are {wanted}."
        return f"The rows are {wanted}; yours are in the order {', '.join(_PARTS[part] for part in these)}."
    if right.ndim == 2 and _holds(value, torch.cat([part.T for part in parts])):
        return "Linear weights are (out_features, in_features) with both: nothing is to be transposed."
    if _holds(value, torch.stack(parts, 1).flatten(0, 1)):
        return f"Rows of the three alternate: with us they are all {wanted}, joined along the first dimension."
    heads = torch.stack([part.unflatten(0, (2, -1)) for part in parts], 1).flatten(0, 2)
    if _holds(value, heads):
        return f"The three alternate head by head: with us they are all {wanted}, each of all heads."
    if any(_holds(found, part) for found, part in zip(value.chunk(3), parts)):
        which = [_PARTS[i] for i, (found, part) in enumerate(zip(value.chunk(3), parts)) if not _holds(found, part)]
        return f"The {' and the '.join(which)} came through changed or in a wrong place: the tensors are stacked as they are."
    return ""


def _loading_hint(case: _Case, state: Mapping) -> str:
    tensors, expected = case.arguments[0], case.expected
    name, what = _first_difference(state, expected)
    if what == "missing":
        return _missing_hint(case, state, name)
    if what == "surplus":
        if name in tensors:
            return "This is Hugging Face's name, and its tensor is in the state dict under ours already: leave it out."
        return case.news or "The model has no such tensor: what is not made from a tensor of the file does not belong in."
    value, right = state[name].detach(), expected[name]
    if what == "type":
        return (
            "The model computes in float32 until it is told otherwise: what the file has in float16 is converted."
            if value.dtype == torch.float16
            else "Our tensors are in float32: that is what float16 is converted to, and nothing needs another type."
        )
    packed = "attention.qkv" in name
    if what == "shape":
        rows = right.shape[0] // 3
        if packed and tuple(value.shape) == (rows, *right.shape[1:]):
            return (
                "Three tensors of the file have this one name: each assignment replaces the one before. Collect them, then stack."
            )
        if packed and right.ndim == 2 and tuple(value.shape) == (rows, 3 * right.shape[1]):
            return "They are joined along the second dimension: the parts are rows, so it is the first, dim=0."
        if packed and value.ndim == right.ndim + 1 and value.numel() == right.numel():
            return "torch.stack makes a new dimension: the three go below each other in the one that there is, torch.cat."
        if packed and value.ndim == right.ndim:
            return "The rows of queries, keys and values, in this order, are the rows of qkv: all three, each once."
        if right.ndim == 2 and tuple(value.shape) == tuple(right.T.shape):
            return "Linear weights are (out_features, in_features) with both: nothing is to be transposed."
        if value.numel() == right.numel():
            return "This tensor has the same shape with both: it goes in as it is."
    if packed and what == "values":
        theirs = sorted((index, _translator()(source)[1]) for index, source in enumerate(tensors) if _leads_to(source, name))
        if hint := _packed_hint(value, right, tuple(part for _, part in theirs)):
            return hint
    if right.ndim == 2 and _holds(value, right.T):
        return "Linear weights are (out_features, in_features) with both: nothing is to be transposed."
    if right.ndim == 4 and _holds(value, right.transpose(2, 3)):
        return "A patch's weights are (out, channel, row, column) with both: nothing is to be transposed."
    for other, tensor in expected.items():
        if other == name or not _holds(value, tensor):
            continue
        if _number_of(name) is not None and other.split(".")[2:] == name.split(".")[2:]:
            return f"It has the values of {other}: the layers' numbers are mixed up, and they may have two digits."
        return f"It has the values of {other}: two tensors are exchanged, or one is put in twice."
    if value.shape == right.shape and bool(((value - right).abs() <= 1e-2 * right.abs() + 1e-3).all()):
        return "Only two or three digits are right: the values are rounded on the way. float32 stays float32."
    if value.shape == right.shape and (value.abs().max() < 0.3 or bool((value == value.reshape(-1)[0]).all())):
        return "These are not the file's values but what a new model or tensor has: copy the file's tensor in."
    return case.news or "A tensor of the file goes in as it is, under our name; only queries, keys and values are stacked."


def _leads_to(theirs: str, ours: str) -> bool:
    return _translator()(theirs)[0] == ours


def load_by_hand(function: Callable) -> Verdict:
    """Lesson 14: `function(tensors, config)`, from the tensors of a Hugging Face ViT file to the state dict of our model.

    tensors: a dictionary by the file's names, of either generation, in any order. Queries, keys and values are stacked along
    the first dimension; everything else is as it is, all of it in float32, and the dictionary stays as it was.
    """
    cases = []
    for checkpoint in _CHECKPOINTS:
        tensors, config, state = checkpoint.draw()
        cases.append(_Case(checkpoint.label, (tensors, config), state, checkpoint.news))

    def compare(case, arguments, result):
        given, config = case.arguments
        if list(arguments[0]) != list(given):
            lost = [name for name in given if name not in arguments[0]]
            how = f"{lost[0]} is no longer in it" if lost else "it holds other names than before"
            raise Wrong(
                f"Your function changed the dictionary that it was given: {how}.",
                "The state dict is a new dictionary: read the file's, with tensors[name] and not with pop or an assignment.",
            )
        for name, tensor in given.items():
            now = arguments[0][name]
            if not isinstance(now, torch.Tensor) or now.dtype != tensor.dtype or now.shape != tensor.shape:
                raise Wrong(
                    f"Your function changed the dictionary that it was given: {name} is another tensor now.",
                    "The state dict is a new dictionary: only read the file's.",
                )
            if not torch.equal(now, tensor):
                raise Wrong(
                    f"Your function changed a tensor that it was given: {name}.",
                    "Put a new tensor into a new dictionary, and use no operation that works in place.",
                )
        if arguments[1] != config:
            raise Wrong("Your function changed the configuration that it was given.", "Only read config.")
        if isinstance(result, torch.nn.Module):
            raise Wrong("Your function returned a model.", "Return the dictionary that load_state_dict takes.")
        if not isinstance(result, Mapping):
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return a dictionary of our names to tensors.")
        for name, value in result.items():
            if not isinstance(name, str):
                raise Wrong(
                    f"A key of your dictionary is a {type(name).__name__}.", "The keys are our names: our_name gives a pair."
                )
            if not isinstance(value, torch.Tensor):
                raise Wrong(f"{name} is a {type(value).__name__}.", "The values of a state dict are tensors.")
        name, what = _first_difference(result, case.expected)
        if not what:
            return
        if what == "surplus":
            raise Wrong(f"Your dictionary has {name}, which the model has not.", "")
        right, text = case.expected[name], f"First wrong tensor: {name}"
        if what == "missing":
            surplus = sorted(set(result) - set(case.expected))
            more = f" Your dictionary has {surplus[0]}, which the model has not." if surplus else ""
            raise Wrong(f"{text}, which is missing.{more}", "")
        value = result[name].detach()
        if what == "shape":
            raise Wrong(f"{text}. It has the shape {tuple(value.shape)}, and {tuple(right.shape)} was expected.", "")
        if what == "type":
            raise Wrong(f"{text}. It is in {type_name(value.dtype)}, and float32 was expected.", "")
        raise Wrong(f"{text}, at {index_text((value != right).numpy())}.", "")

    def explain(outcomes):
        first = _first_wrong(outcomes)
        if first.error is None:
            return "End with `return state`, in every case." if first.result is None else _loading_hint(first.case, first.result)
        if "Dimension out of range" in str(first.error):
            return "Biases have one dimension only. The three are joined along the first, dim=0, and so are the weights' rows."
        if first.case.news and not isinstance(first.error, NameError):
            return first.case.news
        if "NoneType" in str(first.error):
            return "None is where a pair or a tensor belongs: does our_name pass its check, and is none of the three left out?"
        return _exception_hint(first.error)

    return _judge(
        function,
        cases,
        compare,
        explain,
        'checkpoints with random weights: older and newer names, with and without "vit.", classifier, pooler and the bias of '
        "queries, keys and values, 1, 2 and 12 layers, float16, wide images, and tensors in any order",
    )


# ---- Pixels -----------------------------------------------------------------------------------------------------------------


def _normalised(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Of (batch, channels, height, width), in 0 to 1."""
    return (pixels - mean[:, None, None]) / std[:, None, None]


_ALONG = "mean and std go along the channels: give them a height and a width of 1, as broadcasting starts from the last."


def _pixel_mistakes() -> list[tuple[str, Callable]]:
    def first(images):
        return images.permute(0, 3, 1, 2)

    def of(change: Callable) -> Callable:
        """change: of the images as they are, mean and std, all in float64."""

        def mistake(images, mean, std):
            double = torch.float64
            return change(
                torch.from_numpy(images.astype(np.float64)), torch.tensor(mean, dtype=double), torch.tensor(std, dtype=double)
            )

        return mistake

    def own(x, correction):
        """Normalised with the mean and deviation of each picture's channels; NaN where those have one pixel or one colour."""
        centered = x - x.mean((2, 3), keepdim=True)
        return centered / ((centered**2).sum((2, 3), keepdim=True) / (x[0, 0].numel() - correction)).sqrt()

    def own_of_batch(x, correction):
        centered = x - x.mean((0, 2, 3), keepdim=True)
        return centered / ((centered**2).sum((0, 2, 3), keepdim=True) / (x[:, 0].numel() - correction)).sqrt()

    def reshaped(x):
        batch, height, width, channels = x.shape
        return x.reshape(batch, channels, height, width)

    bgr = "The channels come out in the reverse order: RGB stays RGB."
    given = "The pictures are normalised with their own mean and deviation: take those that are given."
    return [
        (hint, of(change)) for hint, change in [
            ("reshape keeps the order of the numbers in memory, where a pixel's channels are neighbours: another operation puts "
             "the dimensions in another order.", lambda x, m, s: _normalised(reshaped(x) / 255, m, s)),
            ("Height and width are exchanged: the result is (batch, channels, height, width).",
             lambda x, m, s: _normalised(x.permute(0, 3, 2, 1) / 255, m, s)),
            ("Height and width are exchanged: the result is (batch, channels, height, width).",
             lambda x, m, s: _normalised(x.permute(0, 3, 2, 1).reshape(first(x).shape) / 255, m, s)),
            (bgr, lambda x, m, s: _normalised(first(x).flip(1) / 255, m, s)),
            (bgr, lambda x, m, s: _normalised(first(x) / 255, m, s).flip(1)),
            ("mean and std are in the reverse order of the channels: the first of them is the first channel's.",
             lambda x, m, s: _normalised(first(x) / 255, m.flip(0), s.flip(0))),
            ("Mean and standard deviation are exchanged: subtract the one, divide by the other.",
             lambda x, m, s: _normalised(first(x) / 255, s, m)),
            ("The largest value of a byte is 255, and that is to become 1: divide by 255.",
             lambda x, m, s: _normalised(first(x) / 256, m, s)),
            ("Mean and standard deviation are of pixels between 0 and 1: the bytes are divided by 255 first.",
             lambda x, m, s: _normalised(first(x), m, s)),
            ("The order is: divide by 255, subtract the mean, divide by the standard deviation. Yours divides by 255 last.",
             lambda x, m, s: _normalised(first(x), m, s) / 255),
            ("The bytes are divided by 255 twice.", lambda x, m, s: _normalised(first(x) / 255 / 255, m, s)),
            ("Each channel has a mean and a standard deviation of its own: here all share one.",
             lambda x, m, s: _normalised(first(x) / 255, m.mean().expand(m.shape), s.mean().expand(s.shape))),
            ("Each channel has a mean and a standard deviation of its own: here all share the first's.",
             lambda x, m, s: _normalised(first(x) / 255, m[:1].expand(m.shape), s[:1].expand(s.shape))),
            ("Each channel has a mean of its own: here all share one.",
             lambda x, m, s: _normalised(first(x) / 255, m.mean().expand(m.shape), s)),
            ("std is the standard deviation, not the variance: divide by it as it is.",
             lambda x, m, s: _normalised(first(x) / 255, m, s**2)),
            ("std is the standard deviation, not the variance: divide by it as it is.",
             lambda x, m, s: _normalised(first(x) / 255, m, s.sqrt())),
            ("The standard deviation divides; here it multiplies.", lambda x, m, s: _normalised(first(x) / 255, m, 1 / s)),
            ("The mean is subtracted; here it is added.", lambda x, m, s: _normalised(first(x) / 255, -m, s)),
            ("The sign is wrong: pixels - mean, not mean - pixels.", lambda x, m, s: -_normalised(first(x) / 255, m, s)),
            ("The mean is not subtracted.", lambda x, m, s: _normalised(first(x) / 255, 0 * m, s)),
            ("Nothing is divided by the standard deviation.", lambda x, m, s: _normalised(first(x) / 255, m, 0 * s + 1)),
            ("The pixels are scaled to 0 … 1, and mean and std are not used.", lambda x, m, s: first(x) / 255),
            ("mean and std are not used: they are 0.5 for some checkpoints and not for others.",
             lambda x, m, s: first(x) / 127.5 - 1),
            ("Subtract the mean, then divide the difference: a division binds stronger than a minus.",
             lambda x, m, s: first(x) / 255 - (m / s)[:, None, None]),
            ("Normalised pixels may be negative: cut nothing off.",
             lambda x, m, s: _normalised(first(x) / 255, m, s).clamp(min=0)),
            ("Normalised pixels go below 0 and above 1: cut nothing off.",
             lambda x, m, s: _normalised(first(x) / 255, m, s).clamp(0, 1)),
            ("Normalised pixels go below -1 and above 1: cut nothing off.",
             lambda x, m, s: _normalised(first(x) / 255, m, s).clamp(-1, 1)),
            ("A division in whole numbers gives 0 for all bytes but 255: divide with /, not with //.",
             lambda x, m, s: _normalised(first(x) // 255, m, s)),
            *((given, lambda x, m, s, change=change, correction=correction: change(first(x), correction))
              for change in (own, own_of_batch) for correction in (0, 1)),
            (_ALONG, lambda x, m, s: (first(x) / 255 - m) / s),
            ("The result is (batch, channels, height, width): the channels are still last.",
             lambda x, m, s: (x / 255 - m) / s),
            ("Each picture keeps its own pixels: every one comes out as the first.",
             lambda x, m, s: _normalised(first(x[:1]).expand(first(x).shape) / 255, m, s)),
            ("The pictures come out upside down: rows stay in their order.",
             lambda x, m, s: _normalised(first(x).flip(2) / 255, m, s)),
            ("The pictures come out mirrored: columns stay in their order.",
             lambda x, m, s: _normalised(first(x).flip(3) / 255, m, s)),
        ]
    ]  # fmt: skip


def to_pixel_values(function: Callable) -> Verdict:
    """Lesson 14: `function(images, mean, std)`, from bytes to what a model takes, (batch, channels, height, width) in float32.

    images: uint8 in numpy, (batch, height, width, channels). mean, std: lists of one number a channel, of pixels between 0
    and 1: (pixel / 255 - mean) / std.
    """
    generator = np.random.default_rng()
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.5]

    def fixed(values):
        return np.array(values, dtype=np.uint8)

    def drawn(*shape):
        return generator.integers(0, 256, shape).astype(np.uint8)

    def spread(low, high, count):
        """Numbers between two, no two alike."""
        return [round(float(low + (high - low) * (index + generator.uniform(0.2, 0.8)) / count), 3) for index in range(count)]

    colour = [51, 102, 204]
    grey = [[[0], [102]], [[0], [102]]] * np.ones(3, dtype=np.uint8)
    plain = [
        ("one pixel of one channel", fixed([[[[51]]]]), mean[:1], std[:1], ""),
        ("one pixel of three channels", fixed([[[colour]]]), mean, std, "This picture has three channels, with a mean each."),
        ("2 x 2 pixels of one colour", fixed([[[colour] * 2] * 2]), mean, std,
         "All pixels are alike here: after the channels were moved, is every element of a channel the same number?"),
        ("2 x 2 pixels whose two columns differ", fixed([grey]), mean, std, "Two columns of pixels differ here, rows do not."),
        ("2 x 2 pixels whose two rows differ", fixed([grey.transpose(1, 0, 2)]), mean, std,
         "Two rows of pixels differ here, columns do not."),
        ("a picture of 1 x 3 pixels", fixed([[[[0] * 3, colour, [255] * 3]]]), mean, std, "This picture is wider than high."),
    ]  # fmt: skip
    free = [
        ("two pictures of 3 x 2 pixels, one channel", drawn(2, 3, 2, 1), spread(0.3, 0.6, 1), spread(0.1, 0.3, 1),
         "This batch has two pictures, higher than wide."),
        ("two pictures of 5 x 3 pixels, four channels", drawn(2, 5, 3, 4), spread(0.1, 0.9, 4), spread(0.1, 0.5, 4),
         "This batch has pictures of four channels: the number of them is images.shape[3]."),
        ("three pictures of 16 x 12 pixels", drawn(3, 16, 12, 3), spread(0.2, 0.8, 3), spread(0.1, 0.5, 3), ""),
    ]  # fmt: skip
    double = torch.float64
    cases = []
    for label, images, means, stds, news in (*plain, *free):
        pixels = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2) / 255
        expected = _normalised(pixels, torch.tensor(means, dtype=double), torch.tensor(stds, dtype=double))
        cases.append(_Case(label, (images, means, stds), expected, news))
    shown = {label for label, *_ in plain}

    def close(result, other):
        """Up to a few roundings of float32; where the right values are at most 10."""
        return ((result.double() - other).abs() <= 2e-6 * (10 + other.abs())) | (result.isnan() & other.isnan())

    def compare(case, arguments, result):
        for name, before, now in zip(("images", "mean", "std"), case.arguments, arguments):
            if np.shape(before) != np.shape(now) or not np.array_equal(before, now):
                raise Wrong(
                    f"Your function changed its input {name}.", "Work on a new array or tensor, with no operation in place."
                )
        if not isinstance(result, torch.Tensor):
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return one PyTorch tensor.")
        if result.dtype != torch.float32:
            hint = {
                torch.float64: "NumPy computes in float64 wherever Python's floats meet bytes: the model takes float32.",
                torch.float16: "The model decides later in which type it computes: pixel values are in float32.",
                torch.bfloat16: "The model decides later in which type it computes: pixel values are in float32.",
            }.get(result.dtype, "Pixel values are no whole numbers: divide with /, and convert nothing back to bytes.")
            raise Wrong(f"The result is in the wrong type: {type_name(result.dtype)}, and float32 was expected.", hint)
        if result.shape != case.expected.shape:
            raise Wrong(f"The result has the shape {tuple(result.shape)}, and {tuple(case.expected.shape)} was expected.", "")
        wrong = ~close(result.detach(), case.expected).numpy()
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            numbers = f": expected {case.expected[place]:.5g}, got {result[place]:.5g}" if case.label in shown else ""
            raise Wrong(f"First wrong element: {index_text(wrong)}{numbers}.", "")

    def same(result, other):
        return isinstance(result, torch.Tensor) and result.shape == other.shape and bool(close(result.detach(), other).all())

    def explain(outcomes):
        for hint, mistake in _pixel_mistakes():
            if _made_by(mistake, outcomes, same):
                return hint
        first = _first_wrong(outcomes)
        if isinstance(first.error, NameError):
            return _exception_hint(first.error)
        if first.error is not None and "must match the size of tensor" in str(first.error):
            return _ALONG
        if isinstance(first.result, torch.Tensor) and first.result.ndim != 4:
            return "The result has four dimensions, (batch, channels, height, width), for a batch of one picture too."
        near = [o.error is None and isinstance(o.result, torch.Tensor) and o.result.shape == o.case.expected.shape and bool(
            ((o.result - o.case.expected).abs() <= 2e-3 * (2 + o.case.expected.abs())).all()) for o in outcomes]  # fmt: skip
        if all(near):
            return "Only about three digits are right: something is computed or stored in float16 on the way."
        if first.case.news:
            return first.case.news
        if first.error is not None:
            return _exception_hint(first.error)
        return "Work this pixel out by hand: its byte divided by 255, less its channel's mean, divided by its channel's std."

    return _judge(
        function,
        cases,
        compare,
        explain,
        "one pixel, one colour, pictures whose columns and whose rows differ, wide and high ones, batches, 1, 3 and 4 channels, "
        "and bytes, means and deviations drawn at random",
    )


# ---- Bytes ------------------------------------------------------------------------------------------------------------------

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _file(tensors: dict[str, torch.Tensor], lie: list[str], spaces: bool) -> bytes:
    """A file whose header lists the tensors in their order, while their data lie as in `lie`.

    spaces: whether they end the header, up to a multiple of 8, as the library writes it. Else it ends with its bracket.
    """
    offsets, data = {}, b""
    for name in lie:
        offsets[name] = [len(data), len(data) + len(_bytes_of(tensors[name]))]
        data += _bytes_of(tensors[name])
    entries = {
        name: {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets[name]}
        for name, tensor in tensors.items()
    }
    header = json.dumps(entries, ensure_ascii=False).encode()
    header += b" " * (8 + -len(header) % 8) * spaces
    return len(header).to_bytes(8, "little") + header + data


def _parse(
    path: Path,
    base: Callable[[int], int] = lambda length: 8 + length,
    extent: Callable[[int, int, int], tuple[int, int]] = lambda begin, end, itemsize: (begin, end),
    follow: bool = False,
    change: Callable[[bytes, torch.dtype], bytes] = lambda data, dtype: data,
    types: tuple[str, ...] = tuple(_DTYPES),
    shape: Callable[[list[int]], list[int]] = lambda shape: shape,
) -> dict[str, torch.Tensor]:
    """Read a file, with one of the ways to do so replaced. follow: each tensor begins where the one before it ended."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors, at = {}, 0
    for name, entry in header.items():
        if entry["dtype"] not in types:
            raise KeyError(entry["dtype"])
        dtype = _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        if follow:
            begin, end, at = at, at + end - begin, at + end - begin
        start, stop = (base(length) + offset for offset in extent(begin, end, dtype.itemsize))
        piece = bytearray(change(data[start:stop], dtype))
        values = torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)
        tensors[name] = values.reshape(shape(entry["shape"]))
    return tensors


def _byte_mistakes() -> list[tuple[str, Callable]]:
    def with_(**changes):
        return lambda path: _parse(path, **changes)

    def swapped(data, dtype):
        return np.frombuffer(data, dtype=np.dtype(f"u{dtype.itemsize}")).byteswap().tobytes()

    def through(kind):
        """Whole numbers that went through floats."""

        def change(data, dtype):
            if dtype != torch.int64 or not data:
                return data
            return _bytes_of(torch.frombuffer(bytearray(data), dtype=dtype).to(kind).long())

        return change

    def count_up(data, dtype):
        """The bits of a bfloat16 taken for a whole number, and that for a value."""
        if dtype != torch.bfloat16 or not data:
            return data
        return _bytes_of(torch.from_numpy(np.frombuffer(data, np.uint16).astype(np.int64)).to(dtype))

    def as_float16(data, dtype):
        if dtype != torch.bfloat16 or not data:
            return data
        return _bytes_of(torch.frombuffer(bytearray(data), dtype=torch.float16).to(dtype))

    beyond = "Offsets count from the end of the header: "
    return [
        (beyond + "before the data lie its 8 bytes of length and the header itself.", with_(base=lambda length: 0)),
        (beyond + "the header itself lies before the data as well, not only its length.", with_(base=lambda length: 8)),
        (beyond + "the 8 bytes that hold its length lie before the data as well.", with_(base=lambda length: length)),
        ("Data begin right behind the header, wherever that ends: nothing is rounded up.",
         with_(base=lambda length: -(-(8 + length) // 8) * 8)),
        ("The header lists tensors in any order: where one lies say its data_offsets, not the tensors before it.",
         with_(follow=True)),
        ("The second of data_offsets is where the tensor ends, not how many bytes it has.",
         with_(extent=lambda begin, end, size: (begin, begin + end))),
        ("The first of data_offsets is where the tensor begins: here all begin at 0.",
         with_(extent=lambda begin, end, size: (0, end - begin))),
        ("data_offsets count bytes, not elements.",
         with_(extent=lambda begin, end, size: (begin * size, begin * size + end - begin))),
        ("Numbers lie in the file with their lowest byte first, little-endian: yours are read the other way round.",
         with_(change=swapped)),
        ("Whole numbers of 64 bits do not fit in a float: read I64 as integers.", with_(change=through(torch.float64))),
        ("Whole numbers of 64 bits do not fit in a float: read I64 as integers.", with_(change=through(torch.float32))),
        ("A BF16 is two bytes that are to be taken as bfloat16; here they are taken for a whole number first.",
         with_(change=count_up)),
        ("BF16 is bfloat16, with 8 bits of exponent: its bits are no float16's.", with_(change=as_float16)),
    ]  # fmt: skip


def _header_hint(error: BaseException, data: bytes) -> str:
    """For an exception in decoding the header: by which bytes were handed to the decoder."""
    length = int.from_bytes(data[:8], "little")
    text = (
        (error.doc if isinstance(error.doc, bytes) else error.doc.encode()) if isinstance(error, json.JSONDecodeError) else None
    )
    handed = bytes(error.object) if isinstance(error, UnicodeDecodeError) else text
    if handed is None:
        return ""
    little = "The first 8 bytes are its length, the lowest byte first: little-endian."
    if handed == data[8 : 8 + length]:
        return "The header is UTF-8: json.loads takes its bytes as they are."
    if handed and data.startswith(handed):
        return "The header begins at byte 8: the 8 bytes before it are its length, and not JSON."
    if handed and data[4:].startswith(handed):
        return "The length takes 8 bytes, not 4: the header begins at byte 8."
    if handed and data[8:].startswith(handed):
        if len(handed) in (length - 8, length - 1):
            return "The header has `length` bytes and begins at byte 8: it ends at byte 8 + length."
        if len(handed) > length:
            return f"What is decoded reaches past the end of the header, into the data. {little}"
        if len(handed) in (length % 256, length % 65536, length % 256 - 8, length % 65536 - 8):
            return f"The length was read from too few bytes. {little}"
        return f"What is decoded ends before the header does. {little}"
    if not handed:
        return f"No bytes were left to decode. {little} The header follows them."
    return f"What is decoded are not the header's bytes. {little} The header follows them."


@contextlib.contextmanager
def _watched(function: Callable, called: list[str]) -> Iterator[None]:
    """While it is on, safetensors' own readers leave a word in `called`, wherever the function has them from."""
    import safetensors
    import safetensors.numpy
    import safetensors.torch

    from ... import weights

    modules = (safetensors, safetensors.torch, safetensors.numpy)
    names = ("safe_open", "_safe_open_handle", "deserialize", "load_file", "load")
    readers = {id(vars(module)[name]): name for module in modules for name in names if name in vars(module)}

    def noted(original):
        def call(*arguments, **keywords):
            called.append(readers[id(original)])
            return original(*arguments, **keywords)

        return call

    places = [*map(vars, (*modules, weights)), getattr(function, "__globals__", {})]
    found = [(place, name, value) for place in places for name, value in list(place.items()) if id(value) in readers]
    try:
        for place, name, value in found:
            place[name] = noted(value)
        yield
    finally:
        for place, name, value in found:
            place[name] = value


def read_safetensors(function: Callable) -> Verdict:
    """Lesson 14: `function(path)`, the tensors of a safetensors file in a dictionary, read from its bytes.

    8 bytes, little-endian: the length of the header. The header, in JSON: for each name its dtype (F32, F16, BF16, I64 or
    U8), its shape, and data_offsets, [begin, end], which count from the end of the header; and "__metadata__" or not.
    """
    from safetensors.torch import save_file

    randn = torch.randn
    whole = torch.tensor([(1 << 53) + 1, -(1 << 62) - 7, 5])
    typed = {
        "half": randn(2, 4).half(),
        "brain": randn(3, 2).bfloat16(),
        "count": torch.cat([whole, torch.randint(-(1 << 40), 1 << 40, (5,))]),
        "pixels": torch.randint(0, 256, (2, 3, 5), dtype=torch.uint8),
        "float": torch.cat([torch.tensor([-0.0, torch.inf, 1e-42]), randn(4)]),
    }
    dotted = {"vit.encoder.layer.0.output.dense.weight": randn(4, 3), "vit.encoder.layer.0.output.dense.bias": randn(4)}
    hollow = {"scale": randn(()), "nothing": randn(0), "none": randn(0, 3).half(), "last": randn(2, 1)}
    mixed = {"c": randn(2, 2), "a": randn(3), "b": randn(1, 5), "d": randn(2).half()}
    odd = {"bytes": torch.randint(0, 256, (3,), dtype=torch.uint8), "weight": randn(2, 3), "brain": randn(3).bfloat16()}
    files = [
        # Its numbers are fixed, so that what an exception says of them is always the same.
        ("one float32 vector of 3", {"x": torch.tensor([1.0, -2.5, 3.25])}, {}, None, ""),
        ("one float32 matrix of 2 x 3", {"x": randn(2, 3)}, {}, None, "This tensor is a matrix: its shape is in the header."),
        ("three float32 tensors", {"first": randn(4), "second": randn(2, 2), "third": randn(3)}, {}, None,
         "There are three tensors here: each lies from the one to the other of its data_offsets."),
        ("tensors of all five types", typed, {}, None, "The header says each tensor's type: F32, F16, BF16, I64 or U8."),
        ("names with dots, and metadata", dotted, {"format": "pt"}, None,
         '"__metadata__" in the header is about the file, and no tensor.'),
        ("a scalar, and tensors with no elements", hollow, {}, None,
         "A scalar's shape is [], and a tensor with a 0 in its shape has no bytes at all, which torch.frombuffer refuses."),
        ("tensors that lie in another order than the header lists them", mixed, {}, (list("abcd"), True),
         "The header lists tensors in any order: where one lies say its data_offsets."),
        ("a header whose length is no multiple of 8", odd, {}, (list(odd), False),
         "Data begin right behind the header, at any byte: a view that wants multiples of its element's size does not fit."),
        ("a header of more than 65,536 bytes", {"x": randn(3)}, {"notes": "." * 66_000}, None,
         "The header is long here: all 8 bytes of its length count."),
        ("names that are not ASCII", {"größe": randn(3), "重み": randn(2)}, {}, None,
         "Names are UTF-8, where a letter may have several bytes: decode them as that, and count bytes, not characters."),
    ]  # fmt: skip
    called: list[str] = []

    @functools.wraps(function)
    def watched(path):
        called.clear()
        with _watched(function, called):
            return function(path)

    def compare(case, arguments, result):
        if called:
            raise Wrong(
                "Your function lets safetensors read the file.",
                "The point is to read the bytes yourself: 8 bytes of length, the header, then the data.",
            )
        if case.arguments[0].read_bytes() != before[case.label]:
            raise Wrong("Your function changed the file.", 'Open it to read only: "rb", or mode="r" for a memory map.')
        if not isinstance(result, Mapping):
            raise Wrong(f"Your function returned a {type(result).__name__}.", "Return a dictionary of names to tensors.")
        for name, right in case.expected.items():
            if name not in result:
                hint = "The dictionary's keys are the names as they stand in the header, whole: each is a string with its dots."
                if not right.numel() and any(one in result for one in case.expected):
                    hint = "A tensor with no elements is one as well: it has a name, a type and a shape."
                if not name.isascii():
                    hint = case.news
                if not result:
                    hint = "Your dictionary is empty: each tensor that the header lists becomes an entry."
                raise Wrong(f"{name} is missing in your dictionary.", hint)
            _compare_tensor(name, result[name], right)
        surplus = [name for name in result if name not in case.expected]
        if surplus:
            hint = "Only the names in the header belong in the dictionary."
            if surplus[0] == "__metadata__":
                hint = '"__metadata__" in the header is about the file, and no tensor.'
            if any(surplus[0] in case.expected for case in cases):
                hint = "It is left over from a file that was read before: make a new dictionary in every call."
            raise Wrong(f"Your dictionary has {surplus[0]!r}, which is no tensor of the file.", hint)

    def same(result, other):
        return (
            isinstance(result, Mapping)
            and set(result) == set(other)
            and all(isinstance(value, torch.Tensor) for value in result.values())
            and all(_same_bits(result[name], value) for name, value in other.items())
        )

    def explain(outcomes):
        first = _first_wrong(outcomes)
        if first.error is not None and (hint := _header_hint(first.error, before[first.case.label])):
            return hint
        if isinstance(first.error, NameError):
            return _exception_hint(first.error)
        for hint, mistake in _byte_mistakes():
            if _made_by(mistake, outcomes, same):
                return hint
        if isinstance(first.error, (MemoryError, OverflowError)):
            return "That number is far too large: the length of the header lies in 8 bytes with the lowest first, little-endian."
        if first.case.news:
            return first.case.news
        if isinstance(first.error, KeyError):
            return "The header is a dictionary: its keys are tensors' names, and each has dtype, shape and data_offsets."
        if first.error is not None:
            return _exception_hint(first.error)
        return "Take this file's bytes apart by hand: data[:8], the header, and what follows it. Data begin at byte 8 + length."

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cases, before = [], {}
        for index, (label, tensors, metadata, by_hand, news) in enumerate(files):
            path = Path(folder) / f"{index}.safetensors"
            if by_hand:
                path.write_bytes(_file(tensors, *by_hand))
            else:
                save_file(tensors, path, metadata=metadata or None)
            before[label] = path.read_bytes()
            cases.append(_Case(label, (path,), tensors, news))

        def clean(case, text):
            text = text.replace(str(case.arguments[0]), "the file").replace(folder, "the folder")
            # What does not decode depends on the data, which in the first file alone are always the same.
            return text if case is cases[0] else re.sub(r"((?:Unicode|JSON)DecodeError):.*", r"\1.", text)

        return _judge(
            watched if callable(function) else function,
            cases,
            compare,
            explain,
            "files with one tensor and with many, of all five types, scalars and tensors with no elements, names with dots and "
            "in UTF-8, metadata, headers short, long and of any length, and data in another order than the header's",
            clean,
        )


def _same_bits(value: torch.Tensor, right: torch.Tensor) -> bool:
    return value.dtype == right.dtype and value.shape == right.shape and torch.equal(_bits(value), _bits(right))


def _compare_tensor(name: str, value: Any, right: torch.Tensor) -> None:
    """Refuse a tensor that is not the file's bit for bit."""
    if not isinstance(value, torch.Tensor):
        hint = (
            "Names with dots are whole names, and no folders."
            if isinstance(value, Mapping)
            else "The values are PyTorch tensors."
        )
        raise Wrong(f"{name} is a {type(value).__name__}.", hint)
    if value.dtype != right.dtype:
        code = _CODES[right.dtype]
        raise Wrong(
            f"{name} is in {type_name(value.dtype)}, and {type_name(right.dtype)} was expected.",
            f"The header says {code} for this tensor, which is torch.{type_name(right.dtype)}: its bytes are taken as that.",
        )
    if value.shape != right.shape:
        hint = "The header says the shape of each tensor, and its elements lie row by row: reshape to it."
        if not right.ndim:
            hint = "A shape of [] is one too, of a single number with no dimensions: `if shape` takes it for no shape."
        elif right.ndim > 1 and tuple(value.shape) == tuple(right.shape)[::-1]:
            hint = "The header has the shape in PyTorch's order: do not turn it round."
        elif not right.numel():
            hint = "A tensor with no elements has a shape as well: (0, 3) is not (0,)."
        raise Wrong(f"{name} has the shape {tuple(value.shape)}, and {tuple(right.shape)} was expected.", hint)
    wrong = (_bits(value) != _bits(right)).numpy()
    if wrong.any():
        raise Wrong(f"First wrong element of {name}: {index_text(wrong)}.", "")
