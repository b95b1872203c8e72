"""The sample corpus that the project draws itself: task videos that can be followed only by watching."""

from prospect.corpus.draw import draw_corpus
from prospect.corpus.settings import CorpusSettings

__all__ = ["CorpusSettings", "draw_corpus"]
