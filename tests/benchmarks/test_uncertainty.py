"""The uncertainty benchmark: test rows are apart, scores are those of others, and the tables say what was."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from benchmarks.uncertainty import __main__ as command
from benchmarks.uncertainty import classes, data, members, nets, networks, scores, tables, training
from benchmarks.uncertainty.results import Record, Results

SCHEDULE = training.Schedule(epochs=6, rate=0.02, decay=0.01)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path):
    """A data set of 150 rows in the published form, with two splits."""
    place = tmp_path / "yacht"
    place.mkdir()
    random = np.random.default_rng(0)
    rows = random.normal(3, 2, (150, 4))
    rows[:, 1] = 7
    rows[:, 3] = rows[:, 0] * rows[:, 2] + random.normal(0, 0.1, 150)
    np.savetxt(place / "data.txt", rows)
    np.savetxt(place / "index_features.txt", [0, 1, 2], fmt="%d")
    np.savetxt(place / "index_target.txt", [3], fmt="%d")
    np.savetxt(place / "n_splits.txt", [2], fmt="%d")
    for split in range(2):
        order = random.permutation(150)
        np.savetxt(place / f"index_train_{split}.txt", order[15:])
        np.savetxt(place / f"index_test_{split}.txt", order[:15])
    return tmp_path


def test_no_row_is_in_two_parts_and_training_rows_alone_normalise(folder):
    table = data.read_uci(folder, "yacht", 20)
    assert len(table.splits) == 2
    whole = data.parts(table, 1)
    assert [len(y) for _, y in (whole.train, whole.held, whole.test)] == [108, 27, 15]
    rows = torch.cat([x for x, _ in (whole.train, whole.held, whole.test)])
    assert len(torch.unique(rows, dim=0)) == 150
    x, y = (torch.cat([whole.train[i], whole.held[i]]) for i in range(2))
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-5)
    # A feature that never varies stays at 0.
    assert torch.allclose(x.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5)
    test = table.splits[1][1]
    mean = table.targets[table.splits[1][0]].mean()
    np.testing.assert_allclose(whole.test[1].numpy() * whole.unit + mean, table.targets[test], rtol=1e-5)
    assert float(y.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_what_is_still_to_be_chosen_sees_no_test_row(folder):
    whole = data.parts(data.read_uci(folder, "yacht", 1), 0)
    inner = data.nested(whole)
    assert len(inner.held[1]) == 14
    assert len(inner.test[1]) == 13
    seen = torch.cat([inner.train[0], inner.held[0], inner.test[0]])
    assert not (seen.unsqueeze(1) == whole.test[0]).all(-1).any()


@pytest.mark.parametrize("name", data.UNTUNED)
def test_sets_of_scikit_learn_do_not_hold_their_target(name):
    table = data.untuned(name, 2)
    assert len(table.splits) == 2
    assert not np.array_equal(table.splits[0][1], table.splits[1][1])
    assert not np.intersect1d(*table.splits[0]).size
    assert np.abs(np.corrcoef(table.inputs.T, table.targets)[-1, :-1]).max() < 0.99


def test_files_that_do_not_fit_are_refused(folder):
    with pytest.raises(FileNotFoundError, match="--uci is the folder with bostonHousing"):
        data.read_uci(folder, "boston", 1)
    np.savetxt(folder / "yacht" / "index_test_0.txt", np.arange(150))
    with pytest.raises(ValueError, match="split 0 has test rows among its training rows"):
        data.read_uci(folder, "yacht", 1)


@pytest.mark.parametrize("head", ["point", "variance", "classes"])
def test_stacked_nets_are_their_modules(head):
    weights = networks.fresh(3, 4, networks.outputs(head, 5), 7, generator(0))
    x = torch.randn(6, 4, generator=generator(1))
    found = networks.run(weights, x.expand(3, 6, 4))
    for index in range(3):
        own = networks.module(weights, index, head)(x)
        if head == "variance":
            mean, variance = own
            assert torch.allclose(mean, found[index, :, :1], atol=1e-6)
            assert torch.allclose(variance, networks.variance(found[index, :, 1:]), atol=1e-6)
        else:
            assert torch.allclose(own, found[index], atol=1e-6)


def test_nets_learn_and_keep_the_weights_that_did_best_on_held_out_rows(folder):
    table = data.read_uci(folder, "yacht", 2)
    pieces = [data.parts(table, split) for split in range(2)]
    base = nets.trained(pieces, "variance", SCHEDULE, nets=3, rates=(0.1,))
    longer = nets.trained(pieces, "variance", training.Schedule(60, 0.02, 0.01), nets=3, rates=())
    for split, piece in enumerate(pieces):
        # The target's own standard deviation is what knowing nothing comes to.
        assert nets.single(longer, split).rmse < 0.7 * piece.unit
        x, y = piece.held
        for index in range(3):
            weights = {name: w[index : index + 1] for name, w in base.plain.of(split).items()}
            fresh = float(training.losses("variance", networks.run(weights, x[None]), y[None]))
            assert fresh < float(((y.square()) / 2).mean())
    assert base.plain.steps == 6 * (108 // 32)
    assert base.plain.best.min() >= 1
    assert nets.monte_carlo_dropout(base, 0).note == "rate 0.1"
    # Ten nets of a split are ten different ones.
    assert not torch.equal(base.plain.of(0)["hidden.weight"][0], base.plain.of(0)["hidden.weight"][1])


def test_log_likelihood_of_a_mixture():
    random = np.random.default_rng(0)
    means, variances, weights = random.normal(size=(3, 5)), random.uniform(0.1, 2, (3, 5)), np.array([0.5, 0.2, 0.3])
    targets = random.normal(size=5)
    density = (weights[:, None] * stats.norm.pdf(targets, means, np.sqrt(variances))).sum(0)
    given = [torch.tensor(a) for a in (means, variances, targets, weights)]
    np.testing.assert_allclose(scores.log_likelihood(*given).numpy(), np.log(density), rtol=1e-10)
    # In the target's own units a density is divided by the unit, and an error multiplied.
    likelihood, rmse = scores.score(given[0], given[1], given[2], 4.0, given[3])
    assert likelihood == pytest.approx(np.log(density / 4).mean())
    assert rmse == pytest.approx(4 * np.sqrt(((weights @ means - targets) ** 2).mean()))


def test_noise_variance_of_one_member_is_its_mean_squared_error():
    means, targets = torch.zeros(1, 500), torch.randn(500, generator=generator(0)) * 0.3
    assert scores.noise_variance(means, targets) == pytest.approx(float(targets.square().mean()), rel=0.05)


def test_scores_of_classes():
    p = torch.rand(200, 4, generator=generator(0), dtype=torch.float64).softmax(-1)
    targets = torch.randint(4, (200,), generator=generator(1))
    found = scores.classified(p, targets)
    assert found["nll"] == pytest.approx(log_loss(targets, p, labels=range(4)), rel=1e-5)
    assert found["accuracy"] == float((p.argmax(-1) == targets).double().mean())
    # Surer by 0.2 than right, all in one bin.
    sure = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
    assert scores.classified(sure, torch.tensor([0] * 7 + [1] * 3))["ece"] == pytest.approx(0.2)
    other = torch.rand(100, 4, generator=generator(2), dtype=torch.float64)
    other = torch.cat([other / other.sum(-1, keepdim=True), p[:30]])
    entropies = [torch.special.entr(a.double()).sum(-1) for a in (p, other)]
    expected = roc_auc_score([0] * 200 + [1] * 130, torch.cat(entropies))
    assert scores.separation(p, other) == pytest.approx(expected, rel=1e-6)


def test_digits_are_split_held_out_and_shifted():
    draw = classes.digits(3)
    (_, train), (_, held), (test, targets) = draw.parts.train, draw.parts.held, draw.parts.test
    assert (len(train), len(held), draw.classes) == (160, 40, 8)
    assert int(max(train.max(), held.max(), targets.max())) == 7
    shifted, noise = draw.others["shift"].view(-1, 8, 8), draw.others["noise"]
    # Two rows or columns at one edge are empty, and the rest is the image.
    image, moved = test.view(-1, 8, 8)[0], shifted[0]
    turns = [k for k in range(4) if torch.equal(torch.rot90(moved, k)[2:], torch.rot90(image, k)[:-2])]
    assert len(turns) == 1
    assert float(torch.rot90(moved, turns[0])[:2].abs().sum()) == 0
    assert 0 <= float(noise.min()) < 0.01 < 0.99 < float(noise.max()) <= 1


def test_a_fitted_recipe_scores_what_the_library_says(folder):
    piece = data.parts(data.read_uci(folder, "yacht", 1), 0)
    base = nets.trained([piece], "variance", SCHEDULE, nets=1, rates=())
    case = members.Case.of(base.plain.of(0, 1), piece, "variance", base.plain.steps)
    ens = members.fitted(case, "rank1", 16)
    x, y = piece.test
    found = scores.score(*members.predicted(ens, x), y, piece.unit, ens.members.mixture)
    said = ens.predict(x, statistics=["mean", "log_prob"], target=y.unsqueeze(1))
    assert found[0] == pytest.approx(float(said.log_prob.mean()) - math.log(piece.unit), abs=1e-4)
    assert found[1] == pytest.approx(float((said.mean.squeeze(1) - y).square().mean().sqrt()) * piece.unit, rel=1e-4)


def results():
    found = Results("a machine", "python -m benchmarks.uncertainty")
    given = {"single": -1.0, "deep-10": -0.5, "gaussian": -1.02, "rank1": -0.8, "adapted-3": -0.7, "auto": -1.0}
    for table in ("boston", "concrete", "yacht", "wine"):
        for method, value in given.items():
            for split in range(2):
                drawn = {"log_likelihood": value + 0.1 * split, "rmse": -value}
                found.records.append(Record(table, "variance", method, split, drawn, cost=0.0))
    return found


def cells(text, title):
    line = next(line for line in text.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_tables_say_what_was_reached():
    found = results()
    text = tables.whole(found)
    assert cells(text, "`Rank1`")[0] == "-0.750 ± 0.050"
    assert cells(text[text.index("Share of the gap") :], "`Rank1`")[0] == "40 % / 40 %"
    marks = text[text.index("What was asked for") :]
    assert cells(marks, "fitted static recipes, variance head") == ["-0.020 at worst (`Gaussian`, boston)", "no"]
    assert cells(marks, "`Rank1`, variance head: 25 %")[1] == "yes"
    assert cells(marks, "`Gaussian`, variance head: 25 %")[1] == "no"
    assert cells(marks, "`Adapted`, three trainings, variance head: 50 % of the gap in log-likelihood")[1] == "yes"
    assert cells(marks, '`recipe="auto"`, variance head') == ["3 of 4", "no"]


def test_a_method_that_failed_on_a_split_has_no_figure():
    found = results()
    record = found.of("boston", "variance", "rank1")[1]
    record.scores, record.reason = {}, "it does not fit"
    text = tables.whole(found)
    assert cells(text, "`Rank1`")[0] == "none (1)"
    assert "1. it does not fit (1 of 2 splits)" in text
    assert found.share("boston", "variance", "rank1", "log_likelihood") is None


def test_the_command_says_what_is_missing(capsys):
    with pytest.raises(SystemExit):
        command.main(["--sets", "boston"])
    assert "--uci: say where the UCI sets are" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--parts", "untuned", "--sets", "boston"])
    assert "--sets: there is no boston; there are diabetes, proline, fractal dimension" in capsys.readouterr().err
