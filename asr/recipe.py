"""A recipe's YAML over the defaults of `asr.config`, then `section.key=value` overrides over that."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asr.config import TrainConfig
from asr.errors import AsrError

__all__ = ["load_config"]

QUOTED = re.compile(r"""("[^"]*"|'[^']*')""")
"""What YAML takes the quotes off."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> TrainConfig:
    """The recipe in a YAML file over the defaults, with `section.key=value` overrides over both.

    An override of a text is taken as it stands, or from within quotes; any other is YAML.
    Raises AsrError for a missing file, one that is not YAML, a key that does not exist (with the nearest that does), a
    value of another type and a value that breaks a rule.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    if path is not None and not Path(path).is_file():
        raise AsrError(f"recipe not found: {path}")
    try:
        recipe = OmegaConf.load(path) if path is not None else OmegaConf.create()
        for override in overrides:
            if "=" not in override:
                raise AsrError(f"{override}: settings are written section.key=value, such as trainer.epochs=3")
        changes = OmegaConf.create()
        for override in overrides:
            key, _, value = override.partition("=")
            if _is_text(key) and not QUOTED.fullmatch(value):  # YAML would read 2026_11_30 as a number
                OmegaConf.update(changes, key, value)
            else:  # YAML reads nothing as null
                changes.merge_with_dotlist([override if value else f'{key}=""'])
        for source in (recipe, changes):
            for key in sorted(OmegaConf.missing_keys(source)):
                raise AsrError(f"{key}=??? waits for a value")
            _check_keys(OmegaConf.to_container(source), TrainConfig, "")
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), recipe, changes)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise AsrError(f"{path or 'overrides'}: {error.full_key}: {str(error).splitlines()[0]}") from error
    # OmegaConf's OSError: a file that holds a bare number; a RecursionError: thousands of brackets.
    except (YAMLError, ValueError, OSError, RecursionError) as error:
        raise AsrError(f"{path or 'overrides'}: not YAML: {error}") from error
    except AsrError as error:
        raise AsrError(f"{path or 'overrides'}: {error}") from error
    assert isinstance(config, TrainConfig)
    return config


def _is_text(key: str, section: Any = TrainConfig) -> bool:
    """Whether a setting, named with its sections, is a text."""
    name, _, inner = key.partition(".")
    item = next((item for item in dataclasses.fields(section) if item.name == name), None)
    if item is None or not inner:
        return item is not None and item.type == "str"
    return dataclasses.is_dataclass(item.default_factory) and _is_text(inner, item.default_factory)


def _all_keys(section: Any, prefix: str) -> Iterator[str]:
    """The names of all settings, with their sections."""
    for item in dataclasses.fields(section):
        yield f"{prefix}{item.name}"
        if dataclasses.is_dataclass(item.default_factory):
            yield from _all_keys(item.default_factory, f"{prefix}{item.name}.")


def _check_keys(given: Any, section: Any, prefix: str) -> None:
    """Raise AsrError for the first key of `given` that the dataclass `section` lacks."""
    if not isinstance(given, dict):
        raise AsrError(f"{prefix.rstrip('.') or 'the recipe'} must be a section of `key: value` lines")
    known = {item.name: item for item in dataclasses.fields(section)}
    for key, value in given.items():
        if key not in known:
            near = [f"{prefix}{name}" for name in difflib.get_close_matches(str(key), known, n=1)]
            near += [name for name in _all_keys(TrainConfig, "") if name.endswith(f".{str(key).rpartition('.')[2]}")]
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            raise AsrError(f"unknown setting {prefix}{key}; {hint}")
        if str(known[key].type).startswith("list"):
            items = value if isinstance(value, list) else [value]
            if any(isinstance(item, (dict, list)) for item in items):
                raise AsrError(f"{prefix}{key}={value!r} must be a list of single values")
            if items is not value:
                raise AsrError(f"{prefix}{key}={value!r} must be a list such as [{value}]")
        inner = known[key].default_factory
        if dataclasses.is_dataclass(inner):
            _check_keys(value, inner, f"{prefix}{key}.")
