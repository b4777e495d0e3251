"""LangChain's OpenAIEmbeddings with its defaults, in its own in-memory vector store.

python examples/langchain_search.py [http://127.0.0.1:8000/v1]
"""

import sys

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"

embeddings = OpenAIEmbeddings(base_url=BASE_URL, api_key="none")
store = InMemoryVectorStore(embeddings)
store.add_texts(
    [
        "Gorillas live in the forests of central Africa.",
        "The Treaty of Westphalia ended the Thirty Years' War.",
        "Embeddings turn text into vectors that can be compared.",
    ]
)
for document, score in store.similarity_search_with_score("Where do great apes live?", k=3):
    print(f"{score:.3f}  {document.page_content}")
