"""Images found by a text, with the official OpenAI SDK.

laneway serve tiny-gme
python examples/image_search.py [http://127.0.0.1:8000/v1]

Draws three plain pictures, embeds them and ranks them for a text. tiny-gme has random weights, so its ranking
means nothing; Alibaba-NLP/gme-Qwen2-VL-2B-Instruct answers the same program with one that does.
"""

import base64
import io
import sys

from openai import OpenAI
from PIL import Image, ImageDraw

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
QUERY = "a red circle"


def draw(shape: str, colour: str) -> str:
    """One picture, as a data URI."""
    image = Image.new("RGB", (224, 224), "white")
    getattr(ImageDraw.Draw(image), shape)((32, 32, 192, 192), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


pictures = {
    "a red circle": draw("ellipse", "red"),
    "a blue square": draw("rectangle", "blue"),
    "a green circle": draw("ellipse", "green"),
}

client = OpenAI(base_url=BASE_URL, api_key="none")
[model] = client.models.list().data
answer = client.embeddings.create(
    model=model.id,
    # An item of its own for each vector. {"text": ..., "image": ...} would be one vector for both together.
    input=[{"image": picture} for picture in pictures.values()],
    extra_body={"input_type": "document"},
)
vectors = [one.embedding for one in answer.data]

query = (
    client.embeddings.create(
        model=model.id,
        input=QUERY,
        extra_body={
            "input_type": "query",
            "instruction": "Find an image that matches the given text.",
        },
    )
    .data[0]
    .embedding
)

scores = [sum(x * y for x, y in zip(query, vector, strict=True)) for vector in vectors]
for score, name in sorted(zip(scores, pictures, strict=True), reverse=True):
    print(f"{score:.3f}  {name}")
if note := (model.model_extra or {}).get("note"):
    print(f"{model.id}: {note}")
