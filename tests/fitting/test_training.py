"""Heads against scipy's own logistic and least-squares minima, and against a known truth."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr

from nablaflow.fitting.training import HeadSettings, Rows, bootstrap, losses, train_heads
from nablaflow.rewards.heads import mean_and_spread

TO_THE_END = HeadSettings(members=2, learning_rate=0.03, penalty=0.05, steps=600)


def problem(n=120, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) + 3.0
    return features, torch.linspace(-1.0, 1.0, d), generator


def pairs_of(features, truth, generator):
    first, second = torch.arange(0, len(features), 2), torch.arange(1, len(features), 2)
    odds = (features[first] - features[second]) @ truth
    swap = torch.rand(len(first), generator=generator) > odds.sigmoid()
    return Rows(torch.where(swap, second, first), torch.where(swap, first, second))


def minimum(function, size):
    return minimize(function, np.zeros(size), method="BFGS", options={"gtol": 1e-8}).x


def test_pairs_give_the_penalised_logistic_fit_of_scipy():
    features, truth, generator = problem()
    rows = pairs_of(features, truth, generator)
    heads = train_heads(features, rows, torch.ones(2, len(rows)), TO_THE_END, generator)
    standard = ((features - features.mean(0)) / features.std(0)).double().numpy()
    difference = standard[rows.first] - standard[rows.second]

    def objective(w):
        return np.logaddexp(0, -difference @ w).mean() + TO_THE_END.penalty / 2 * w @ w

    expected = minimum(objective, features.shape[1])
    for member in heads.direct:
        np.testing.assert_allclose(member, expected, atol=2e-3)


def test_weights_are_repeated_rows():
    features, truth, generator = problem()
    rows = pairs_of(features, truth, generator)
    counts = torch.randint(1, 4, (1, len(rows)), generator=generator).float()
    heads = train_heads(features, rows, counts, TO_THE_END, generator)
    repeated = rows.take(torch.arange(len(rows)).repeat_interleave(counts[0].long()))
    again = train_heads(features, repeated, torch.ones(1, len(repeated)), TO_THE_END, generator)
    torch.testing.assert_close(heads.direct, again.direct, atol=2e-3, rtol=0)


def test_ratings_give_ridge_regression():
    features, truth, generator = problem()
    target = features @ truth
    target = (target - target.mean()) / target.std()
    rows = Rows(torch.arange(len(features)), target=target)
    heads = train_heads(features, rows, torch.ones(1, len(rows)), TO_THE_END, generator)
    x = (features - features.mean(0)) / features.std(0)
    gram = x.T @ x / len(x) + TO_THE_END.penalty * torch.eye(x.shape[1])
    expected = torch.linalg.solve(gram, x.T @ target / len(x))
    torch.testing.assert_close(heads.direct[0], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_known_truth_is_ranked_again(hidden):
    features, truth, generator = problem(n=400)
    rows = pairs_of(features, truth, generator)
    settings = HeadSettings(members=4, hidden=hidden, learning_rate=0.02, steps=300)
    weights = bootstrap(torch.arange(len(rows)), settings.members, generator)
    heads = train_heads(features, rows, weights, settings, generator)
    fresh = torch.randn(200, 5, generator=generator) * torch.arange(1, 6) + 3.0
    score, spread = mean_and_spread(heads(fresh))
    assert spearmanr(score, fresh @ truth).statistic > 0.97
    assert (spread > 0).all()


def test_hidden_units_learn_what_no_line_can():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 2, generator=generator)
    target = features[:, 0] * features[:, 1]
    target = (target - target.mean()) / target.std()
    rows = Rows(torch.arange(300), target=target)
    settings = HeadSettings(members=2, hidden=32, learning_rate=0.03, penalty=1e-4, steps=400)
    found = {}
    for hidden in (0, 32):
        one = HeadSettings(**{**vars(settings), "hidden": hidden})
        heads = train_heads(features, rows, torch.ones(2, 300), one, generator)
        found[hidden] = losses(heads(features), rows).mean()
    assert found[32] < 0.2 * found[0]


def test_a_member_stops_at_its_best_on_rows_it_has_not_seen():
    """More features than rows: what goes on for ever fits the noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 200, generator=generator)
    rows = Rows(torch.arange(60), target=features[:, 0] + torch.randn(60, generator=generator))
    weights = bootstrap(torch.arange(60), 3, generator)
    unseen = (weights == 0).float()

    def left(settings):
        generator = torch.Generator().manual_seed(1)
        heads = train_heads(features, rows, weights, settings, generator)
        return (losses(heads(features), rows) * unseen).sum(1) / unseen.sum(1)

    stopped = left(HeadSettings(members=3, learning_rate=0.02, penalty=0.0, steps=400))
    late = left(HeadSettings(members=3, learning_rate=0.02, penalty=0.0, steps=40, patience=1))
    everything = (losses(torch.zeros(3, 60), rows) * unseen).sum(1) / unseen.sum(1)
    assert (stopped <= everything).all()
    assert (stopped <= late + 1e-6).all()


def test_the_rows_of_a_group_are_drawn_together():
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    counts = bootstrap(groups, 50, torch.Generator().manual_seed(0))
    assert (counts.sum(1) >= 6 - 3).all()
    for group in range(3):
        inside = counts[:, groups == group]
        assert (inside == inside[:, :1]).all()
    assert (counts[:, [0, 2, 5]].sum(1) == 3).all()
