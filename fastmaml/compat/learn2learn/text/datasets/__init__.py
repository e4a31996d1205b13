"""Data sets of texts with a class each."""

from fastmaml.compat.learn2learn.text.datasets.news_classification import NewsClassification

__all__ = ["NewsClassification"]
