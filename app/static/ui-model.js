// The model's card, and programs that use it.

import { byId, bytes, copyButton, count, el } from "./ui-dom.js";
import { key } from "./ui-server.js";

/** Show the served model's card, and programs for it. */
export function showModel(card) {
  byId("model-card").replaceChildren(drawCard(card));
  showSnippets(card.id);
}

/** Say why there is no card. */
export function showNoModel(why) {
  byId("model-card").replaceChildren(el("p", { class: "hint" }, why));
  showSnippets("MODEL");
}

function drawCard(card) {
  const limits = card.limits;
  const rows = [
    ["Name", el("span", { class: "value" }, el("code", {}, card.id), copyButton("Copy the model’s name", card.id))],
    ["Also known as", ...spaced(card.aliases.map((alias) => el("code", {}, alias)))],
    ["Source", card.source === card.id ? null : el("code", {}, card.source)],
    ["Dimensions", card.dimensions.length > 1 ? `${count(card.embedding_dim)}, or ${card.dimensions.slice(1).map(count).join(", ")}` : count(card.embedding_dim)],
    ["Reads", `${card.input_modalities.join(", ")}; up to ${count(card.max_input_tokens)} tokens an input`],
    ["A request", `up to ${count(limits.max_inputs)} inputs, ${count(limits.max_request_tokens)} tokens, ${bytes(limits.max_body_bytes)}`],
    ["Images", card.images && `${card.images.formats.join(", ")}; ${count(card.images.min_tokens)} to ${count(card.images.max_tokens)} tokens each; up to ${bytes(card.images.max_bytes)}, ${count(card.images.max_per_request)} a request`],
    ["Prompts", ...spaced(Object.keys(card.prompts).map((name) => el("code", {}, name)))],
    ["Computes in", `${card.dtype}, ${card.is_packed ? "packed" : "padded"} passes of ${card.architecture}`],
    ["License", card.license],
    ["Fingerprint", el("span", { class: "value" }, el("code", { title: card.fingerprint }, `${card.fingerprint.slice(0, 16)}…`), copyButton("Copy the whole fingerprint", card.fingerprint))],
    ["Note", card.note],
  ];
  const shown = rows.filter(([, ...values]) => values.some((value) => value !== null && value !== ""));
  return el("dl", {}, ...shown.flatMap(([name, ...values]) => [el("dt", {}, name), el("dd", {}, ...values)]));
}

const spaced = (nodes) => nodes.flatMap((node, index) => (index ? [" ", node] : [node]));

// Programs --------------------------------------------------------------------------------------------------

/** The programs; `hasKey` says whether the server was given a key, which none of them holds. */
export function programs(origin, model, hasKey) {
  const base = `${origin}/v1`;
  const key = hasKey ? 'os.environ["LANEWAY_API_KEY"]' : '"none"';
  const importing = hasKey ? "import os\n\n" : "";
  const text = (value) => JSON.stringify(value);
  return {
    curl: [
      `curl ${base}/embeddings \\`,
      "  -H 'Content-Type: application/json' \\",
      ...(hasKey ? ['  -H "Authorization: Bearer $LANEWAY_API_KEY" \\'] : []),
      `  -d '${text({ model, input: ["Where does the river end?"], input_type: "query" }).replaceAll("'", `'\\''`)}'`,
    ].join("\n"),
    Python: `${importing}from openai import OpenAI

client = OpenAI(base_url=${text(base)}, api_key=${key})
answer = client.embeddings.create(
    model=${text(model)},
    input=["Where does the river end?"],
    extra_body={"input_type": "query"},
)
print(answer.data[0].embedding[:4], answer.usage)`,
    LangChain: `${importing}from langchain_openai import OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    base_url=${text(base)},
    api_key=${key},
    model=${text(model)},
    check_embedding_ctx_length=False,  # send texts, not token ids
)
print(embeddings.embed_query("Where does the river end?")[:4])`,
    LlamaIndex: `${importing}from llama_index.embeddings.openai_like import OpenAILikeEmbedding

# The name's ending says which side of a search a text is on.
options = {"api_base": ${text(base)}, "api_key": ${key}}
queries = OpenAILikeEmbedding(model_name=${text(`${model}-query`)}, **options)
documents = OpenAILikeEmbedding(model_name=${text(`${model}-document`)}, **options)
print(queries.get_query_embedding("Where does the river end?")[:4])`,
  };
}

let chosen = "curl";
let drawnFor = null;

/** Draw the programs where they are others than before: somebody may be about to copy one. */
function showSnippets(model) {
  const wanted = JSON.stringify([model, key.get() !== ""]);
  if (wanted === drawnFor) return;
  drawnFor = wanted;
  byId("snippets").replaceChildren(drawSnippets(model));
}

function drawSnippets(model) {
  const codes = programs(location.origin, model, key.get() !== "");
  const code = el("code", {});
  const panel = el("pre", { id: "snippet", role: "tabpanel", tabindex: "0" }, code);
  const tabs = Object.keys(codes).map((name) => el("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "snippet", onclick: () => choose(name),
  }, name));
  function choose(name) {
    chosen = name;
    for (const tab of tabs) {
      const isChosen = tab.textContent === name;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
    }
    code.textContent = codes[name];
    panel.setAttribute("aria-labelledby", `tab-${name}`);
  }
  const list = el("div", { class: "tabs", role: "tablist", "aria-label": "Clients", onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    choose(next.textContent);
    next.focus();
  } }, ...tabs);
  choose(chosen);
  return el("div", { class: "snippets" }, el("div", { class: "row" }, list, copyButton("Copy the program", () => codes[chosen])), panel);
}
