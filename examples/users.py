"""Make a table of 200 users with 5 to 60 rows each, and meta-train on it.

    python examples/users.py [--make users.csv] [--iterations 1000]

A row is a ride: its distance in km, the hour, the weather, and how many minutes it took. How fast
a user rides, what rain does to them and when they tire differs from user to user, so that a model
of all users is wrong about each: it has to adapt to a few of a user's rides. With --make, only the
file is written: for `fastmaml train table --data users.csv --task user --target minutes`.
"""

import argparse
import csv
import math
import random
import time
from pathlib import Path

import torch

import fastmaml as fm
from fastmaml.training.evaluation import Evaluation, evaluate

WEATHER = {"dry": 0.0, "wind": 0.4, "rain": 1.0}


def make(path: Path, users: int = 200, seed: int = 0) -> int:
    """Write the table, and say how many rows it has."""
    draw = random.Random(seed)
    rows = []
    for user in range(users):
        pace, rain, tired = draw.uniform(2, 5), draw.uniform(0, 2), draw.uniform(-1, 1)
        for _ in range(draw.randint(5, 60)):
            km, hour, weather = draw.uniform(1, 15), draw.randrange(6, 22), draw.choice([*WEATHER])
            slower = rain * WEATHER[weather] + tired * math.sin((hour - 6) / 16 * math.pi)
            minutes = 2 + km * (pace + slower) + draw.gauss(0, 1)
            rows.append((f"user {user}", f"{km:.2f}", hour, weather, f"{minutes:.1f}"))
    draw.shuffle(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("user", "km", "hour", "weather", "minutes"), *rows])
    return len(rows)


def tested(maml: fm.MAML, test: fm.episodes.Table) -> Evaluation:
    """Every user that is held out, before adaptation and after each inner step."""
    return evaluate(maml, test.all(16), None, maml.steps)


def main() -> None:
    """Make the table, meta-train and test."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--make", type=Path, help="only write the table to this file")
    parser.add_argument("--iterations", type=int, default=1000)
    options = parser.parse_args()
    path = options.make or Path("users.csv")
    print(f"{make(path)} rows in {path}")
    if options.make:
        return

    torch.manual_seed(0)
    begun = time.perf_counter()
    columns = {"task": "user", "target": "minutes"}
    train = fm.episodes.table(path, **columns)
    test = fm.episodes.table(path, **columns, split="test")
    print(train, test, sep="\n")
    model = fm.models.mlp(train.features, train.outputs, hidden=(64, 64))
    maml = fm.MAML(model, lr=0.05, steps=5, loss=train.loss)
    optimizer = torch.optim.Adam(maml.parameters(), 2e-3)
    for iteration, episodes in zip(range(options.iterations), train, strict=False):
        out = maml(episodes)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(maml.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 100 == 0:
            print(f"{iteration:5}  loss {out.loss:.3f}", flush=True)

    found = tested(maml, test)
    minutes = train.scaling.targets["minutes"][1]
    for step, error in enumerate(found.means):
        print(f"after {step} inner steps: {math.sqrt(error) * minutes:.2f} minutes off")
    print(f"{found.episodes} users tested, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
