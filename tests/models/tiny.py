"""Small models of all methods and batches for them, made as the entry points make them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from itr.batch import Batch
from itr.clock import Clock
from itr.draws import Draws
from itr.instantiate import check
from itr.losses.infonce import InfoNCE
from itr.models.albef import ALBEF
from itr.models.base import RetrievalModel
from itr.models.build import build_model
from itr.training.config import check_config
from itr.training.optim import build_optimizer, clip_gradients
from itr.training.step import Step
from itr.view import Facts
from tests.conftest import compose
from tests.models.model_sizes import MODEL_SIZES

WIDTH, REGIONS, VOCABULARY, MASK = 12, 6, 40, 4
PIXELS, CAPTION = 16, 12  # pixels of a side, most ids of a caption that a pixel model reads
ALL_SIZES = {name: sizes.unit for name, sizes in MODEL_SIZES.items()}


def facts_for(name: str, **known: int | None) -> Facts:
    """What the data of `batch_for` would say of itself."""
    regions = {"region_width": WIDTH, "regions": REGIONS, "guide_width": None}
    own = regions if MODEL_SIZES[name].batch == "regions" else {}
    return Facts(VOCABULARY, **{"mask_id": MASK, **own, **known})  # type: ignore[arg-type]


def build(name: str, *overrides: str, **facts: int | None) -> RetrievalModel:
    """The model as ``train.py model=<name> ...`` builds it, for the data of `batch_for`."""
    return build_from(compose("train", [f"model={name}", *ALL_SIZES[name], *overrides]), **facts)


def build_from(values: dict[str, Any], **facts: int | None) -> RetrievalModel:
    """The model of a resolved configuration."""
    config = check_config(values)
    torch.manual_seed(0)
    return build_model(config.model, values["loss"], facts_for(config.model["name"], **facts))


def config_of(cls: type[RetrievalModel], name: str, **fields: Any) -> Any:
    """``cls``'s own defaults in the sizes of method ``name``, and then ``fields``."""
    sizes = [size.removeprefix("model.") for size in ALL_SIZES[name]]
    return dataclasses.replace(check(OmegaConf.from_dotlist(sizes), cls.Config, "model"), **fields)


def build_directly(
    cls: type[RetrievalModel], name: str, loss: nn.Module | None = None, **fields: Any
) -> Any:
    """A model of `config_of` with every weight 1 and one ``loss`` (InfoNCE) in all slots."""
    torch.manual_seed(0)
    slots = nn.ModuleDict({slot: loss or InfoNCE() for slot in cls.slot_names})
    weights = dict.fromkeys(cls.term_names, 1.0)
    return cls(config_of(cls, name, **fields), slots, weights, facts_for(name))


def build_task(task: str, **fields: Any) -> Any:
    """The ALBEF that ``task`` trains, as `build_directly`."""
    depth = {"answer_depth": 2, **fields}
    if "max_positions" in depth:
        text = config_of(ALBEF, "albef").text
        depth["text"] = dataclasses.replace(text, max_positions=depth.pop("max_positions"))
    cls = ALBEF.class_for(config_of(ALBEF, "albef", task=task))
    return build_directly(cls, "albef", task=task, **depth)  # type: ignore[arg-type]


def item_batch(task: str, size: int = 6, seed: int = 1) -> Batch:
    """A random batch of items of ``task``, as ALBEF reads them; each question has 1 to 3 answers
    of 1 to 3 pieces."""
    random = torch.Generator().manual_seed(seed)
    made, classes = pixel_batch(size, seed=seed), {"entailment": 3, "nlvr2": 2}
    if task in classes:
        made.labels = torch.randint(classes[task], (size,), generator=random)
    if task == "nlvr2":
        made.second_pixels = torch.randn(made.pixels.shape, generator=random)
    if task == "vqa":
        made.answer_counts = tuple(1 + number % 3 for number in range(size))
        pieces = 1 + torch.arange(sum(made.answer_counts)) % 3
        place = torch.arange(5)
        made.answer_mask = place < pieces[:, None] + 2
        tokens = torch.randint(5, VOCABULARY, (len(pieces), 5), generator=random)
        tokens = tokens.masked_fill(place == 0, 2).masked_fill(place == pieces[:, None] + 1, 3)
        made.answer_tokens = tokens * made.answer_mask
        made.answer_weights = 0.1 + torch.rand(len(pieces), generator=random)
    return made


