"""Which methods there are, what each can do to which modules, and why it cannot to others."""

from __future__ import annotations

import pkgutil
import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from afm_dist import methods
from afm_dist.compression.config import MethodConfig
from afm_dist.compression.method import ALREADY_COMPRESSED, Method
from afm_dist.compression.references import references
from afm_dist.errors import DataError

if TYPE_CHECKING:
    from afm_dist.compression.facts import MethodFacts
    from afm_dist.compression.look import Look
    from afm_dist.compression.plan import PlanEntry
    from afm_dist.compression.variant import Variant

    EarlierReader = Callable[[Mapping[str, Any]], tuple[PlanEntry, ...]]

_CONFIGS: dict[str, type[MethodConfig]] = {}
_METHODS: dict[tuple[type[MethodConfig], type[nn.Module]], Method[Any, Any]] = {}
_FACTS: dict[type[MethodConfig], MethodFacts[Any]] = {}
_EARLIER: dict[int, list[EarlierReader]] = {}
_VARIANTS: dict[str, Variant] = {}
_Holders = dict[int, list[tuple[nn.Module, str]]]

# Their fused computations take the weights of their parts, which are then never called.
_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def register_method(
    config_type: type[MethodConfig], module_type: type[nn.Module], method: Method[Any, Any]
) -> None:
    """Say how modules of a type are compressed by a method.

    Args:
        config_type: Of the method; its ``tag`` is what plans call it.
        module_type: Exactly this type, since a subclass may compute something else; but for ``nn.Module``,
            which stands for every type that is not registered itself.
        method: Of all modules of this type.

    Raises:
        ValueError: another config has the same tag.
    """
    if _CONFIGS.setdefault(config_type.tag, config_type) is not config_type:
        raise ValueError(f"tag {config_type.tag!r} is that of {_CONFIGS[config_type.tag].__name__} already")
    _METHODS[config_type, module_type] = method


def register_facts(config_type: type[MethodConfig], facts: MethodFacts[Any]) -> None:
    """Say what a method tells reports about itself; without, they show its label and sizes alone."""
    _FACTS[config_type] = facts


def facts_of(config_type: type[MethodConfig]) -> MethodFacts[Any]:
    """Find what a method tells reports about itself."""
    from afm_dist.compression.facts import MethodFacts

    _discover()
    return _FACTS.get(config_type) or MethodFacts()


def looks() -> Mapping[str, Look]:
    """Give how reports show what each method made, by the name in a report."""
    _discover()
    return {name: look for facts in _FACTS.values() for name, look in facts.looks.items()}


def facts_by_name(name: str) -> MethodFacts[Any]:
    """Find what a method tells reports about itself, by the name in a report."""
    from afm_dist.compression.facts import MethodFacts

    _discover()
    return next((facts for facts in _FACTS.values() if name in facts.looks), MethodFacts())


def register_earlier_reader(version: int, reader: EarlierReader) -> None:
    """Say how a method's entries are read from plans of an earlier format version.

    Args:
        version: Of the plan format.
        reader: Gives the entries that it understands of a plan's plain values; several readers of a version
            are asked in the order of their registration.
    """
    _EARLIER.setdefault(version, []).append(reader)


def register_variant(variant: Variant) -> None:
    """Say what jobs may compare under a name.

    Raises:
        ValueError: another variant has the name.
    """
    if _VARIANTS.setdefault(variant.name, variant) is not variant:
        raise ValueError(f"variant {variant.name!r} is registered already")


def variants() -> Mapping[str, Variant]:
    """Give all variants by name: method after method, whichever was imported first, each in its own order."""
    _discover()
    return dict(sorted(_VARIANTS.items(), key=lambda item: type(item[1]).__module__))


@cache
def _discover() -> None:
    """Import every folder of ``afm_dist.methods``; each registers what it has."""
    for found in sorted(pkgutil.iter_modules(methods.__path__), key=lambda found: found.name):
        import_module(f"{methods.__name__}.{found.name}")


def earlier_readers() -> Mapping[int, EarlierReader]:
    """Give, for each earlier version of the plan format, what reads the entries."""
    _discover()

    def reader(parts: list[EarlierReader]) -> EarlierReader:
        return lambda value: tuple(entry for part in parts for entry in part(value))

    return {version: reader(parts) for version, parts in _EARLIER.items()}


def config_type(tag: Any, *, source: str) -> type[MethodConfig]:
    """Find the config that a plan names: of the registered ones only.

    Raises:
        DataError: names the tag, and the known ones.
    """
    _discover()
    found = _CONFIGS.get(tag) if isinstance(tag, str) else None
    if found is None:
        raise DataError(
            f"{source}: method {reprlib.repr(tag)} is unknown; known are {', '.join(sorted(_CONFIGS))}"
        )
    return found


def registered() -> Mapping[tuple[type[MethodConfig], type[nn.Module]], Method[Any, Any]]:
    """Give all methods by the types of config and module they are registered for."""
    _discover()
    return dict(_METHODS)


def method_for(config: MethodConfig, module: nn.Module) -> Method[Any, Any] | None:
    """Find the method that applies a config to a module; None: it does not take modules of this type."""
    _discover()
    kind = type(config)
    return _METHODS.get((kind, type(module))) or _METHODS.get((kind, nn.Module))


def compressible(model: nn.Module) -> list[str]:
    """List the modules that can be compressed from scratch, in the order of the model."""
    return [name for name, reason in refusals(model).items() if reason is None]


