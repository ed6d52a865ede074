"""The example that `make serve` builds: a small convolutional network on scikit-learn's handwritten digits.

    ensembled build docs/examples/digits.py:trained models/digits/1 --task classification --scale 0.1 --members 128

`trained` is all that `ensembled build` needs of a model of your own: it returns the model, a few rows to call it with,
and free metadata.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


def network() -> nn.Module:
    """8×8 grey values between 0 and 1, shape (batch, 1, 8, 8), to the logits of ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, training labels, test images, test labels; the same split each time."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    return images[train], labels[train], images[test], labels[test]


def train(epochs: int = 12) -> nn.Module:
    """Train for a few seconds."""
    torch.manual_seed(0)
    images, labels, _, _ = data()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def trained() -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Model, example, metadata."""
    model = train()
    _, _, images, labels = data()
    with torch.no_grad():
        accuracy = (model(images).argmax(-1) == labels).float().mean().item()
    return (
        model,
        images[:4],
        {
            "description": "Handwritten digits, 8×8 grey values between 0 and 1.",
            "class_names": [str(digit) for digit in range(10)],
            "test_accuracy_of_the_one_model": round(accuracy, 4),
        },
    )
