"""Videos whose lines are mapped, and the right answer about them."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from prospect.data.labels.llm.prompt import MappingRequest
from prospect.data.labels.llm.settings import LLMSettings
from prospect.dialogue.schema import Annotation
from tests.llm.misbehaving import FakeEndpoint, killed_when_hanging


def right_answer(body: dict[str, Any]) -> str:
    prompt = body["messages"][1]["content"]
    steps, blocks = len(re.findall(r"^S\d+: ", prompt, re.M)), len(re.findall(r"^B\d+ \[", prompt, re.M))
    mapping = {f"S{step}": [f"B{step}"] for step in range(1, steps)}
    mapping[f"S{steps}"] = [f"B{block}" for block in range(steps, blocks + 1)]
    return json.dumps({"mapping": mapping})


def request(goal: str, steps: int = 3, blocks: int = 5) -> MappingRequest:
    return MappingRequest(
        video=f"video of {goal}",
        goal=goal,
        steps=tuple(f"step {number}" for number in range(1, steps + 1)),
        blocks=tuple(Annotation(start=10.0 * n, end=10.0 * n + 5, text=f"line {n}") for n in range(blocks)),
    )


def mapping(**steps: str) -> str:
    """`mapping(S1="B1 B2")` as the wire has it."""
    return json.dumps({"mapping": {step: blocks.split() for step, blocks in steps.items()}})


SCRIPT = textwrap.dedent("""
    import sys
    from prospect.data.labels.llm.mapping import map_videos
    from prospect.data.labels.llm.settings import LLMSettings
    from tests.data.labels.llm.videos import request
    settings, root, *goals = sys.argv[1:]
    map_videos([request(goal) for goal in goals], LLMSettings.model_validate_json(settings), root)
""")


def mapping_killed_when_hanging(server: FakeEndpoint, settings: LLMSettings, root: Path, *goals: str) -> None:
    killed_when_hanging(server, SCRIPT, settings.model_dump_json(), str(root), *goals)
