"""What the API accepts, checked by pydantic. Unknown keys are errors: a misspelt switch must not be taken for none."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Because = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=63)]
FileText = Annotated[str, Field(max_length=1024 * 1024)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanBody(Body):
    manifest: FileText
    file: Annotated[str, Field(max_length=1000)] = "manifest.yml"
    variables: dict[str, Annotated[str, Field(max_length=64 * 1024)]] = Field(default_factory=dict, max_length=1000)
    env_files: dict[str, FileText] = Field(default_factory=dict, max_length=200)
    migrate: bool = False


class DeployBody(PlanBody):
    dry_run: bool = False
    because: Because = ""
    if_revision: int | None = Field(default=None, ge=0)


class ActBody(Body):
    containers: list[Name] = Field(default_factory=list, max_length=200)
    because: Because = ""


class FenceConfirmBody(Body):
    instance: Annotated[str, Field(min_length=5, max_length=200)]
    because: Annotated[str, Field(min_length=1, max_length=2000)]


class ResurrectionBody(Body):
    enabled: bool
    because: Because = ""


class PauseBody(Body):
    seconds: float | None = Field(default=None, gt=0)
    because: Because = ""


class BecauseBody(Body):
    because: Because = ""


class MeltdownBody(Body):
    seconds: float = Field(gt=0)
    because: Because = ""
