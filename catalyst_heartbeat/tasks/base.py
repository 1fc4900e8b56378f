"""The shape of a task, as the whitelist lists it, and of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from catalyst_heartbeat.files.diff import Diff
from catalyst_heartbeat.outcome import Context, Outcome, Result
from catalyst_heartbeat.settings import Settings


class Params(BaseModel):
    """The parameters of a task: nothing is converted, nothing unknown is let in."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class NoParams(Params):
    """A task without parameters."""


@dataclass(frozen=True)
class OneOf:
    """Annotates a parameter that must be, whole, one of the values that a setting lists.

    Models are validated with `context=settings`. A number may also come as its digits. The
    JSON Schema says {"enum": "<setting>"}; `catalogue.input_schema` puts the values there.
    """

    setting: Literal["trading_services", "log_services", "system_units", "health_ports"]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": self.setting}

    def check(self, value: Any, info: ValidationInfo) -> Any:
        for allowed in getattr(info.context, self.setting):
            if type(value) in (int, str) and value in (allowed, str(allowed)):
                return allowed
        known = ", ".join(str(item) for item in getattr(info.context, self.setting))
        raise PydanticCustomError("one_of", "not one of: {known}", {"known": known})


@dataclass(frozen=True)
class Task:
    """A whitelist entry. The description of the task is the docstring of `run`.

    `timeout` is in seconds. `changes` says that it must never run twice. `investigate` finds out,
    after an interruption, whether it happened: it gets the time of the claim in seconds since
    1970 on this host's clock and returns None where the truth cannot be known. `approval` says
    why these parameters need a person, or None. `preview` returns the diff that a run would make.
    """

    category: str
    params: type[Params]
    run: Callable[[Any, Context], Result]
    timeout: int
    changes: bool = False
    investigate: Callable[[Any, Context, float], Outcome | None] | None = None
    approval: Callable[[Any, Settings], str | None] | None = None
    preview: Callable[[Any, Context], Diff] | None = None