def refusals(model: nn.Module) -> dict[str, str | None]:
    """Say for each module of a model why no method compresses it; None for those that one does."""
    ties = _Ties(_holders(model), references(model))
    return {name: _refusal(model, name, module, ties, None) for name, module in model.named_modules()}


def refusal(model: nn.Module, name: str, config: MethodConfig | None = None) -> str | None:
    """Say why a module cannot be compressed, to be read behind its name; None if it can.

    Args:
        model: Holds the module.
        name: Of the module.
        config: By this method; None: by any that starts from the uncompressed module.
    """
    ties = _Ties(_holders(model), references(model))
    return _refusal(model, name, model.get_submodule(name), ties, config)


def irreplaceable(model: nn.Module, name: str) -> str | None:
    """Say why a module cannot be replaced, whatever its type, to be read behind its name; None if it can."""
    return _irreplaceable(model.get_submodule(name), _Ties(_holders(model), references(model)))


def has_method(module: nn.Module) -> bool:
    """Tell whether some method takes modules of this type, or of one it derives from."""
    _discover()
    return isinstance(module, tuple(_module_types(None)))


def methods_for(module: nn.Module) -> list[Method[Any, Any]]:
    """List the methods that put something in the place of modules of exactly this type."""
    _discover()
    return [method for (_, kind), method in _METHODS.items() if kind is type(module) and method.replaces]


def _module_types(config: MethodConfig | None) -> list[type[nn.Module]]:
    """List the types that a method takes, or that some method takes that does not stack, each once."""
    found = [
        kind
        for (own, kind), method in _METHODS.items()
        if kind is not nn.Module and (not method.stacks if config is None else own is type(config))
    ]
    return list(dict.fromkeys(found))


class _Ties(NamedTuple):
    """What else refers to the modules of a model: holders of their parameters, other ways to reach them."""

    holders: _Holders
    elsewhere: Mapping[nn.Module, str]


def _irreplaceable(module: nn.Module, ties: _Ties) -> str | None:
    return _hooked(module) or _tied(module, ties.holders) or _referenced(module, ties.elsewhere)


def _refusal(
    model: nn.Module, name: str, module: nn.Module, ties: _Ties, config: MethodConfig | None
) -> str | None:
    _discover()
    methods = _taking(module, config)
    if config is not None and methods and not any(method.replaces for method in methods):
        return methods[0].refusal(module)
    if module is model:
        return "itself has no parent to replace it in; wrap it, for example in nn.Sequential"
    stacks = config is not None and any(method.stacks for method in methods)
    made = tuple(kind for method in _METHODS.values() for kind in method.makes if not stacks)
    for owner_name, owner in _owners(model, name):
        if isinstance(owner, made):
            return f"is a part of {owner_name}, which {ALREADY_COMPRESSED}"
        if isinstance(owner, _CLOSED):
            whole = f"{owner_name or 'the model'}, a {type(owner).__name__}"
            return f"is a part of {whole}, which reads the weights of its parts without calling them"
    if isinstance(module, made):
        return ALREADY_COMPRESSED
    if not methods:
        kinds = ", ".join(kind.__name__ for kind in _module_types(config))
        by = "" if config is None else f" by {config.tag}"
        return f"is a {type(module).__name__}, which cannot be compressed{by} (only {kinds} can)"
    reasons = [method.refusal(module) for method in methods]
    return (None if None in reasons else reasons[0]) or _irreplaceable(module, ties)


def _taking(module: nn.Module, config: MethodConfig | None) -> list[Method[Any, Any]]:
    """List the methods that may compress a module: of a config, or all that do not stack."""
    if config is not None:
        method = method_for(config, module)
        return [] if method is None else [method]
    return [method for (_, kind), method in _METHODS.items() if kind is type(module) and not method.stacks]


def _owners(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a module is a part of, from the model inwards."""
    parts = name.split(".")
    for depth in range(len(parts)):
        owner = ".".join(parts[:depth])
        yield owner, model.get_submodule(owner)


def _hooked(module: nn.Module) -> str | None:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if not any(hooks):
        return None
    return (
        "has hooks, which a replacement would lose (some of them, like weight_norm's and pruning's, make "
        "the weights); remove them first"
    )


def _referenced(module: nn.Module, elsewhere: Mapping[nn.Module, str]) -> str | None:
    if module not in elsewhere:
        return None
    return (
        f"is also reached by {elsewhere[module]}, which would go on with the original when a replacement "
        "takes its place among the registered modules; hold modules as attributes, or in nn.ModuleList or "
        "nn.ModuleDict, and reach them by those"
    )


def _holders(model: nn.Module) -> _Holders:
    """Group by where a parameter lies: who holds it, and under which name."""
    holders: _Holders = {}
    for owner_name, owner in model.named_modules():
        for name, parameter in owner.named_parameters(owner_name, recurse=False):
            holders.setdefault(_memory(parameter), []).append((owner, name))
    return holders


def _tied(module: nn.Module, holders: _Holders) -> str | None:
    """Say whether another module holds a parameter of this one, or one in the same memory."""
    family = set(module.modules())
    for key, parameter in module.named_parameters():
        for owner, name in holders[_memory(parameter)]:
            if owner not in family:
                return (
                    f"has its {key} tied to {name}, which a replacement would silently untie; untie them "
                    "first, or leave it out"
                )
    return None


def _memory(parameter: Tensor) -> int:
    """Say where a tensor lies; transposed it lies at the same place."""
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return parameter.data_ptr()
