"""`NewsClassification`: headlines and the sections that they were in."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

SOURCES = {
    "train_sample.csv": "https://www.dropbox.com/s/o71z7fq7mydbznc/train_sample.csv.zip?dl=1",
    "test_sample.csv": "https://www.dropbox.com/s/g8hwl9pxftl36ww/test_sample.csv.zip?dl=1",
}
SECTIONS = (
    *("QUEER VOICES", "GREEN", "STYLE", "BUSINESS", "CULTURE & ARTS", "WEDDINGS", "ARTS"),
    *("HEALTHY LIVING", "LATINO VOICES", "ENVIRONMENT", "FIFTY", "COMEDY", "BLACK VOICES"),
    *("TRAVEL", "ENTERTAINMENT", "TASTE", "CRIME", "WOMEN", "TECH", "PARENTING", "SCIENCE"),
    *("WORLD NEWS", "WORLDPOST", "POLITICS", "ARTS & CULTURE", "RELIGION", "IMPACT", "MEDIA"),
    *("STYLE & BEAUTY", "SPORTS", "WEIRD NEWS", "HOME & LIVING", "THE WORLDPOST", "MONEY"),
    *("EDUCATION", "DIVORCE", "PARENTS", "GOOD NEWS", "FOOD & DRINK", "WELLNESS", "COLLEGE"),
)
"""In the order of their labels."""


class NewsClassification(Dataset[Any]):
    """Headlines of a newspaper in 41 sections: items ``(headline, label)``.

    They are read from ``root/train_sample.csv`` or ``root/test_sample.csv``, whose columns
    ``headline`` and ``category`` count.

    Args:
        root: the folder of the data.
        train: whether it is the first of the files.
        transform: of the headlines, any function of a string; None for the strings themselves.
        download: changes nothing; the error names the address.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file lacks a column, or has a section that is not known; `transform` is the
            name of one, "roberta", as learn2learn has it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[str], Any] | None = None,
        download: bool = False,
    ) -> None:
        if transform is not None and not callable(transform):
            raise ValueError(
                f"transform={transform!r} is no function of a headline. What learn2learn does for "
                "'roberta' is transform=torch.hub.load('pytorch/fairseq', 'roberta.large').encode; "
                "a tokenizer of transformers does as well."
            )
        self.labels_list = {section: label for label, section in enumerate(SECTIONS)}
        self.transform = transform
        self.path = Path(root).expanduser() / ("train_sample.csv" if train else "test_sample.csv")
        if not self.path.exists():
            raise FileNotFoundError(
                f"there is no {self.path}, and nothing is downloaded, as there is no checksum to "
                f"verify. Fetch {SOURCES[self.path.name]} and unpack it there, or name another "
                "folder with root=."
            )
        self.headlines: list[str] = []
        self.labels: list[int] = []
        with self.path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not {"headline", "category"} <= set(rows.fieldnames or ()):
                raise ValueError(
                    f"{self.path} has the columns {rows.fieldnames}, not headline and category."
                )
            for row in rows:
                if row["category"] not in self.labels_list:
                    raise ValueError(
                        f"{self.path}, line {rows.line_num}: there is no section "
                        f"{row['category']!r}."
                    )
                self.headlines.append(row["headline"])
                self.labels.append(self.labels_list[row["category"]])

    def __len__(self) -> int:
        return len(self.headlines)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        headline = self.headlines[index]
        return headline if self.transform is None else self.transform(headline), self.labels[index]
