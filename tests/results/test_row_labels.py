"""Labels of rows: which options are named, in which order, and the length of training."""

from __future__ import annotations

from typing import Any

from itr.results.row_labels import differing_options, option_labels, training_length

BASE: dict[str, Any] = {
    "resume": None,
    "seed": 0,
    "device": "auto",
    "batch_size": 128,
    "data": {"name": "scenes", "root": "data"},
    "loss": {"name": "triplet", "margin": 0.2},
    "model": {"name": "hrem", "embed_size": 1024},
    "optim": {"name": "adamw", "lr": 1e-3},
    "runtime": {"estimate": True},
    "tracker": {"name": "wandb"},
    "trainer": {"epochs": 30, "max_steps": None, "log_every": 20},
}


def changed(**options: Any) -> dict[str, Any]:
    """BASE with other values; a dot is written as two underscores."""
    config = {key: dict(v) if isinstance(v, dict) else v for key, v in BASE.items()}
    for key, value in options.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[key] = value
    return config


def test_bookkeeping_is_never_named():
    other = changed(resume="auto", seed=3, device="cpu", runtime__estimate=False,
                    tracker__name="none", trainer__log_every=5, data__root="/data")  # fmt: skip
    assert differing_options([BASE, other]) == []
    assert option_labels([BASE, other]) == ["", ""]
    assert differing_options([BASE, {**other, "trainer": {"epochs": 30, "max_steps": 20}}]) == [
        "trainer.max_steps"
    ]


def test_the_most_telling_options_come_first():
    other = changed(trainer__max_steps=20, batch_size=64, optim__lr=1e-4, model__embed_size=256)
    assert differing_options([BASE, other]) == [
        "model.embed_size",
        "optim.lr",
        "batch_size",
        "trainer.max_steps",
    ]
    assert option_labels([BASE, other])[1] == "model.embed_size=256, optim.lr=0.0001, batch_size=64"


def test_the_name_of_a_group_stands_for_its_options():
    other = changed(loss={"name": "infonce", "temperature": 0.07})
    assert option_labels([BASE, other]) == ["loss=triplet", "loss=infonce"]


def test_labels_are_long_enough_to_be_unique():
    many = [
        changed(model__embed_size=size, optim__lr=lr, batch_size=batch, trainer__max_steps=steps)
        for size, lr, batch, steps in ((1, 1, 1, 10), (1, 1, 1, 20), (2, 2, 2, 20))
    ]
    labels = option_labels(many)
    assert len(set(labels)) == 3
    assert labels[0] == "model.embed_size=1, optim.lr=1, batch_size=1, trainer.max_steps=10"


def test_training_length():
    assert training_length({"updates": 3480}, BASE) == "30 epochs, 3,480 updates"
    assert training_length({"updates": 20}, changed(trainer__max_steps=20)) == "20 updates"
    assert training_length({"best_updates": 1500}, {}) == "1,500 updates (checkpoint)"
    assert training_length({}, {}) == ""
