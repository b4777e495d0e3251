"""Reads the settings from where people put them: a TOML file, the environment, the command line.

Law of this file: nothing is ignored in silence. A key or a variable that means nothing is an error with a
suggestion, and every error is one line that names the file, the variable or the flag it came from.
"""

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import cast, get_origin

from cyclopts import (
    App,
    Argument,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    Token,
    UnusedCliTokensError,
    ValidationError,
)
from cyclopts.config import Dict, Env
from cyclopts.utils import UNSET

from app.settings import Settings

ENV_PREFIX = "LANEWAY_"
_ENVIRONMENT = "the environment"
_CONFIG_OPTION = "--config"
_POSITIONAL_MODEL = "[MODEL]"
_MODEL_OPTION = "--model"


class SettingsError(CycloptsError):
    """The settings cannot be read. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(msg=message)  # pyright: ignore[reportUnknownMemberType] - cyclopts leaves ``target`` untyped


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSetting:
    """One setting as it holds, and who said so."""

    group: str
    name: str
    """As in the TOML file."""
    value: object
    origin: str
    """``default``, the file's path, the variable's name, or the flag."""


class Sources:
    """The chain of sources, as cyclopts asks for it; remembers where each value came from.

    cyclopts has put the command line's values into the arguments before it calls the chain. A source that
    comes later only fills what is still empty, so the order of ``chain`` is the order of precedence.
    """

    def __init__(self) -> None:
        self._origins: dict[str, str] = {}
        self.chain = [
            self._take_positional_model,
            self._refuse_unknown_variables,
            # One flat name everywhere: the commands are no part of it.
            Env(ENV_PREFIX, source=_ENVIRONMENT, command=False),
            self._forget_empty_variables,
            self._read_config_file,
            self._split_lists,
            self._remember_origins,
        ]

    def resolved(self, settings: Settings) -> list[ResolvedSetting]:
        """Every setting with its origin, in the order of the groups. Call it after parsing."""
        return [
            ResolvedSetting(
                group=group.name,
                name=option.name,
                value=getattr(getattr(settings, group.name), option.name),
                origin=self._origins.get(option.name, "default"),
            )
            for group in fields(Settings)
            for option in fields(getattr(settings, group.name))
        ]

    def _take_positional_model(
        self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        """``serve MODEL`` is ``serve --model MODEL``."""
        positional = _find(arguments, _POSITIONAL_MODEL)
        option = _find(arguments, _MODEL_OPTION)
        if positional is None or option is None or not positional.tokens:
            return
        if option.tokens:
            first, second = positional.tokens[0].value, option.tokens[0].value
            raise SettingsError(f'The model is given twice: "{first}" and --model "{second}".')
        option.tokens = [_renamed(token, "MODEL") for token in positional.tokens]
        positional.tokens = []

    def _refuse_unknown_variables(
        self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        known = {ENV_PREFIX + key.upper() for key in _keys(arguments)} | {f"{ENV_PREFIX}CONFIG"}
        for variable in sorted(os.environ):
            if variable.startswith(ENV_PREFIX) and variable not in known:
                raise SettingsError(
                    f'Unknown environment variable "{variable}".{_did_you_mean(variable, known)}'
                )

    def _forget_empty_variables(
        self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection
    ) -> None:
        """A variable that is set to nothing is not set: compose files and unit files cannot leave one out."""
        for argument in arguments:
            argument.tokens = [
                token for token in argument.tokens if token.source != _ENVIRONMENT or token.value
            ]

    def _read_config_file(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        config = _find(arguments, _CONFIG_OPTION)
        if config is None or not config.tokens:
            return
        token = config.tokens[0]
        values = _read_toml(Path(token.value).expanduser(), named_by=token.keyword or _CONFIG_OPTION)
        known = _keys(arguments)
        for key, value in values.items():
            if key not in known:
                raise SettingsError(
                    f'Unknown key "{key}" in {token.value}.{_did_you_mean(key, known)}{_flatten(value)}'
                )
            if isinstance(value, dict):
                raise SettingsError(f'"{key}" in {token.value} is a table; it must be a single value.')
        Dict(values, source=token.value, use_commands_as_keys=False)(app, commands, arguments)
        for argument in arguments:
            argument.tokens = [
                _renamed(each, _key(argument)) if each.source == token.value else each
                for each in argument.tokens
            ]

    def _split_lists(self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """What is a list may be written as one text, too, with commas or spaces between."""
        for argument in arguments:
            if get_origin(argument.hint) is tuple:
                argument.tokens = [
                    _with_value(token, value)
                    for token in argument.tokens
                    for value in token.value.replace(",", " ").split() or [token.value]
                ]

    def _remember_origins(self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        for argument in arguments:
            for token in argument.tokens:
                _refuse_fraction(argument, token)
                self._origins[_key(argument)] = _origin(token)


def explain(error: CycloptsError) -> str:
    """The error as one line."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f'Unexpected argument "{error.unused_tokens[0]}".'
    if isinstance(error, ValidationError) and error.argument is not None and not error.argument.tokens:
        return error.exception_message  # about several settings together; it names them
    if isinstance(error, ValidationError) and error.argument is not None:
        value = error.argument.value if error.value is UNSET else error.value
        if isinstance(value, tuple):
            error.value = ", ".join(map(str, cast("tuple[object, ...]", value)))
    return " ".join(str(error).split())


def _read_toml(path: Path, *, named_by: str) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"There is no file {path} ({named_by}).") from error
    except OSError as error:
        raise SettingsError(f"Cannot read {path} ({named_by}): {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from error


def _find(arguments: ArgumentCollection, name: str) -> Argument | None:
    return next((argument for argument in arguments if argument.name == name), None)


def _renamed(token: Token, keyword: str) -> Token:
    """The token under the name that people know it by; error messages show it."""
    return Token(keyword=keyword, value=token.value, source=token.source, index=token.index, keys=token.keys)


def _with_value(token: Token, value: str) -> Token:
    return Token(keyword=token.keyword, value=value, source=token.source, index=token.index, keys=token.keys)


def _key(argument: Argument) -> str:
    """The name without its spelling as a flag: ``--max-batch-size`` is ``max_batch_size``."""
    return argument.name.lstrip("-").replace("-", "_")


def _keys(arguments: ArgumentCollection) -> set[str]:
    names = {_key(argument) for argument in arguments if argument.name.startswith("--")}
    return names - {"config"}


def _origin(token: Token) -> str:
    if token.source in ("cli", _ENVIRONMENT):
        return token.keyword or "command line"
    return token.source


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""


def _flatten(value: object) -> str:
    return " Keys are flat: write them without a table." if isinstance(value, dict) else ""


def _refuse_fraction(argument: Argument, token: Token) -> None:
    # cyclopts reads "8.5" as the whole number 8.
    if argument.hint in (int, tuple[int, ...]) and "." in token.value:
        raise CoercionError(argument=argument, token=token, target_type=int)
