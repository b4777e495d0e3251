"""``GET /v1/models``: what is served, and what one may ask of it."""

from typing import Any

from litestar import Request, get
from litestar.params import FromPath

from app.answers import failure_responses
from app.inputs import resolve_model, suffixed_names
from app.outputs import dimension_choices
from app.services import Services, services_of
from app.settings import ImageSettings, MediaSettings
from app.wire import Images, Limits, ListModels, Model
from model import ImageInputs
from model.images import ImageLimits

IMAGE_FORMATS = ("jpeg", "png", "webp", "gif")
"""Those that the decoder takes, whatever a file says it is."""


@get(
    ["/v1/models", "/models"],
    summary="List models",
    tags=["OpenAI"],
    sync_to_thread=False,
)
def list_models(request: Request[Any, Any, Any]) -> ListModels:
    """The models that answer now: one that still loads is not listed, because clients probe for it here."""
    services = services_of(request)
    return ListModels(data=[model_card(services)] if services.engine.state.is_ready else [])


@get(
    ["/v1/models/{model_id:path}", "/models/{model_id:path}"],
    summary="Retrieve a model",
    tags=["OpenAI"],
    responses=failure_responses(404, 503),
    sync_to_thread=False,
)
def retrieve_model(model_id: FromPath[str], request: Request[Any, Any, Any]) -> Model:
    """The model of that name or alias; the answer carries its own name."""
    services = services_of(request)
    card = model_card(services)
    # A path parameter begins with the slash before it; ids of hub models have one inside.
    resolve_model(model_id.removeprefix("/"), services.served_names)
    return card


def model_card(services: Services) -> Model:
    """What a client may know of the served model.

    Raises:
        EngineNotReadyError: It is not loaded yet.
    """
    engine, settings = services.engine, services.settings
    info, limits = engine.info, settings.limits
    return Model(
        id=engine.served_name,
        created=services.created_s,
        owned_by="laneway",
        embedding_dim=info.dimension,
        dimensions=dimension_choices(info.dimension, info.matryoshka_dimensions),
        max_input_tokens=info.max_tokens,
        input_modalities=info.modalities,
        aliases=(*services.served_names[1:], *suffixed_names(engine.served_name)),
        prompts=info.prompts,
        default_prompt_name=info.default_prompt_name,
        is_normalized=info.is_normalized,
        fingerprint=info.fingerprint,
        source=info.source,
        architecture=info.architecture,
        dtype=info.dtype,
        is_packed=info.is_packed,
        packing_note=info.packing_note,
        license=info.license,
        note=info.note,
        limits=Limits(
            max_inputs=limits.max_inputs,
            max_request_tokens=limits.max_request_tokens,
            max_input_chars=limits.max_input_chars,
            max_body_bytes=settings.server.max_body_bytes,
        ),
        images=None if info.images is None else image_card(info.images, settings.images, settings.media),
    )


def image_card(inputs: ImageInputs, images: ImageSettings, media: MediaSettings) -> Images:
    """What a client may know of images, from the model and from the settings."""
    limits = ImageLimits()
    return Images(
        max_per_input=inputs.max_images,
        fused=inputs.is_fused_with_text,
        # The last resize decides about the size that the model reads.
        min_tokens=inputs.spec.resizes[-1].min_tokens,
        max_tokens=inputs.spec.max_tokens,
        formats=IMAGE_FORMATS,
        urls=media.media_urls,
        max_per_request=media.max_images,
        max_bytes=media.max_image_bytes,
        max_request_bytes=media.max_request_image_bytes,
        max_pixels=images.max_image_pixels,
        min_side=limits.min_side,
        max_side=limits.max_side,
        max_aspect_ratio=limits.max_aspect_ratio,
    )
