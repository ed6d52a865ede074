"""The peer: laplace-torch's last-layer posterior of the single net, for regressions with a point head."""

from __future__ import annotations

import time

import torch

from benchmarks.uncertainty.members import Case
from benchmarks.uncertainty.results import Record
from benchmarks.uncertainty.scores import score

NAME = "laplace-torch"


def scored(case: Case, name: str, table: str, split: int) -> Record:
    """Its prior precision and noise by marginal likelihood, as its documentation has it, without held-out rows."""
    record = Record(table, case.head, name, split)
    try:
        from laplace import Laplace
    except ImportError:
        record.reason = "not installed"
        return record
    begun = time.perf_counter()
    x, y = case.parts.train
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y.unsqueeze(1)), batch_size=256)
    found = Laplace(case.model, "regression", subset_of_weights="last_layer", hessian_structure="full")
    found.fit(loader)
    log_prior, log_sigma = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = torch.optim.Adam([log_prior, log_sigma], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss = -found.log_marginal_likelihood(log_prior.exp(), log_sigma.exp())
        loss.backward()
        optimizer.step()
    record.seconds = time.perf_counter() - begun
    x, y = case.parts.test
    mean, variance = found(x)
    total = variance.detach().reshape(1, -1) + found.sigma_noise.detach().square()
    record.scores = dict(
        zip(("log_likelihood", "rmse"), score(mean.detach().reshape(1, -1), total, y, case.parts.unit), strict=True)
    )
    record.cost = 0.0
    return record