def batch_for(name: str, size: int = 6, ids: list[int] | None = None, seed: int = 1) -> Batch:
    """A random batch that the model of `build` reads; ``ids`` [size] are those of the images."""
    image_id = torch.arange(size) if ids is None else torch.tensor(ids)
    pairs = int((image_id[:, None] == image_id).sum())
    sizes = MODEL_SIZES[name]
    if sizes.batch == "regions":
        return batch(size, seed=seed, image_id=image_id, positive_pairs=pairs)
    if sizes.batch == "pixels":
        return pixel_batch(size, sizes.caption_length, ids, sizes.pad_id, seed)
    random = torch.Generator().manual_seed(seed)
    return Batch(
        image_id=image_id,
        caption_id=torch.arange(size),
        pixels=torch.randn(size, 3, PIXELS, PIXELS, generator=random),
        tokens=clip_texts(size, CAPTION, random),
        second_tokens=clip_texts(size, 7, random),
        positive_pairs=pairs,
    )


def pixel_batch(
    size: int = 6, longest: int = 9, ids: list[int] | None = None, pad: int = 0, seed: int = 1
) -> Batch:
    """Pictures and captions of 3 to ``longest`` ids, all of which begin with id 2."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (size,), generator=random)
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    tokens = torch.randint(5, VOCABULARY, (size, longest), generator=random)
    tokens[:, 0] = 2
    return Batch(
        image_id=torch.arange(size) if ids is None else torch.tensor(ids),
        pixels=torch.randn(size, 3, PIXELS, PIXELS, generator=random),
        tokens=torch.where(mask, tokens, pad),
        token_mask=mask,
    )


def clip_texts(size: int, longest: int, random: torch.Generator) -> Tensor:
    """Ids that end with the largest one, then zeros; one text is ``longest`` ids long."""
    lengths = torch.randint(2, longest + 1, (size,), generator=random)
    lengths[0] = longest
    tokens = torch.randint(1, VOCABULARY - 1, (size, longest), generator=random)
    place = torch.arange(longest)
    tokens = torch.where(place < lengths[:, None], tokens, 0)
    return torch.where(place == lengths[:, None] - 1, VOCABULARY - 1, tokens)


def batch(size: int = 8, shortest: int = 3, seed: int = 0, **fields: Any) -> Batch:
    """Random pairs with captions of ``shortest`` to 9 ids."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, 10, (size,), generator=random)
    lengths[0], lengths[-1] = 9, shortest
    mask = torch.arange(9) < lengths[:, None]
    made = Batch(
        image_id=torch.arange(size),
        caption_id=torch.arange(size),
        regions=torch.randn(size, REGIONS, WIDTH, generator=random),
        region_mask=torch.ones(size, REGIONS, dtype=torch.bool),
        tokens=torch.randint(1, VOCABULARY, (size, 9), generator=random) * mask,
        token_mask=mask,
        positive_pairs=size,
        min_region_length=REGIONS,
        min_token_length=shortest,
    )
    return dataclasses.replace(made, **fields)


class Steps:
    """The trainer's micro-batch, update and clock, without the trainer."""

    def __init__(self, name: str, model: RetrievalModel):
        self.optim = check_config(compose("train", [f"model={name}"])).optim
        self.model, self.clock, self.draws = model.train(), Clock(batches_per_epoch=4), Draws()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.step = Step(model, torch.device("cpu"), None, scaler)
        self.step.set_requires_grad(self.clock)
        self.optimizer = build_optimizer(model, self.optim)

    def sleeps(self, parameter: str) -> bool:
        """Whether the model says that the parameter of this name takes no part."""
        asleep = self.model.sleeping(self.clock)
        return parameter in asleep or parameter.startswith(tuple(f"{name}." for name in asleep))

    def micro_batch(self, given: Batch) -> torch.Tensor:
        """The weighted sum of the terms, after the backward pass."""
        self.model.before_step(self.clock)
        total, _ = self.step.forward(given, self.clock, self.draws)
        self.step.backward(total, 1)
        self.model.after_step(self.clock)
        return total.detach()

    def __call__(self, given: Batch) -> torch.Tensor:
        total = self.micro_batch(given)
        self.update()
        return total

    def update(self) -> None:
        clip_gradients(self.model.parameters(), self.optim.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def save_archive(weights: dict[str, Tensor], path: Path) -> None:
    """A TorchScript archive that holds ``weights``, as OpenAI's files of CLIP do."""
    torch.jit.save(torch.jit.script(_Tree.of(weights)), path)


class _Tree(nn.Module):
    """Modules that hold weights under dotted names."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def of(weights: dict[str, Tensor]) -> _Tree:
        root = _Tree()
        for name, value in weights.items():
            *path, leaf = name.split(".")
            module: nn.Module = root
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, _Tree())
                module = module.get_submodule(part)
            module.register_buffer(leaf, value)
        return root
