"""Every setting of a run, each with its meaning and its unit; a mistake is one line that names it.

A configuration is immutable. ``parse_config`` turns a nested mapping into one; ``overrides.py``
builds that mapping from a recipe and the command line.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    BaseModel,
    Field,
    InstanceOf,
    ValidationError,
    field_serializer,
    model_validator,
)

from nablaflow.config.settings import (
    EvaluationSettings,
    GuardSettings,
    OptimizerSettings,
    Seed,
    TrainingSettings,
)
from nablaflow.config.values import RewardSpec, check_path, check_scalar, one_line, show
from nablaflow.errors import UserError, nearest
from nablaflow.models import AdapterSettings, FlowSettings, SamplerSettings, Settings
from nablaflow.prompts.source import PromptSource

# Settings whose text is a path; a list of prompts is none.
PATHS = {("model",), ("output_dir",), ("prompts",), ("evaluation", "prompts"), ("guard", "prompts")}
# Validation is strict, but YAML has text for paths.
AnyPath = Annotated[Path, Field(strict=False)]


class Config(Settings):
    """All settings of a run. Every command reads this and nothing else."""

    model: str = Field(
        default="nano",
        min_length=1,
        description='"nano", a folder in diffusers format, or a hub id',
    )
    reward: RewardSpec = Field(
        description="name of a reward, path/to/file.py:function, a mapping with name and settings, "
        "or a mapping of those to weights"
    )
    prompts: PromptSource | None = Field(
        description="list of prompts, a text file with one a line, .jsonl or .csv, a set by name, "
        "hub:owner/name; or a mapping of source, column and split; null: an unconditional model"
    )
    output_dir: AnyPath = Field(description="the run folder")
    seed: Seed = Field(
        default=0, description="of training: noise, prompt order, chosen transitions"
    )
    method: InstanceOf[BaseModel] = Field(
        description="the objective: its name and its settings, such as method.beta"
    )
    sampler: SamplerSettings = Field(
        default_factory=SamplerSettings, description="the reverse process"
    )
    adapter: AdapterSettings = Field(
        default_factory=AdapterSettings, description="the weights to train"
    )
    flow: FlowSettings | None = Field(
        default_factory=FlowSettings,
        description="the flow network; null is none, and so it is for a method without use for one",
    )
    optimizer: OptimizerSettings = Field(
        default_factory=OptimizerSettings, description="the optimizer"
    )
    training: TrainingSettings = Field(description="the loop")
    evaluation: EvaluationSettings = Field(
        default_factory=EvaluationSettings, description="the measurement"
    )
    guard: GuardSettings | None = Field(
        default_factory=GuardSettings.that_warns,
        description="watches for reward hacking during training; without one of its settings it "
        "only warns; null is none",
    )

    @model_validator(mode="after")
    def _only_ddim_has_eta(self) -> Config:
        if self.sampler.name != "ddim" and self.sampler.eta != 1.0:
            raise ValueError(
                f"sampler.eta: {self.sampler.name} has none; leave it out or set sampler.name=ddim"
            )
        return self

    @model_validator(mode="after")
    def _some_transition_is_trained(self) -> Config:
        if self.strata < 1:
            steps = self.sampler.steps
            raise ValueError(
                f"training.transition_fraction: {self.training.transition_fraction:g} of "
                f"sampler.steps={steps} is no transition at all; "
                f"use training.transition_fraction={_least_fraction(steps):g} or more steps"
            )
        return self

    @property
    def strata(self) -> int:
        """Transitions trained in each trajectory: one from each stratum of its steps."""
        return round(self.training.transition_fraction * self.sampler.steps)

    @field_serializer("method")
    def _with_its_name(self, method: BaseModel) -> dict[str, Any]:
        return method_settings(method)


def _least_fraction(steps: int) -> float:
    """The smallest share with two significant digits that selects one of ``steps``."""
    digits = math.ceil(math.log10(steps)) + 1
    return math.ceil(10**digits / steps) / 10**digits


# --- the method: a name and the settings of the class registered under it ------------------------

Group = TypeVar("Group", bound=BaseModel)
Kinds = Mapping[str, type[BaseModel]]
"""Classes by the name that chooses between them."""


def registered_methods() -> Kinds:
    """Name to class. Imported on use, since methods bring torch and the models with them."""
    from nablaflow.methods import METHODS

    return METHODS


def method_settings(method: BaseModel) -> dict[str, Any]:
    """A method as plain data: its name, then its settings.

    Raises:
        UserError: the method's class is not registered.
    """
    for name, kind in registered_methods().items():
        if type(method) is kind:
            return {"name": name, **method.model_dump(mode="json", exclude={"name"})}
    raise UserError(
        f"method: {type(method).__name__} has no name; add it to nablaflow.methods.METHODS"
    )


RENAMED = {"tilted-matching": "path-weighted-matching"}
"""Methods by the name that older recipes have; Tilt Matching (arXiv 2512.21829) is another."""


def _by_present_name(value: Any) -> Any:
    """The same choice of a method by the name that it has now, which is said."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or name not in RENAMED:
        return value
    print(f"method.name: {name} is called {RENAMED[name]} now", file=sys.stderr)
    return {**value, "name": RENAMED[name]} if isinstance(value, Mapping) else RENAMED[name]


