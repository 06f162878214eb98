"""The proof itself is put to the test: it notices what is wrong, missing or unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from itr.models.hrem import GraphConfig, Relevance
from itr.official.hrem import name_table
from tests import naive_hrem as naive
from tests import processes
from tests.parity import hrem_cases, test_parity
from tests.parity.harness import Case, cases_in, longest_prefix


def write(folder: Path, data: dict, tensors: dict[str, Tensor], method: str = "hrem") -> Path:
    path = folder / method / f"{data['case']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()}, path.with_suffix(".safetensors")
    )
    return path


def run(path: Path) -> None:
    case = Case(path)
    prefix = longest_prefix(case.name, hrem_cases.RUNNERS)
    hrem_cases.RUNNERS[str(prefix)](case)
    case.finish()


def pooling_case(rows: int = 5, width: int = 3) -> tuple[dict, dict[str, Tensor]]:
    features, lengths = torch.randn(rows, 6, width), torch.tensor([6, 3, 1, 5, 2][:rows])
    norm = features / (features.pow(2).sum(dim=-1, keepdim=True).sqrt() + 1e-8)
    _, beside = naive.pool(features, features, lengths, 1.0)
    _, mean = naive.pool(features, features, lengths, 0.0)
    tensors = {
        "in.features": features,
        "in.lengths_z": lengths,
        "out.max2_z": beside,
        "out.avg_z": mean,
        "out.padding_mask_z": torch.stack([torch.arange(6) >= n for n in lengths]),
        "out.l2norm": norm,
    }
    return {"case": "pooling_other", "tolerance": {"atol": 1e-6, "rtol": 1e-5}}, tensors


def test_a_case_of_other_sizes_passes_and_a_changed_number_does_not(tmp_path: Path):
    data, tensors = pooling_case()
    run(write(tmp_path, data, tensors))
    for name in [name for name in tensors if name.startswith("out.")]:
        wrong = {**tensors, name: tensors[name].clone()}
        wrong[name][0, 0] = (~wrong[name][0, 0]) if "mask" in name else wrong[name][0, 0] + 1e-3
        with pytest.raises(AssertionError, match=name):
            run(write(tmp_path, data, wrong))


def test_an_expected_tensor_that_nobody_compares_is_a_failure(tmp_path: Path):
    data, tensors = pooling_case()
    with pytest.raises(AssertionError, match="never compared: out.surplus"):
        run(write(tmp_path, data, {**tensors, "out.surplus": torch.zeros(1)}))


def test_a_wrong_shape_is_a_failure(tmp_path: Path):
    data, tensors = pooling_case()
    with pytest.raises(AssertionError, match="shape"):
        run(write(tmp_path, data, {**tensors, "out.l2norm": tensors["out.l2norm"][:1]}))


@pytest.mark.parametrize(("rows", "topk", "sigma", "t"), [(6, 4, 1.0, 1.0), (4, 3, 0.5, 2.0)])
def test_an_adjacency_case_of_other_sizes_and_options_passes(
    tmp_path: Path, rows: int, topk: int, sigma: float, t: float
):
    torch.manual_seed(rows)
    module = Relevance(GraphConfig(topk=topk))
    v = F.normalize(torch.randn(rows, 10), dim=1).requires_grad_()
    u = F.normalize(torch.randn(rows, 10), dim=1).requires_grad_()
    regions, words = torch.randn(rows, 7, 10), torch.randn(rows, 8, 10)
    lengths = torch.randint(4, 8, (rows,)), torch.randint(2, 9, (rows,))
    o = naive.overlap(words, lengths[1], regions, lengths[0], topk)
    relevance = {
        "i2i": naive.nearness(v, v, sigma),
        "t2t": naive.nearness(u, u, sigma),
        "i2t": module.i2t(o["q_i2t"])[..., 0] + o["p_i2t"],
        "t2i": module.t2i(o["q_t2i"])[..., 0] + o["p_t2i"],
    }
    links = {"i2i": v @ v.t(), "t2t": u @ u.t(), "i2t": o["p_i2t"], "t2i": o["p_t2i"]}
    guide = naive.nearness(v, u, sigma)
    reg = naive.divergence(relevance["i2t"], guide, t)
    reg = reg + naive.divergence(relevance["t2i"], guide.t(), t)
    coef = {name: torch.randn(rows, rows) for name in relevance}
    scalar = 10 * reg + sum((relevance[name] * coef[name]).sum() for name in coef)
    scalar.backward()
    names = {
        str(name_table().to_official(f"relevance.{name}")): p
        for name, p in module.named_parameters()
    }
    tensors = {
        "in.img_emb": v,
        "in.cap_emb": u,
        "in.img_regions": regions,
        "in.cap_words": words,
        "in.img_len": lengths[0],
        "in.cap_len": lengths[1],
        **{f"in.coef_{name}": value for name, value in coef.items()},
        **{f"state.{name}": p for name, p in names.items()},
        **{f"out.relation_{name}": value for name, value in relevance.items()},
        **{f"out.connect_{name}": naive.connect(value, 0.6) for name, value in links.items()},
        **{f"out.{name}": value for name, value in o.items()},
        "out.reg_loss": reg,
        "out.scalar": scalar,
        "out.region_word_grad_is_none": torch.tensor([True]),
        "grad.in.img_emb": v.grad,
        "grad.in.cap_emb": u.grad,
        **{f"grad.{name}": p.grad for name, p in names.items()},
    }
    about = {"threshold": 0.6, "topk": topk, "detach": True, "T": t, "sigma": sigma}
    tolerance = {"atol": 1e-5, "rtol": 1e-4}
    data = {"case": "adjacency_other", "adjacency": about, "tolerance": tolerance}
    run(write(tmp_path, data, tensors))


def test_the_longest_prefix_decides():
    known = dict.fromkeys(("train", "train_w2", "layout_"))
    assert longest_prefix("train_w2_gather", known) == "train_w2"
    assert longest_prefix("train_w1", known) == "train"
    assert longest_prefix("layout_ViTB32", known) == "layout_"
    assert longest_prefix("trainer", {"train_": None}) is None
    assert longest_prefix("x", known) is None


def test_files_without_a_case_key_belong_to_cases(tmp_path: Path):
    data, tensors = pooling_case()
    path = write(tmp_path, data, tensors)
    (path.parent / "tokenizer.json").write_text('{"model": {}}')
    assert list(cases_in(tmp_path)) == [path]


def test_on_the_command_line(tmp_path: Path):
    """Several folders at once: a good case passes, an unknown one and an unknown method fail, and
    so do an empty and a missing folder."""
    folders = [tmp_path / name for name in ("good", "bad", "empty", "missing")]
    write(folders[0], *pooling_case())
    write(folders[1], {"case": "unheard_of"}, {})
    write(folders[1], {"case": "pooling"}, {}, method="nosuchmethod")
    folders[2].mkdir()
    here = Path(__file__).parent
    arguments = [word for folder in folders for word in ("--golden", str(folder))]
    ran = processes.run("-m", "pytest", str(here / "test_parity.py"), "-rs", *arguments)
    assert ran.returncode == 1
    for words in (
        "unknown case 'unheard_of' of 'hrem'",
        "unknown case 'pooling' of 'nosuchmethod'",
        "no <method>/<case>.json in it",
        "missing: no such folder",
        "4 failed, 3 passed",
    ):
        assert words in ran.stdout, words


def test_a_case_that_is_not_built_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hrem_cases, "NOT_BUILT", ("later_",), raising=False)
    path = write(tmp_path, {"case": "later_one"}, {})
    with pytest.raises(pytest.skip.Exception, match="not built"):
        test_parity.test_golden_case(path)
