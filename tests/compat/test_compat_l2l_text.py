"""learn2learn's headlines by section, and downloads that do not take place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastmaml.compat.learn2learn as l2l
from fastmaml.compat.learn2learn.data import transforms as T
from fastmaml.compat.learn2learn.data.utils import download_file, download_file_from_google_drive

News = l2l.text.datasets.NewsClassification
ROWS = """,category,headline
0,POLITICS,"A vote, at last"
1,SPORTS,"They ""won"" it"
2,POLITICS,Zürich votes
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train_sample.csv").write_text(ROWS, encoding="utf-8")
    (tmp_path / "test_sample.csv").write_text(ROWS + "3,WEIRD,Odd\n", encoding="utf-8")
    return tmp_path


def test_headlines_and_sections(root: Path) -> None:
    news = News(root, download=True)
    assert list(map(tuple, (news[i] for i in range(3)))) == [
        ("A vote, at last", 23),
        ('They "won" it', 29),
        ("Zürich votes", 23),
    ]
    assert len(news) == 3
    assert len(news.labels_list) == 41
    assert News(root, transform=len)[1] == (13, 29)


def test_tasks_of_headlines(root: Path) -> None:
    meta = l2l.data.MetaDataset(News(str(root), transform=len))
    transforms = [T.NWays(meta, 2), T.KShots(meta, 1), T.LoadData(meta), T.RemapLabels(meta)]
    x, y = l2l.data.Taskset(meta, transforms).sample()
    assert sorted(y.tolist()) == [0, 1]
    assert 13 in x.tolist()


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"train": False}, ValueError, "test_sample.csv, line 5: there is no section 'WEIRD'"),
        ({"transform": "roberta"}, ValueError, "transform='roberta' is no function.*torch.hub"),
        ({"root": "nowhere"}, FileNotFoundError, "no nowhere.train_sample.csv.*o71z7fq7mydbznc"),
        (
            {"root": "nowhere", "train": False},
            FileNotFoundError,
            "no nowhere.test_sample.csv.*g8hwl9pxftl36ww",
        ),
    ],
)
def test_what_does_not_fit_says_so(root: Path, given: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        News(**{"root": root, **given})


def test_a_file_without_the_columns(root: Path) -> None:
    (root / "train_sample.csv").write_text("text,label\nA,1\n")
    with pytest.raises(ValueError, match=r"columns \['text', 'label'\], not headline and category"):
        News(root)


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    """A script that asks for a file that is there goes on."""
    there, missing = tmp_path / "there.pkl", tmp_path / "missing.pkl"
    there.touch()
    download_file("https://example.org/there.pkl", str(there), size=3)
    download_file_from_google_drive("abc", str(there))
    with pytest.raises(FileNotFoundError, match=r"missing.pkl.*Fetch https://example.org/m.pkl"):
        download_file("https://example.org/m.pkl", str(missing))
    with pytest.raises(FileNotFoundError, match=r"missing.pkl.*drive.google.com/uc\?id=abc "):
        download_file_from_google_drive("abc", str(missing))
