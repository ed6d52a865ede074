"""What uncertainty looks like: a digit, the same digit smudged, and noise, asked of the example ensemble.

    python docs/examples/uncertainty.py models/digits/1

prints the figures that the README shows, over the whole test set, and draws the picture that it shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import data
from torch import Tensor
from torch.nn import functional

import ensemble

PICTURE = Path(__file__).parents[1] / "images" / "uncertainty.png"
SHOWN = 17


def smudge(images: Tensor) -> Tensor:
    """Ink spread over the neighbouring pixels: the mean of each 3×3 square."""
    return functional.conv2d(images, torch.full((1, 1, 3, 3), 1 / 9), padding=1)


def noise(count: int) -> Tensor:
    """Uniform random grey values, the same each time."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def kinds() -> dict[str, Tensor]:
    """Test images, the same smudged, and as many of noise."""
    _, _, images, _ = data()
    return {"test digits": images, "smudged": smudge(images), "noise": noise(len(images))}


def table(ens: ensemble.Ensemble) -> dict[str, dict[str, float]]:
    """Means over each kind of image, in nats."""
    wanted = ["predictive_entropy", "expected_entropy", "mutual_information"]
    found = {}
    for kind, images in kinds().items():
        prediction = ens.predict(images, statistics=wanted)
        found[kind] = {name: float(prediction.flat()[name].mean()) for name in wanted}
    return found


def draw(ens: ensemble.Ensemble, path: Path) -> None:
    """One image of each kind above what the members say of it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ink, blue, pale = "#1f2430", "#2f6fbb", "#9dc1e8"
    plt.rcParams.update({"font.size": 10, "text.color": ink, "axes.edgecolor": "#b8bec9", "xtick.color": ink})
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.2), height_ratios=(1, 1.1), layout="constrained")
    chosen = {kind: images[SHOWN : SHOWN + 1] for kind, images in kinds().items()}
    for column, (kind, image) in enumerate(chosen.items()):
        p = ens.predict(image, statistics=["label", "mean", "members", "predictive_entropy", "mutual_information"])
        top, bottom = axes[0][column], axes[1][column]
        top.imshow(image[0, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        top.set_title({"test digits": "a test digit", "smudged": "the same, smudged"}.get(kind, kind), weight="bold")
        top.set_xticks([])
        top.set_yticks([])
        bottom.bar(range(10), p.mean[0].numpy(), color=pale, width=0.8, zorder=1)
        members = p.members[0].numpy()
        spread = torch.linspace(-0.28, 0.28, len(members)).numpy()
        for label in range(10):
            bottom.scatter(label + spread, members[:, label], s=3, color=blue, alpha=0.5, linewidths=0, zorder=2)
        bottom.set_ylim(0, 1.02)
        bottom.set_xticks(range(10))
        bottom.set_yticks([0, 0.5, 1] if column == 0 else [])
        for side in ("top", "right"):
            bottom.spines[side].set_visible(False)
        bottom.set_xlabel(
            f"says {int(p.label[0])}    entropy {float(p.predictive_entropy[0]):.3f} nats\n"
            f"mutual information {float(p.mutual_information[0]):.4f} nats"
        )
    axes[1][0].set_ylabel("probability: mean, members")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("ensemble", type=Path, help="directory of the saved example, models/digits/1")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where to draw")
    args = parser.parse_args()
    ens = ensemble.load(args.ensemble)
    for number, (kind, row) in enumerate(table(ens).items()):
        if number == 0:
            print(f"{'mean over 450 images, nats':28}" + "".join(f"{name:>20}" for name in row))
        print(f"{kind:28}" + "".join(f"{value:20.4f}" for value in row.values()))
    draw(ens, args.picture)
    print(f"drawn: {args.picture}")


if __name__ == "__main__":
    main()