def parse_method(value: Any) -> BaseModel:
    """A method from its name, from a mapping with ``name`` and settings, or itself.

    Raises:
        UserError: unknown name, unknown setting, a setting of another method, a wrong value.
    """
    if isinstance(value, BaseModel):
        method_settings(value)
        return value
    kind, settings = _chosen(registered_methods(), _by_present_name(value), "method")
    for name, field in kind.model_fields.items():
        kinds, inner = named_kinds(kind, name), settings.get(name)
        asked = name in settings or field.is_required()
        if kinds and asked and not isinstance(inner, BaseModel):
            chosen, given = _chosen(kinds, inner, f"method.{name}")
            settings[name] = {"name": chosen.model_fields["name"].default, **given}
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise _refusal(_explain(error, kind, ("method",))) from None


def named_kinds(model: type[BaseModel], name: str) -> Kinds | None:
    """What a field may hold that is one of several groups, as an estimator is; else None."""
    field = model.model_fields.get(name)
    if field is None or field.discriminator != "name":
        return None
    return {kind.model_fields["name"].default: kind for kind in get_args(field.annotation)}


def _chosen(kinds: Kinds, value: Any, place: str) -> tuple[type[BaseModel], dict[str, Any]]:
    """The class and the settings that a name, or a mapping with ``name``, asks for at ``place``.

    Raises:
        UserError: unknown name, unknown setting, a setting of another of the ``kinds``.
    """
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise UserError(f"{place}.name: missing; {nearest('', kinds)}")
    name = settings["name"]
    if name not in kinds:
        what = place.rpartition(".")[2]
        raise _refusal(f"{place}.name: no {what} {show(name)}; {nearest(name, kinds)}")
    given = {key: inner for key, inner in settings.items() if key != "name"}
    for key in given:
        if key not in kinds[name].model_fields:
            raise _refusal(_not_a_setting(kinds, name, str(key), place))
    return kinds[name], given


def _not_a_setting(kinds: Kinds, name: str, key: str, place: str) -> str:
    owners = [other for other, kind in kinds.items() if key in kind.model_fields]
    own = [field for field in kinds[name].model_fields if field != "name"]
    if not owners:
        return f"{place}.{key}: unknown key for {name}; {nearest(key, own)}"
    remedy = f"leave it out or set {place}.name={owners[0]}"
    return f"{place}.{key}: a setting of {', '.join(owners)}, not of {name}; {remedy}"


def uses_flow(method: BaseModel) -> bool:
    """Whether a method has a use for the flow network."""
    return getattr(method, "uses_flow", True)


