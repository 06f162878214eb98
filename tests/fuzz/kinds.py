"""The kinds of files that the suite reads: how to make one, and how the suite reads it."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from itr import checkpoint
from itr.data.config import DataConfig
from itr.data.downstream.open import open_items
from itr.data.images.decode import decode, read_bytes
from itr.data.layouts.region_arrays import check_regions_finite
from itr.data.layouts.registry import open_split
from itr.data.records import Split
from itr.data.text.tokenizer import Tokenizer
from itr.evaluation import stored_embeddings
from itr.evaluation.predictions import Predictions, read_predictions
from itr.evaluation.query_log import read_queries
from itr.evaluation.score_matrices import evaluate_file
from itr.jobs import run_dir
from itr.jobs.init_weights import initialize_from
from itr.jobs.load_checkpoint import load_checkpoint
from itr.models.base import Encoded
from itr.models.build import model_meta
from itr.nn.bert.pretrained import load_pretrained
from itr.official.load import importer_of, load_official, recognize
from itr.results.accuracy_tables import results_tables
from itr.results.collect import collect, find_results
from itr.results.export import to_csv, to_latex, to_markdown
from itr.results.paper_tables import paper_tables
from itr.results.published import load_published
from itr.sweep.run_files import metric_values
from itr.sweep.spec import read_sweep
from tests.data import item_files, worlds
from tests.fuzz.damage import damaged, forged
from tests.models.tiny import build
from tests.results.synthetic_runs import run

Change = Callable[[random.Random, Path], None]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    ``make(folder)`` writes one with what belongs to it and returns its path; ``read(path)`` returns
    what the suite reads, as something that compares. ``exact``: a change is always noticed, since
    the file holds checksums.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    change: Change = lambda chance, path: path.write_bytes(damaged(chance, path.read_bytes()))
    exact: bool = False
    named: Callable[[Path], str] = lambda path: path.name  # what a refusal names


def digest(*parts: Any) -> str:
    """A hash of values, arrays and tensors."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().numpy()
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


# Checkpoints and weights


