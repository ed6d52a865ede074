"""The noise of a step in pieces: the same as drawn at once, and kept as long as it is of use."""

import pytest
import torch

from ensemble.evolution import drawing
from ensemble.evolution.antithetic import Noise
from ensemble.evolution.drawing import Drawing, step_seed

NOISE = Noise(2, {"w": (3, 4), "b": (5,)})


@pytest.fixture
def drawn(monkeypatch):
    """Counts what is drawn; three pairs a piece, of which two are kept."""
    calls: list[tuple[int, range]] = []
    draw = Noise.draw

    def counted(self, seed, pairs):
        calls.append((seed, pairs))
        return draw(self, seed, pairs)

    monkeypatch.setattr(Noise, "draw", counted)
    monkeypatch.setattr(drawing, "_DRAWN_BYTES", 3 * NOISE.nbytes)
    monkeypatch.setattr(drawing, "_KEPT_BYTES", 7 * NOISE.nbytes)
    return calls


def test_pieces_are_the_noise_of_their_pairs(drawn):
    whole = NOISE.draw(4, range(8))
    for members in (range(16), range(5, 14), range(7, 8)):
        pieces = list(Drawing(NOISE, 8, torch.device("cpu"))(4, members))
        assert {pair for pairs, _ in pieces for pair in pairs} >= {member // 2 for member in members}
        for pairs, noise in pieces:
            assert pairs.start % 3 == 0
            assert all(torch.equal(noise[name], whole[name][pairs.start : pairs.stop]) for name in whole)


def test_what_is_kept_is_not_drawn_again_and_another_step_forgets_it(drawn):
    pieces = Drawing(NOISE, 8, torch.device("cpu"))
    for _ in range(2):
        list(pieces(4, range(16)))
    # The last piece found no room.
    assert drawn == [(4, range(3)), (4, range(3, 6)), (4, range(6, 8)), (4, range(6, 8))]
    list(pieces(5, range(4)))
    list(pieces(5, range(4)))
    assert drawn[4:] == [(5, range(3))]


def test_the_seed_of_a_step_is_one_of_its_own():
    seeds = {step_seed(seed, step) for seed in (0, 1, 11, 2**63 - 1) for step in (0, 1, 11, 111)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
