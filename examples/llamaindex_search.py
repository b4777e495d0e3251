"""LlamaIndex's OpenAI embedding classes, with separate model names for queries and documents.

python examples/llamaindex_search.py [http://127.0.0.1:8000/v1]
"""

import sys

from llama_index.embeddings.openai_like import OpenAILikeEmbedding

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
MODEL = "all-MiniLM-L6-v2"

# The suffix of the name says which side of the search a text is on; models with prompts need that.
documents = OpenAILikeEmbedding(model_name=f"{MODEL}-document", api_base=BASE_URL, api_key="none")
queries = OpenAILikeEmbedding(model_name=f"{MODEL}-query", api_base=BASE_URL, api_key="none")

texts = [
    "Gorillas live in the forests of central Africa.",
    "The Treaty of Westphalia ended the Thirty Years' War.",
    "Embeddings turn text into vectors that can be compared.",
]
vectors = documents.get_text_embedding_batch(texts)
query = queries.get_query_embedding("Where do great apes live?")

scores = [sum(x * y for x, y in zip(query, vector, strict=True)) for vector in vectors]
for score, text in sorted(zip(scores, texts, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
