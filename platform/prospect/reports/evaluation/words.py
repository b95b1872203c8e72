"""Names of metrics and numbers as a page writes them."""

_SPELT = {"f1": "F1", "dst": "DST", "auc": "AUC", "roc": "ROC", "bleu": "BLEU", "rouge": "ROUGE", "cider": "CIDEr"}
_SPELT |= {"meteor": "METEOR", "p50": "p50", "p90": "p90"}


def words(name: str) -> str:
    """`turn_f1` as `turn F1`."""
    return " ".join(_SPELT.get(part, part) for part in name.replace("/", " ").split("_"))


def number(value: float | None) -> str:
    """Three decimals below 10, fewer above; `-` where undefined."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
