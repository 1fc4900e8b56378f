"""The 23rd task: a model, a function and one entry in the dict are all that it takes."""

from __future__ import annotations

import pytest
from pydantic import Field
from support.requests import agent_of, job_of

from catalyst_heartbeat.executor.catalogue import tool_definitions
from catalyst_heartbeat.executor.decide import reasons_to_ask
from catalyst_heartbeat.executor.run import execute
from catalyst_heartbeat.outcome import Context, Result, TaskRejected
from catalyst_heartbeat.request import parse
from catalyst_heartbeat.settings import Settings
from catalyst_heartbeat.tasks.base import Params, Task
from task_executor import WHITELIST


class CountTo(Params):
    last: int = Field(ge=1, le=10, description="The last number to count to")


def count(params: CountTo, context: Context) -> Result:
    """Count from 1 to a number.

    Use it to see that tasks run.
    """
    numbers = list(range(1, params.last + 1))
    return Result(" ".join(map(str, numbers)), numbers)


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WHITELIST, "count", Task("System Health", CountTo, count, 10))


def test_it_runs(settings: Settings) -> None:
    job = job_of(parse('TASK: count\nPARAMS: {"last": 3}'), settings)
    outcome = execute(job, Context(settings, 1, "big_bro", "", deadline=1e9))

    assert (outcome.verdict, outcome.text, outcome.value) == ("success", "1 2 3", [1, 2, 3])


@pytest.mark.parametrize("params", ["{}", '{"last": 0}', '{"last": "3"}', '{"last": 3, "x": 1}'])
def test_its_parameters_are_held_to_its_model(params: str, settings: Settings) -> None:
    with pytest.raises(TaskRejected, match=r"^count: "):
        job_of(parse(f"TASK: count\nPARAMS: {params}"), settings)


def test_it_is_offered_to_agents(settings: Settings) -> None:
    tool = tool_definitions(WHITELIST, settings)[-1]

    assert tool["name"] == "count"
    assert tool["description"] == (
        "Count from 1 to a number. Use it to see that tasks run. Changes nothing."
    )
    assert "From 1 to 10" in tool["input_schema"]["properties"]["last"]["description"]


def test_without_its_entry_it_would_be_escalated(settings: Settings) -> None:
    del WHITELIST["count"]

    job = job_of(parse("TASK: count"), settings)

    assert job.task is None
    assert "not in the whitelist" in " ".join(reasons_to_ask(job, agent_of(settings)))
