"""Tables of a model whose vocabulary was cut."""

from __future__ import annotations

from rich.table import Table

from lowrank.core.share import percent
from lowrank.report.terminal.tables import table_of
from lowrank.results.vocabulary import CutVocabulary


def sizes_of_vocabulary(report: CutVocabulary) -> Table:
    """Rows, parameters and bytes, before and after."""
    pairs = {
        "rows of the table of tokens": (report.rows_before, report.rows_after),
        "parameters of the model": (report.params_before, report.params_after),
        "bytes of the model": (report.bytes_before, report.bytes_after),
    }
    lines = [(name, f"{a:,}", f"{b:,}", percent(b / a)) for name, (a, b) in pairs.items()]
    return table_of("Vocabulary", ["", "before", "after", "kept"], lines)


def tokens_table(report: CutVocabulary) -> Table:
    """How texts are read, before and after: one row for each source of texts."""
    lines = [
        (
            each.name,
            f"{each.texts:,}",
            f"{each.tokens_before / each.texts:.1f}",
            f"{each.tokens_after / each.texts:.1f}",
            f"{each.longer:.3f}",
            f"{each.unknown_before:,}",
            f"{each.unknown_after:,}",
        )
        for each in report.texts
    ]
    heads = ["texts", "count", "tokens a text", "after", "times as long", "unknown", "after"]
    return table_of("Tokens", heads, lines)