def parse_group(kind: type[Group], values: Mapping[str, Any], place: str) -> Group:
    """One group of settings by itself.

    Raises:
        UserError: one line: the dotted key, what is wrong, the remedy.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(_explain(error, kind, (place,))) from None


# --- from a mapping to a configuration, or to one line --------------------------------------------


def parse_config(values: Mapping[str, Any]) -> Config:
    """The configuration that a nested mapping describes.

    Raises:
        UserError: one line: the dotted key, what is wrong, the remedy.
    """
    unknown = [str(key) for key in values if key not in Config.model_fields]
    if unknown:
        raise _refusal(f"{unknown[0]}: unknown key; {_suggest(unknown[0], Config)}")
    _check_values(values)
    settings = dict(values)
    if settings.get("method") is not None:
        settings["method"] = parse_method(settings["method"])
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise _refusal(_explain(error, Config, ())) from None
    # What is saved says what there is; flow settings that a recipe shares among methods may stay.
    return config if uses_flow(config.method) else config.model_copy(update={"flow": None})


def _check_values(value: Any, place: tuple[int | str, ...] = ()) -> None:
    """No number or text of which something would go wrong far from here."""
    try:
        check_scalar(value)
        if place in PATHS:
            check_path(value)
    except ValueError as error:
        raise _refusal(f"{_dotted(place)}: {error}") from None
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    for key, part in inner:
        _check_values(part, (*place, key))


def _refusal(text: str) -> UserError:
    """One line, whatever the user's keys and values hold."""
    return UserError(one_line(text))


def _explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> str:
    """One line for the most telling of pydantic's errors: a misspelt key before what it left out.

    Args:
        model: the class that was validated; ``prefix`` is where it stands in the configuration.
    """
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place, owner = _place(first["loc"], model)
    key = _dotted((*prefix, *place))
    last = str(place[-1]) if place else ""
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_suggest(last, owner)}"
    field = owner.model_fields.get(last)
    problem = _problem(first, key, field.description if field else None)
    return f"{key}: {problem}" if key else problem


def _problem(error: Any, key: str, description: str | None) -> str:
    """What is wrong and the remedy, in this project's words, for one of pydantic's errors."""
    kind, message, value = error["type"], error["msg"], error["input"]
    if kind == "missing":
        what = f" ({description})" if description else ""
        return f"missing; set {key}=…{what}"
    if kind in ("value_error", "assertion_error"):
        return re.sub(r"^(Value|Assertion) error, ", "", message)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{show(value)} is not a choice; {nearest(str(value), choices)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"must hold settings of its own, such as {key}.…=…, not {show(value)}"
    must = re.sub(r"^Input (should|is not) (be )?", "must be ", message)
    return f"{must}, not {show(value)}"


def _suggest(word: str, group: type[BaseModel]) -> str:
    """The nearest key beside the unknown one, or else the same key in another group."""
    hint = nearest(word, group.model_fields)
    elsewhere = [key for key in _leaves(Config) if key.rsplit(".", 1)[-1] == word]
    if elsewhere and not hint.startswith("did you mean"):
        return f"did you mean {elsewhere[0]}?"
    return hint


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings that hold a value, those of every method included."""
    for name in model.model_fields:
        group = _group(model, name)
        kinds = registered_methods() if name == "method" else named_kinds(model, name)
        groups = [group] if group else list((kinds or {}).values())
        for inner in groups:
            yield from _leaves(inner, f"{prefix}{name}.")
        if not groups:
            yield prefix + name


def _group(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The class of a field that is a group of settings (or null), else None."""
    field = model.model_fields.get(name)
    if field is None or field.discriminator is not None:
        return None
    kinds = (field.annotation, *get_args(field.annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, Settings)), None)


def _place(
    loc: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[tuple[int | str, ...], type[BaseModel]]:
    """``loc`` without the names of union members that pydantic puts into it, and its group."""
    kept: list[int | str] = []
    owner, group, kinds = model, model, None
    for part in loc:
        if kinds is not None:
            group, kinds = kinds[str(part)], None
        elif group is not None:
            kept.append(part)
            owner = group
            group, kinds = _group(owner, str(part)), named_kinds(owner, str(part))
        elif isinstance(part, int):
            kept.append(part)
    return tuple(kept), owner


def _dotted(place: tuple[int | str, ...]) -> str:
    """``("training", "trackers", 0)`` as ``training.trackers[0]``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")
