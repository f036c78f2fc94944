"""Every setting of a run, each with its meaning and its unit; a mistake is one line that names it.

A configuration is immutable. ``parse_config`` turns a nested mapping into one; ``overrides.py``
builds that mapping from a recipe and the command line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    InstanceOf,
    ValidationError,
    field_serializer,
    model_validator,
)

from nablaflow import methods
from nablaflow.config.aliases import ALIASES
from nablaflow.config.settings import (
    EvaluationSettings,
    GuardSettings,
    OptimizerSettings,
    Seed,
    TrainingSettings,
)
from nablaflow.config.values import RewardSpec, check_path, check_scalar
from nablaflow.errors import UserError, nearest, one_line, show
from nablaflow.methods import Method
from nablaflow.methods.contract import check_noise
from nablaflow.models import AdapterSettings, FlowSettings, SamplerSettings
from nablaflow.places import at_home
from nablaflow.prompts.source import PromptSource
from nablaflow.rewards.custom import is_custom
from nablaflow.settings import Kinds, Settings, dotted, explain, group_of, named_kinds, nearest_key

SHARED_ROLLOUT = 4
"""Updates that share one, where they can: sampling is then a small part of the work."""

# Settings whose text is a path; a list of prompts is none.
PATHS = {("model",), ("output_dir",), ("prompts",), ("evaluation", "prompts"), ("guard", "prompts")}
PATHS |= {("model_lora",), ("adapter", "start")}
# Validation is strict, but YAML has text for paths.
AnyPath = Annotated[Path, Field(strict=False), AfterValidator(at_home)]


class Config(Settings):
    """All settings of a run. Every command reads this and nothing else."""

    model: str = Field(
        default="nano",
        min_length=1,
        description='"nano" or "flow" (embedded), a folder in diffusers format, or a hub id, with '
        "@REVISION for another than its default branch",
    )
    model_hash: str | None = Field(
        default=None,
        description="of the files of a model's folder, the commit of a hub id, or of the weights "
        "of a pipeline that was handed over in Python, which a run records and checks when it is "
        "resumed, measured or sampled; null: they are not checked",
    )
    model_lora: str | None = Field(
        default=None,
        min_length=1,
        description="a LoRA that is fused into the model first, so that the two are the reference, "
        "which the KL and the tilt are of: a .safetensors file as diffusers, peft, kohya's scripts "
        "or ComfyUI have it, or a folder with one; null: none",
    )
    model_lora_scale: float = Field(
        default=1.0, description="strength at which model_lora is fused; 1 is as it was trained"
    )
    model_lora_hash: str | None = Field(
        default=None,
        description="SHA-256 of that file, which a run records, so that another one is noticed",
    )
    reward: RewardSpec = Field(
        description="name of a reward, path/to/file.py:function (after trl: with TRL's signature), "
        "a mapping with name and settings, or a mapping of those to weights"
    )
    prompts: PromptSource | None = Field(
        description="list of prompts, a text file with one a line, .jsonl or .csv, a set by name, "
        "hub:owner/name, trl:path/to/file.py:function; or a mapping of source, column, split and "
        "count; null: an unconditional model"
    )
    output_dir: AnyPath = Field(description="the run folder")
    seed: Seed = Field(
        default=0, description="of training: noise, order of the prompts, chosen transitions"
    )
    method: InstanceOf[Method] = Field(
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
    def _scale_is_of_a_lora(self) -> Config:
        if self.model_lora is None and self.model_lora_scale != 1.0:
            raise ValueError("model_lora_scale: there is no model_lora to scale; leave it out")
        return self

    @model_validator(mode="after")
    def _only_ddim_has_eta(self) -> Config:
        if self.sampler.name != "ddim" and self.sampler.eta != 1.0:
            raise ValueError(
                f"sampler.eta: {self.sampler.name} has none; leave it out or set sampler.name=ddim"
            )
        return self

    @model_validator(mode="after")
    def _noise_fits_the_method(self) -> Config:
        noisy = self.sampler.name != "euler"
        check_noise(self.method, noisy=noisy)
        limited = self.guard is not None and self.guard.max_kl is not None
        if limited and not noisy and self.guard != GuardSettings.that_warns():
            raise ValueError(
                "guard.max_kl: without noise there is no divergence of paths to bound; leave it "
                "out, and use guard.min_diversity or guard.budgets"
            )
        if not noisy and self.sampler.variance == "analytic":
            raise ValueError("sampler.variance: euler's steps have none; leave it out")
        return self

    @model_validator(mode="after")
    def _some_transition_is_trained(self) -> Config:
        if self.strata < 1 and not self.method.one_transition:
            steps = self.sampler.steps
            raise ValueError(
                f"training.transition_fraction: {self.training.transition_fraction:g} of "
                f"sampler.steps={steps} is no transition at all; "
                f"use training.transition_fraction={_least_fraction(steps):g} or more steps"
            )
        return self

    @property
    def updates_per_rollout(self) -> int:
        """How many updates share a rollout, also where the recipe leaves it open."""
        given = self.training.updates_per_rollout
        if given is not None:
            return given
        able = self.method.trains_at_any_state and self.training.data == "on-policy"
        return SHARED_ROLLOUT if able else 1

    @property
    def strata(self) -> int:
        """Transitions trained in each trajectory: one from each stratum of its steps."""
        return round(self.training.transition_fraction * self.sampler.steps)

    @property
    def transitions_each(self) -> int:
        """Transitions of each trajectory that are trained."""
        always_last = bool(getattr(self.method, "always_last", False))
        return 1 if self.method.one_transition else self.strata + always_last

    @field_serializer("method")
    def _with_its_name(self, method: Method) -> dict[str, Any]:
        return method_settings(method)


def _least_fraction(steps: int) -> float:
    """The smallest share with two significant digits that selects one of ``steps``."""
    digits = math.ceil(math.log10(steps)) + 1
    return math.ceil(10**digits / steps) / 10**digits


# --- the method: a name and the settings of the class registered under it ------------------------

Group = TypeVar("Group", bound=BaseModel)


def registered_methods() -> Mapping[str, type[Method]]:
    """Name to class."""
    return methods.METHODS


FindMethod = Callable[[str], type[Method]]
"""From ``path/to/file.py:Class`` to the class; running the file is only for whoever may."""


def find_none(spec: str) -> type[Method]:
    """For settings that are data: no file is run for them."""
    raise UserError(f"method.name: {spec!r} is code, which is not run here; name a method")


def method_settings(method: Method) -> dict[str, Any]:
    """A method as plain data: its name, then its settings.

    Raises:
        UserError: it is no method, or its class has no name.
    """
    from nablaflow.methods import Method
    from nablaflow.methods.own import own_name

    if not isinstance(method, Method):
        raise UserError(f"method: {type(method).__name__} is none; derive it from nablaflow.Method")
    name = own_name(type(method)) if is_own(method) else method.name
    return {"name": name, **method.model_dump(mode="json", exclude={"name"})}


def is_own(value: BaseModel) -> bool:
    """Whether it is a method of the user's own, of a class that is not in the list."""
    return isinstance(value, Method) and type(value) not in registered_methods().values()


