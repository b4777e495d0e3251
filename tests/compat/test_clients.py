"""The official clients, unchanged, against the real server: the vectors are sentence-transformers' own."""

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from openai import AsyncOpenAI, OpenAI
from sentence_transformers import SentenceTransformer

from tests.compat.conftest import assert_same_vectors
from tests.servers import RunningServer

MODEL = "all-MiniLM-L6-v2"
TEXTS = [
    "Gorillas live in the forests of central Africa.",
    "日本語の文章 and emoji 🙂🙃 and Ünïcödé.",
    "x",
    "a line\nand another\ttabbed",
    "indexing " * 500,
    "The quick brown fox jumps over the lazy dog.",
]


@pytest.fixture
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


def test_openai_with_its_defaults(client: OpenAI, reference: SentenceTransformer) -> None:
    """The SDK asks for base64 and decodes it; a wrong byte order would be garbage, not an error."""
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert_same_vectors([one.embedding for one in answer.data], reference.encode(TEXTS))
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    lengths = [min(len(ids), 256) for ids in reference.tokenizer(TEXTS)["input_ids"]]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(lengths)
    assert answer.model == MODEL


async def test_openai_async(server: RunningServer, reference: SentenceTransformer) -> None:
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        answer = await client.embeddings.create(model=MODEL, input=TEXTS[0])
    assert_same_vectors([answer.data[0].embedding], reference.encode(TEXTS[:1]))


def test_openai_with_floats(client: OpenAI, reference: SentenceTransformer) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert_same_vectors([one.embedding for one in answer.data], reference.encode(TEXTS))


@pytest.mark.parametrize("alias", ["text-embedding-ada-002", "text-embedding-3-small", "minilm"])
def test_openais_own_names_serve_the_default_model(
    alias: str, client: OpenAI, reference: SentenceTransformer
) -> None:
    answer = client.embeddings.create(model=alias, input=TEXTS[:1])
    assert_same_vectors([answer.data[0].embedding], reference.encode(TEXTS[:1]))


def test_the_most_inputs_a_request_may_have_come_back_in_order(
    client: OpenAI, reference: SentenceTransformer
) -> None:
    texts = [f"document number {number}" for number in range(2048)]
    answer = client.embeddings.create(model=MODEL, input=texts)
    some = [0, 1, 700, 2047]
    assert len(answer.data) == 2048
    assert_same_vectors([answer.data[i].embedding for i in some], reference.encode([texts[i] for i in some]))


def test_too_long_texts_are_cut_and_counted_or_refused(client: OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=["short", "long " * 400])
    assert raw.headers["x-truncated-inputs"] == "1"
    assert raw.parse().usage.prompt_tokens == 3 + 256
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="long " * 400, extra_body={"truncate": "NONE"})
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 256 tokens, however you requested 402 tokens" in caught.value.message


def test_the_sdk_understands_refusals(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="gpt-17", input="x")
    assert unknown.value.code == "model_not_found"
    assert MODEL in unknown.value.message
    assert unknown.value.request_id is not None
    with pytest.raises(openai.BadRequestError) as empty:
        client.embeddings.create(model=MODEL, input=["x", ""])
    assert empty.value.param == "input[1]"
    with pytest.raises(openai.BadRequestError) as cut:
        client.embeddings.create(model=MODEL, input="x", dimensions=100)
    assert cut.value.code == "invalid_dimensions"


def test_models_are_listed_with_what_a_client_must_know(client: OpenAI) -> None:
    [served] = client.models.list().data
    assert served.id == MODEL
    extras = served.model_extra or {}
    assert (extras["embedding_dim"], extras["max_input_tokens"]) == (384, 256)
    assert client.models.retrieve("text-embedding-3-large").id == MODEL


def test_langchain_with_its_defaults(server: RunningServer, reference: SentenceTransformer) -> None:
    """It sends token arrays of cl100k_base; taken for the model's own ids they would be silent garbage."""
    embeddings = OpenAIEmbeddings(base_url=server.base_url, api_key="none")
    assert_same_vectors(embeddings.embed_documents(TEXTS), reference.encode(TEXTS))
    assert_same_vectors([embeddings.embed_query(TEXTS[1])], reference.encode(TEXTS[1:2]))


async def test_langchain_async(server: RunningServer, reference: SentenceTransformer) -> None:
    embeddings = OpenAIEmbeddings(base_url=server.base_url, api_key="none")
    assert_same_vectors(await embeddings.aembed_documents(TEXTS), reference.encode(TEXTS))
    # It would leave its connections to the garbage collector, which warns of them in some later test.
    await embeddings.async_client._client.close()


def test_langchain_sending_strings(server: RunningServer, reference: SentenceTransformer) -> None:
    embeddings = OpenAIEmbeddings(base_url=server.base_url, api_key="none", check_embedding_ctx_length=False)
    assert_same_vectors(embeddings.embed_documents(TEXTS), reference.encode(TEXTS))


def test_llama_index(server: RunningServer, reference: SentenceTransformer) -> None:
    embedding = OpenAIEmbedding(api_base=server.base_url, api_key="none")
    # It replaces newlines by spaces before it sends.
    sent = [text.replace("\n", " ") for text in TEXTS]
    assert_same_vectors(embedding.get_text_embedding_batch(TEXTS), reference.encode(sent))
    assert_same_vectors([embedding.get_query_embedding(TEXTS[0])], reference.encode(sent[:1]))


def test_llama_index_openai_like(server: RunningServer, reference: SentenceTransformer) -> None:
    embedding = OpenAILikeEmbedding(model_name=f"{MODEL}-query", api_base=server.base_url, api_key="none")
    assert_same_vectors([embedding.get_query_embedding(TEXTS[0])], reference.encode(TEXTS[:1]))


def test_vectors_have_unit_length(client: OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    norms = np.linalg.norm([one.embedding for one in answer.data], axis=1)
    assert np.abs(norms - 1).max() < 1e-6
