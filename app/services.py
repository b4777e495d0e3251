"""What every route needs: built once in ``main.py``, kept in the application's state."""

from dataclasses import dataclass
from typing import Any, cast

from litestar.connection import ASGIConnection

from app.engine import Engine
from app.inputs import known_names
from app.live import LiveView
from app.media import ImageIntake
from app.metrics import Metrics
from app.settings import Settings
from app.tokens import Cl100kVocabulary

_KEY = "services"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The served model and what stands around it."""

    engine: Engine
    settings: Settings
    metrics: Metrics
    live: LiveView
    cl100k: Cl100kVocabulary
    intake: ImageIntake
    """Loads and decodes the images of requests."""
    created_s: int
    """Unix time of the start; ``created`` in the model list."""

    @property
    def served_names(self) -> tuple[str, ...]:
        """Every name the served model answers to, its own first."""
        return known_names(
            self.engine.served_name,
            self.engine.aliases,
            openai_aliases=self.settings.model.openai_aliases,
        )

    def as_state(self) -> dict[str, object]:
        """The value for Litestar's application state."""
        return {_KEY: self}


def services_of(connection: ASGIConnection[Any, Any, Any, Any]) -> Services:
    """The services of the application that a request came to."""
    return cast("Services", connection.app.state[_KEY])