def make_checkpoint(folder: Path) -> Path:
    """One of ours, of a tiny HREM with a tokenizer."""
    model, path = build("hrem"), folder / "best.safetensors"
    words = [f"w{n}" for n in range(30)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = Tokenizer(tokens).to_json()
    meta = {**model_meta(model), "model_name": "hrem", "loss": None, "tokenizer": tokenizer}
    config = {"data": {"name": "scenes", "root": "data"}, "task": {"name": "retrieval"}, "seed": 0}
    meta |= {"config": config, "best": {"updates": 4}, "precision": "fp32", "depth": {}}
    checkpoint.write(path, {f"model/{k}": v for k, v in model.state_dict().items()}, meta)
    return path


def read_checkpoint(path: Path) -> Any:
    """As `itr.load` and an evaluation read it."""
    loaded = load_checkpoint(path)
    state = loaded.model.state_dict()
    loaded.task_node({})
    return digest(loaded.tokenizer.to_json(), loaded.data, *state, *state.values())


def forge_header(chance: random.Random, path: Path) -> None:
    """Another value in the JSON of the header, with the right checksums."""
    meta, tensors = checkpoint.read_meta(path), load_file(path)
    checkpoint.write(path, tensors, forged(chance, meta))


def start_from(path: Path) -> Any:
    """As ``model.init`` reads it."""
    model = build("hrem", "seed=1")
    initialize_from(model, "hrem", str(path))
    return digest(*model.state_dict().values())


def make_official(name: str, folder: Path) -> Path:
    """A file of the authors of method ``name``."""
    path = folder / f"{name}.pth"
    torch.save(importer_of(name).module.export(build(name)), path)
    return path


def read_official(name: str, path: Path) -> Any:
    """As ``itr official inspect`` reads it."""
    config = OFFICIAL[name].config
    told = {"heads": config.text.heads}
    if hasattr(getattr(config, "image", None), "heads"):
        told["image_heads"] = config.image.heads
    elif hasattr(getattr(config, "image", None), "head_width"):
        told["head_width"] = config.image.head_width
    model, _ = load_official(path, recognize(path), told)
    return digest(*model.state_dict().values())


def forge_pickle(chance: random.Random, path: Path) -> None:
    """Damage inside the archive that its checksums do not show."""
    content = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content[name] = archive.read(name)
    name = chance.choice([name for name in content if content[name]])
    if chance.random() < 0.5:
        name = next(name for name in content if name.endswith("data.pkl"))
    content[name] = damaged(chance, content[name])
    _write_zip(path, content)


def _write_zip(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


OFFICIAL = {name: build(name) for name in ("hrem", "user", "vse", "alip", "albef", "multisea")}


def make_bert(folder: Path) -> Path:
    """A folder of the hub; the file is its weights."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=20, intermediate_size=8, **sizes))
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def read_bert(path: Path) -> Any:
    """As ``model.pretrained=true`` reads it."""
    from transformers import BertConfig, BertModel

    key = "model.text.name"
    model = load_pretrained(str(path.parent), key, "bert", BertModel, BertConfig)
    state = model.state_dict()
    return digest(*(v for k, v in state.items() if not k.startswith("pooler")))


def make_tokenizer(folder: Path) -> Path:
    """The tokenizer.json of a BERT."""
    vocabulary = {t: n for n, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"normalizer": {"lowercase": True}, "model": model}))
    return path


# Scores and results


def make_scores(folder: Path) -> Path:
    """A score file with ids."""
    draw = np.random.default_rng(0)
    owner, path = np.repeat(np.arange(8), 2), folder / "scores.npz"
    scores = draw.normal(size=(8, 16)).astype(np.float32)
    ids = {"image_ids": np.arange(8), "caption_ids": np.arange(16)}
    np.savez(path, scores=scores, text_to_image=owner, **ids)
    return path


def forge_array(chance: random.Random, path: Path) -> None:
    """Another dtype, shape or value, or other bytes with the right checksums."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(list(content))
    if chance.random() < 0.5:
        content[name] = damaged(chance, content[name])
    else:
        array = np.load(io.BytesIO(content[name]), allow_pickle=False)
        changes: list[Callable[[], Any]] = [
            lambda: array[:-1] if array.ndim else array[None],
            lambda: array.astype("U") if array.dtype.kind != "U" else np.zeros(3),
            lambda: array.astype(np.longdouble) if array.dtype.kind in "iuf" else array[None],
            lambda: array[None],
            lambda: np.full_like(array, chance.choice((0, -1, 127))),
            lambda: np.full(array.shape, chance.choice((np.inf, np.nan, -np.inf, 3e38, 1e300))),
            lambda: np.full(array.shape, 2**63 + 5, np.uint64),
            lambda: np.zeros(0),
        ]
        held = io.BytesIO()
        np.save(held, chance.choice(changes)())
        content[name] = held.getvalue()
    _write_zip(path, content)


def read_scores(path: Path) -> Any:
    """As ``eval.py scores=`` reads it, with the log that it writes."""
    return digest(sorted(evaluate_file(path, logs=[]).items()))


def make_queries(folder: Path) -> Path:
    """The query log of a run."""
    return run(folder / "a", images=8) / "queries-test.npz"


def make_results(name: str, folder: Path) -> Path:
    """A file of a run beside two others."""
    for number, other in enumerate(("a", "b")):
        run(folder / other, seed=number, images=8, **{"loss": f"loss{number}"})
    return folder / "a" / name


def read_tables(path: Path) -> Any:
    """As ``itr results`` reads the folder: the other run must be shown."""
    runs = find_results([path.parent.parent])
    rows, published = collect(runs, resamples=20), load_published()
    tables = paper_tables(rows, published)
    text = to_markdown(tables) + to_latex(tables) + to_csv(rows, published, tables)
    assert any(row.runs[0].name == "b" for row in rows), "the intact run is not shown"
    for one in runs:
        results_tables(one.results, one.name)
    return digest(text)


def make_predictions(folder: Path) -> Path:
    """The predictions of a run of task=vqa."""
    n = range(6)
    more = [{"answers": [["yes", 0.9], ["no", 0.1]], "votes": ["yes", "no"]} for _ in n]
    made = Predictions(
        "vqa", list(n), list(n), [f"q{k}" for k in n], ["yes"] * 6, ["no"] * 6,
        np.linspace(0, 1, 6), [None] * 6, more,
    )  # fmt: skip
    return made.save(folder, "test")


def read_predicted(path: Path) -> Any:
    """As galleries and comparisons read it."""
    from itr.results.gallery.item_page import _details

    found = read_predictions(path.parent, "test")
    return digest(found.texts, found.scores, [_details(detail) for detail in found.details])


def forge_json(chance: random.Random, path: Path) -> None:
    """Another value in a JSON file, or in one line of a file of lines."""
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        place = chance.randrange(len(lines))
        lines[place] = json.dumps(forged(chance, json.loads(lines[place])))
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".yaml":
        content = forged(chance, yaml.safe_load(path.read_text()))
        text = yaml.safe_dump(content, allow_unicode=True)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        path.write_text(json.dumps(forged(chance, json.loads(path.read_text()))))


def forge_metadata(chance: random.Random, path: Path) -> None:
    """Another value in the JSON inside a query log."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = chance.choice(("metadata", "folds", "depths"))
    arrays[name] = np.array(json.dumps(forged(chance, json.loads(str(arrays[name])))))
    np.savez(path, **arrays)


PROVENANCE = {"checkpoint_sha256": "ab", "data_hash": "cd", "split": "test"}


def make_embeddings(folder: Path) -> Path:
    """What ``embeddings=FILE`` keeps."""
    path, draw = folder / "embeddings.safetensors", torch.Generator().manual_seed(0)
    sides = [Encoded(torch.randn(n, 4, generator=draw), None, None) for n in (3, 6)]
    stored_embeddings.save(path, *sides, PROVENANCE)
    return path


def read_embeddings(path: Path) -> Any:
    """As an evaluation reads them."""
    images, texts = stored_embeddings.load(path, PROVENANCE, tokens=False)
    return digest(images.pooled, texts.pooled)


def make_metrics(folder: Path) -> Path:
    """The log of a run."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "val/rsum": 10.0 * n}) + "\n" for n in range(9)))
    return path


# Datasets


def make_dataset(layout: str, name: str, folder: Path) -> Path:
    """A small dataset in a layout; the file is the first that ``name`` matches."""
    items = worlds.make_items((4, 2, 2), captions=5 if layout == "precomp" else None)
    worlds.write(layout, folder, items)
    return min(folder.rglob(name))


def make_table(ending: str, folder: Path) -> Path:
    """A table of pairs."""
    return worlds.write_table(folder, worlds.make_items((4, 2, 2)), ending)


def _root(path: Path) -> Path:
    return next(p for p in path.parents if (p / "root").exists())


def read_dataset(path: Path, **options: Any) -> Any:
    """The training split with its first pictures or regions."""
    data = DataConfig("coco", str(_root(path)), cache=str(_root(path) / "cache"), **options)
    kind = "regions" if path.suffix in (".npy", ".txt") else "pixels"
    return _content(open_split(data, "train", kind))


def _content(split: Split) -> str:
    if split.regions is not None:
        check_regions_finite(split)
        shown: list[Any] = [np.asarray(split.regions)]
    else:
        shown = []
        for record in split.records[:2]:
            assert not isinstance(record.image, int)
            image = record.image
            shown.append(decode(read_bytes(image), str(image), split.decoder))
    ids = [(r.image_id, r.caption_ids) for r in split.records]
    return digest(split.captions(), ids, *shown)


def read_table(path: Path) -> Any:
    """As ``data=table`` reads it."""
    return read_dataset(path, train=str(path))


def make_questions(folder: Path) -> Path:
    """The annotations of task=vqa in the form of ALBEF's lists."""
    item_files.write_vqa_lists(folder)
    return folder / "vqa_train.json"


def read_questions(path: Path) -> Any:
    """The items of the training split."""
    data = DataConfig("vqa2", str(path.parent), cache=str(path.parent / "cache"))
    split = open_items(data, "vqa", "train")
    return digest(split.captions(), split.items)


# Configuration


SWEEP = {
    "program": "train.py",
    "method": "grid",
    "metric": {"name": "val/rsum", "goal": "maximize"},
    "parameters": {"optim.lr": {"values": [0.1, 0.01]}, "seed": {"value": 0}},
    "command": ["${env}", "python", "${program}", "${args_no_hyphens}"],
}


def make_sweep(folder: Path) -> Path:
    """A sweep file."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return path


def read_sweep_file(path: Path) -> Any:
    """As ``itr sweep`` reads it."""
    sweep = read_sweep(path)
    values = {key: parameter.values for key, parameter in sweep.parameters.items()}
    return digest(sweep.program, sweep.method, sorted(values.items()))


RUN = {"model": {"name": "hrem"}, "data": {"name": "scenes"}, "loss": {"name": "hrem"},
       "task": {"name": "retrieval"}, "seed": 0, "resume": "auto"}  # fmt: skip


def make_run(name: str, folder: Path) -> Path:
    """A file of an unfinished run with a checkpoint."""
    path = folder / "run"
    make_checkpoint(folder)
    (path / "checkpoints").mkdir(parents=True)
    best = folder / "best.safetensors"
    meta = {**checkpoint.read_meta(best), "config": RUN, "manifest": MANIFEST}
    checkpoint.write(path / "checkpoints" / "last.safetensors", load_file(best), meta)
    best.unlink()
    run_dir.write_config(path, RUN)
    run_dir.write_manifest(path, MANIFEST)
    return path / name


MANIFEST = {"train": {"hash": "ab", "source": "x", "images": 3, "captions": 5}}


def read_run(path: Path) -> Any:
    """As ``resume=auto`` opens it: it goes on."""
    folder, finished = run_dir.open_run({**RUN, "out": str(path.parent)})
    run_dir.write_manifest(folder, MANIFEST)
    return digest(finished)


def make_study(folder: Path) -> Path:
    """The study of a search."""
    import optuna

    make_sweep(folder)
    path = folder / "study.db"
    study = optuna.create_study(study_name="sweep", storage=f"sqlite:///{path}")
    for value in (1.0, 2.0):
        trial = study.ask({"optim.lr": optuna.distributions.FloatDistribution(0.01, 0.1)})
        study.tell(trial, value)
    return path


def read_study(path: Path) -> Any:
    """As a search that goes on opens it."""
    from itr.sweep.optuna_search import open_study

    study = open_study(path, "sweep", maximize=False, pruner=None)
    return digest([(trial.params, trial.value) for trial in study.get_trials()])


def damage_any_part(chance: random.Random, path: Path) -> None:
    """Bytes or a forged value."""
    if chance.random() < 0.5:
        forge_json(chance, path)
    else:
        path.write_bytes(damaged(chance, path.read_bytes()))


def _either(forge: Change) -> Change:
    def change(chance: random.Random, path: Path) -> None:
        if chance.random() < 0.5:
            forge(chance, path)
        else:
            path.write_bytes(damaged(chance, path.read_bytes()))

    return change


def _json(layout: str, name: str) -> Kind:
    return Kind(partial(make_dataset, layout, name), read_dataset, damage_any_part)


KINDS = {
    "our checkpoint": Kind(make_checkpoint, read_checkpoint, exact=True),
    "our checkpoint, forged": Kind(make_checkpoint, read_checkpoint, forge_header),
    "our checkpoint as model.init": Kind(make_checkpoint, start_from, forge_header),
    **{
        f"authors' file of {name}": Kind(
            partial(make_official, name), partial(read_official, name), _either(forge_pickle)
        )
        for name in OFFICIAL
    },
    "BERT's weights": Kind(make_bert, read_bert, named=lambda path: path.parent.name),
    "BERT's config.json": Kind(
        lambda folder: make_bert(folder).with_name("config.json"), read_bert, damage_any_part,
        named=lambda path: path.parent.name,
    ),
    "tokenizer.json": Kind(
        make_tokenizer, lambda path: digest(Tokenizer.from_files(str(path.parent)).to_json()),
        damage_any_part, named=lambda path: path.parent.name,
    ),
    "score file": Kind(make_scores, read_scores, _either(forge_array)),
    "query log": Kind(
        make_queries, lambda p: digest(vars(read_queries(p.parent))), _either(forge_array)
    ),
    "query log, forged": Kind(
        make_queries, lambda p: digest(vars(read_queries(p.parent))), forge_metadata
    ),
    "results.json": Kind(partial(make_results, "results.json"), read_tables, damage_any_part),
    "config.yaml": Kind(partial(make_results, "config.yaml"), read_tables, damage_any_part),
    "query log in tables": Kind(
        partial(make_results, "queries-test.npz"), read_tables, _either(forge_array)
    ),
    "predictions": Kind(make_predictions, read_predicted, damage_any_part),
    "stored embeddings": Kind(make_embeddings, read_embeddings, _either(forge_header)),
    "metrics.jsonl": Kind(
        make_metrics, lambda p: digest(metric_values(p.parent, "val/rsum")), damage_any_part
    ),
    "Karpathy's JSON": _json("karpathy", "dataset_*.json"),
    "COCO's JSON": _json("coco", "captions_train*.json"),
    "ALBEF's lists": _json("lists", "coco_train.json"),
    "questions": Kind(make_questions, read_questions, damage_any_part),
    "JPEG": Kind(partial(make_dataset, "karpathy", "*.jpg"), read_dataset),
    "Arrow": Kind(partial(make_dataset, "arrow", "*_train.arrow"), read_dataset),
    "tar": Kind(partial(make_dataset, "shards", "train/00000.tar"), read_dataset),
    "region array": Kind(partial(make_dataset, "precomp", "train_ims.npy"), read_dataset),
    "captions of regions": Kind(partial(make_dataset, "precomp", "train_caps.txt"), read_dataset),
    **{
        f"table {ending}": Kind(partial(make_table, ending), read_table)
        for ending in (".csv", ".tsv", ".jsonl", ".parquet")
    },
    "sweep file": Kind(make_sweep, read_sweep_file, damage_any_part),
    "config.yaml of a run": Kind(partial(make_run, "config.yaml"), read_run, damage_any_part),
    "data.json of a run": Kind(partial(make_run, "data.json"), read_run, damage_any_part),
    "study.db": Kind(make_study, read_study),
}  # fmt: skip


def prepare(kind: Kind, folder: Path) -> Path:
    """An intact file of ``kind`` below ``folder``, which is marked as the root."""
    folder.mkdir(parents=True)
    (folder / "root").touch()
    return kind.make(folder)


def copy(folder: Path, path: Path, target: Path) -> Path:
    """``path`` inside a copy of ``folder``."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target / path.relative_to(folder)
