"""From a folder of images to a tested model: `fm.episodes.images` and `fm.MetaTrainer`.

    python examples/own_images.py [--folder drawings] [--iterations 400] [--only-draw]

The folder is drawn where it is missing: 30 classes of 20 small pictures, each class a figure of
strokes, each picture of it moved, turned, and in other colours. Put yours in its place.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

import fastmaml as fm

SIZE, DRAWN = 32, 128


def draw(folder: Path, classes: int = 30, pictures: int = 20, seed: int = 0) -> None:
    """Write ``folder/figure_00/00.png`` and so on, the same for the same seed."""
    random = np.random.default_rng(seed)
    for c in range(classes):
        strokes = random.uniform(-1, 1, (3, 2, 2))  # three lines, each from one point to another
        place = folder / f"figure_{c:02}"
        place.mkdir(parents=True)
        for i in range(pictures):
            picture(strokes, random).save(place / f"{i:02}.png")


def picture(strokes: np.ndarray, random: np.random.Generator) -> Image.Image:
    """The strokes, a little turned, scaled, moved and bent, in colours of their own."""
    ground, ink = random.integers(140, 256, 3), random.integers(0, 110, 3)
    image = Image.new("RGB", (DRAWN, DRAWN), tuple(ground.tolist()))
    angle, scale = random.normal(0, 0.15), random.uniform(0.6, 0.9)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (strokes + random.normal(0, 0.06, strokes.shape)) @ turn + random.normal(0, 0.06, 2)
    for begin, end in (points * 0.5 + 0.5) * DRAWN:
        draw_on = ImageDraw.Draw(image)
        draw_on.line([*begin, *end], fill=tuple(ink.tolist()), width=int(random.integers(6, 12)))
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    """Meta-train on 19 figures, validate on 5, and test on 6 that were never seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("drawings"))
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--test-episodes", type=int, default=600)
    parser.add_argument("--only-draw", action="store_true")
    parser.add_argument("--out", default="runs/own_images")
    options = parser.parse_args()
    if not options.folder.exists():
        draw(options.folder)
    if options.only_draw:
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)

    sizes = {"ways": 5, "shots": 5, "queries": 5, "tasks": 4}
    train, validation, test = (
        fm.episodes.images(
            options.folder,
            split=split,
            augment="crop,jitter" if split == "train" else None,
            **sizes,
        )
        for split in ("train", "validation", "test")
    )
    model = fm.models.conv4(5, channels=3, filters=32, pool="max", image_size=SIZE)
    maml = fm.MAML(model, lr=0.1, steps=2, loss=F.cross_entropy)
    config = fm.LoopConfig(
        iterations=options.iterations,
        schedule="cosine",
        evaluate_every=100,
        test_episodes=options.test_episodes,
        plots=False,
        out=options.out,
    )
    trainer = fm.MetaTrainer(maml, train, validation=validation, test=test, config=config)
    print("unseen figures:", trainer.fit().text())


if __name__ == "__main__":
    main()
