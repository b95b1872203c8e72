"""How a judge is configured, and how a mistake in it is told."""

import pytest
from pydantic import ValidationError

from prospect.config.load import load
from prospect.errors import ConfigError
from prospect.evaluation.settings import JudgeSettings
from tests.llm.misbehaving import KEY


class TestConfiguration:
    def test_off_unless_a_model_is_given(self) -> None:
        assert load("eval").evaluation.judge is None
        judge = load("eval", ["evaluation.judge.model=gpt-4o", "evaluation.judge.systems=[oracle]"]).evaluation.judge
        assert judge is not None
        assert (judge.model, judge.repetitions, judge.systems) == ("gpt-4o", 3, ("oracle",))

    @pytest.mark.parametrize(
        ("override", "sentence"),
        [
            ("evaluation.judge.base_url=http://gpu-7:8000/v1", "`evaluation.judge.model`: is missing"),
            ("evaluation.judge.modle=a", "`evaluation.judge"),
        ],
    )
    def test_a_mistake_names_its_key(self, override: str, sentence: str) -> None:
        with pytest.raises(ConfigError, match=sentence):
            load("eval", [override])

    @pytest.mark.parametrize(
        "values", [{"api_key_env": KEY}, {"base_url": f"https://me:{KEY}@host/v1"}, {"api_key": KEY}]
    )
    def test_a_key_in_the_configuration_is_refused_and_not_repeated(self, values: dict[str, str]) -> None:
        with pytest.raises(ValidationError) as error:
            JudgeSettings(model="tiny", **values)
        assert KEY not in str(error.value)
        with pytest.raises(ConfigError) as mistake:
            load(
                "eval",
                ["evaluation.judge.model=m", *(f"evaluation.judge.{key}={text}" for key, text in values.items())],
            )
        assert KEY not in str(mistake.value)