RENAMED = {"tilted-matching": "path-weighted-matching"}
"""Methods by the name that older recipes have; Tilt Matching (arXiv 2512.21829) is another."""


def _by_present_name(value: Any) -> Any:
    """The same choice of a method by the name that it has now, which is said."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or name not in RENAMED:
        return value
    print(f"method.name: {name} is called {RENAMED[name]} now", file=sys.stderr)
    return {**value, "name": RENAMED[name]} if isinstance(value, Mapping) else RENAMED[name]


def parse_method(value: Any, find: FindMethod = find_none) -> Method:
    """A method from its name, from a mapping with ``name`` and settings, or itself.

    Args:
        find: finds the class of a user's own.

    Raises:
        UserError: unknown name, unknown setting, a setting of another method, a wrong value.
    """
    if isinstance(value, Method):
        method_settings(value)
        return value
    value = _by_present_name(value)
    _check_is_method(value)
    kind, settings = _chosen(_kinds_for(value, find), value, "method")
    for name, field in kind.model_fields.items():
        kinds, inner = named_kinds(kind, name), settings.get(name)
        asked = name in settings or field.is_required()
        if kinds and asked and not isinstance(inner, BaseModel):
            chosen, given = _chosen(kinds, inner, f"method.{name}")
            settings[name] = {"name": chosen.model_fields["name"].default, **given}
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise _refusal(explain(error, kind, ("method",), suggest)) from None


def _check_is_method(value: Any) -> None:
    """Say of an object that is no method what it is."""
    if isinstance(value, type):
        raise UserError(f"method: {value.__name__} is a class; make one, {value.__name__}(beta=…)")
    if isinstance(value, BaseModel):
        raise UserError(f"method: {type(value).__name__} trains nothing; give a method to train by")


def _kinds_for(value: Any, find: FindMethod) -> Mapping[str, type[Method]]:
    """The methods of the list, and the user's own if one is asked for."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if isinstance(name, str) and is_custom(name):
        return {**registered_methods(), name: find(name)}
    return registered_methods()


