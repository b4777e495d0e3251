"""A request of another dialect in the words of ``/v1/embeddings``, and back for what is wrong with it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from app.errors import InvalidRequestError
from app.inputs import EmbeddingRequest
from app.wire import CreateEmbeddingRequest

_INPUT = re.compile(r"input\[(?P<index>\d+)\](?P<path>.*)", re.DOTALL)


class NameElement(Protocol):
    """What a client calls a part of one element of ``input``."""

    def __call__(self, index: int, path: str) -> str:
        """Name the part at ``path`` (such as ``.text``, empty for the whole element) of that element."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a dialect calls what the parser calls ``input`` and so on."""

    inputs: str
    """``input`` itself."""
    element: NameElement | None = None
    """``None``: each element keeps its index and path, as in ``inputs[3].content[0]``."""
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    """Every other field with a name of its own."""

    def name_of(self, param: str) -> str:
        """What the client calls a part of the request."""
        if param == "input":
            return self.inputs
        match = _INPUT.fullmatch(param)
        if match is None:
            return self.fields.get(param, param)
        if self.element is None:
            return self.inputs + param.removeprefix("input")
        return self.element(int(match["index"]), match["path"])

    def renamed(self, error: InvalidRequestError) -> InvalidRequestError:
        """The same refusal in the client's words."""
        if error.param is None:
            return error
        param = self.name_of(error.param)
        # Quoted in a message stands only what is blamed, so nothing else can be hit.
        message = error.message.replace(f"'{error.param}'", f"'{param}'")
        return InvalidRequestError(message, param=param, code=error.code)

    def renamed_request(self, wanted: EmbeddingRequest) -> EmbeddingRequest:
        """The same request, of which whatever is told later is told in the client's words."""
        return replace(
            wanted,
            params=tuple(map(self.name_of, wanted.params)),
            image_references=tuple(
                tuple(replace(one, param=self.name_of(one.param)) for one in of_input)
                for of_input in wanted.image_references
            ),
            ignored=tuple(dict.fromkeys(map(self.name_of, wanted.ignored))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A request as ``/v1/embeddings`` would have got it."""

    request: CreateEmbeddingRequest
    names: Names
    lane_follows_shape: bool = False
    """What the request says of its inputs' side chooses their prompt, and not the lane they wait in."""
