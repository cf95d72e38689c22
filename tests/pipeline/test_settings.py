"""Settings: what was written is read again, and old ones mean what they meant."""

from __future__ import annotations

import pytest

from lowrank.errors import ArtifactError
from lowrank.pipeline import Settings


@pytest.mark.parametrize("settings", [Settings(), Settings(calib="self"), Settings(calib="none", mixed=False)])
def test_what_is_written_is_read(settings: Settings) -> None:
    content = settings.to_json()
    assert Settings.from_json(content).to_json() == content and content["calib"] == settings.calib


def test_before_text_was_mixed_none_was() -> None:
    content = Settings().to_json()
    del content["mixed"]
    assert Settings.from_json(content).mixed is False
    with pytest.raises(ArtifactError, match="no valid setting 'mixed'"):
        Settings.from_json({**content, "mixed": 1})
