"""A random BERT of a few thousand parameters in a folder, for the libraries that load models by path."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,:;'"]
WORDS = ["pour", "water", "stir", "soup", "attach", "the", "wheel", "to", "chassis", "this", "is", "part", "of", "step"]


def save_bert(folder: Path, classes: Sequence[str] | None = None) -> Path:
    """An encoder, or a classifier with the given classes; the same weights at every call."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels: Mapping[int, str] = dict(enumerate(classes or ()))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(SPECIAL + WORDS), **sizes, **({"id2label": labels} if classes else {}))
    (BertForSequenceClassification if classes else BertModel)(config).save_pretrained(folder)
    return folder