def _chosen(
    kinds: Mapping[str, type[Group]], value: Any, place: str
) -> tuple[type[Group], dict[str, Any]]:
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


def parse_group(kind: type[Group], values: Mapping[str, Any], place: str) -> Group:
    """One group of settings by itself.

    Raises:
        UserError: one line: the dotted key, what is wrong, the remedy.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(explain(error, kind, (place,), suggest)) from None


# --- from a mapping to a configuration, or to one line --------------------------------------------


def parse_config(values: Mapping[str, Any], find: FindMethod = find_none) -> Config:
    """The configuration that a nested mapping describes.

    Args:
        find: finds the class of a method of the user's own; by default there is none.

    Raises:
        UserError: one line: the dotted key, what is wrong, the remedy.
    """
    unknown = [str(key) for key in values if key not in Config.model_fields]
    if unknown:
        raise _refusal(f"{unknown[0]}: unknown key; {suggest(unknown[0], Config)}")
    _check_values(values)
    settings = dict(values)
    if settings.get("method") is not None:
        settings["method"] = parse_method(settings["method"], find)
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise _refusal(explain(error, Config, (), suggest)) from None
    # What is saved says what there is; flow settings that a recipe shares among methods may stay.
    return config if config.method.uses_flow else config.model_copy(update={"flow": None})


def _check_values(value: Any, place: tuple[int | str, ...] = ()) -> None:
    """No number or text of which something would go wrong far from here."""
    try:
        check_scalar(value)
        if place in PATHS:
            check_path(value)
        if place in PATHS and place[-1] != "prompts" and value == "":
            raise ValueError("is empty; give a path")
    except ValueError as error:
        raise _refusal(f"{dotted(place)}: {error}") from None
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


def suggest(word: str, group: type[BaseModel]) -> str:
    """The nearest key beside the unknown one, the same one in another group, or what is meant."""
    hint = nearest_key(word, group)
    elsewhere = [key for key in _leaves(Config) if key.rsplit(".", 1)[-1] == word]
    if elsewhere and not hint.startswith("did you mean"):
        return f"did you mean {elsewhere[0]}?"
    return f"did you mean {ALIASES[word]}?" if word in ALIASES else hint


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings that hold a value, those of every method included."""
    for name in model.model_fields:
        group = group_of(model, name)
        kinds = registered_methods() if name == "method" else named_kinds(model, name)
        groups = [group] if group else list((kinds or {}).values())
        for inner in groups:
            yield from _leaves(inner, f"{prefix}{name}.")
        if not groups:
            yield prefix + name
