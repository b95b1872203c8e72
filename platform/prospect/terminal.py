"""What jobs print to a terminal beside their lines of progress: tables and sentences, with users' text as it is."""

from rich.console import Console


def console(width: int | None = None) -> Console:
    """A console to which `[red]home` and `:cat:` are text: names of data sets and steps are not ours to interpret.

    Args:
        width: in columns; default: the terminal's.
    """
    return Console(width=width, highlight=False, markup=False, emoji=False)
