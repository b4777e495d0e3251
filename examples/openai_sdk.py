"""The official OpenAI SDK against Laneway: only the base_url changes.

python examples/openai_sdk.py [http://127.0.0.1:8000/v1]
"""

import sys

from openai import OpenAI

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
MODEL = "text-embedding-3-small"  # an alias of whatever is served

documents = [
    "Gorillas live in the forests of central Africa.",
    "The Treaty of Westphalia ended the Thirty Years' War.",
    "Embeddings turn text into vectors that can be compared.",
]

client = OpenAI(base_url=BASE_URL, api_key="none")
answer = client.embeddings.create(model=MODEL, input=documents, extra_body={"input_type": "document"})
vectors = [one.embedding for one in answer.data]

query = (
    client.embeddings.create(
        model=MODEL, input="Where do great apes live?", extra_body={"input_type": "query"}
    )
    .data[0]
    .embedding
)


def cosine(a: list[float], b: list[float]) -> float:
    """Vectors come normalised, so the dot product is the cosine."""
    return sum(x * y for x, y in zip(a, b, strict=True))


scores = [cosine(query, vector) for vector in vectors]
for score, text in sorted(zip(scores, documents, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
