"""What was measured of a model with fewer pieces in its vocabulary: `cut_vocabulary.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowrank.core.share import percent
from lowrank.results.json_part import LEFT_OUT, Document, Part, rows_of
from lowrank.results.parts import Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class TokensOfTexts(Part):
    """How some texts are read, before and after."""

    name: str
    texts: int
    tokens_before: int
    tokens_after: int
    unknown_before: int
    unknown_after: int

    @property
    def longer(self) -> float:
        """How many times as many tokens the texts have now."""
        return self.tokens_after / max(self.tokens_before, 1)


@dataclass(frozen=True, kw_only=True)
class CutVocabulary(Document):
    """A model before and after, and how near its outputs are to what they were."""

    file = "cut_vocabulary.json"
    remedy = "cut the vocabulary of the original again"

    rows_before: int
    rows_after: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    texts: list[TokensOfTexts] = field(metadata={"read": rows_of(TokensOfTexts)})
    """Built-in text that nothing was chosen by, then each file of one's own."""
    quality: Quality | None = field(default=None, metadata={**LEFT_OUT, "read": Quality.from_json})
    """Of both models on the same texts, each with its own tokens; None where the notes say why not."""
    notes: list[str] = field(default_factory=list[str])

    @property
    def remark(self) -> str:
        """A sentence for a report on a model that was made from this one, which is its dense model."""
        rows = f"the dense model here has {self.rows_after:,} of the {self.rows_before:,} tokens of its original"
        if self.quality is None:
            return f"{rows}; how often it gives the original's answers was not measured"
        if self.quality.fidelity == 1:
            return f"{rows}, and gives the same answers"
        answers = f"{percent(self.quality.fidelity or 0.0)} of the original's answers on {self.quality.worst}"
        return f"{rows}, and gives {answers}; what is lost here comes on top of that"
