// Embeds what was written, and shows how it compares.

import { byId, count, duration, el, say } from "./ui-dom.js";
import { allow, markRow, readInputs, releasePictures, startInputs } from "./ui-inputs.js";
import { drawComparison } from "./ui-results.js";
import { embed, readModel } from "./ui-server.js";
import { cosineMatrix, readVector } from "./ui-vectors.js";

let model = null;
let isBusy = false;

/** Make the form work; `setModel` is told the served model's card. */
export function startPlayground() {
  startInputs();
  say(byId("summary"), "Cosines will be here.");
  byId("inputs").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("inputs").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
  });
  return {
    setModel(card) {
      model = card;
      allow(card);
    },
  };
}

/** The body of the request: an item each, the instruction with the queries. */
export function requestOf(inputs, { name, instruction, encoding }) {
  return {
    model: name,
    input: inputs.map(({ role, text, image }) => ({
      ...(text && { text }),
      ...(image && { image: image.data }),
      input_type: role,
      ...(instruction && role === "query" && { instruction }),
    })),
    encoding_format: encoding,
    priority: "query",
  };
}

async function run() {
  if (isBusy) return;
  const inputs = readInputs();
  markRow(null);
  byId("error").replaceChildren();
  if (!inputs.length) {
    say(byId("summary"), "There is nothing to embed yet: write a text first.");
    byId("items").querySelector("textarea")?.focus();
    return;
  }
  setBusy(true);
  try {
    const instruction = byId("instruction").value.trim();
    // Somebody may be quicker than the card. While it loads the server has none, and says so in its own words.
    const card = model ?? await readModel();
    const body = requestOf(inputs, { name: card?.id ?? "", instruction, encoding: byId("encoding").value });
    showAnswer(inputs, await embed(body));
  } catch (error) {
    showError(inputs, error);
  } finally {
    setBusy(false);
    releasePictures();
  }
}

function setBusy(busy) {
  isBusy = busy;
  byId("embed").setAttribute("aria-disabled", String(busy));
  byId("results").setAttribute("aria-busy", String(busy));
  if (busy) say(byId("summary"), "Embedding…");
}

function showAnswer(inputs, { content, headers, tookMs }) {
  const vectors = content.data.map(({ embedding }) => readVector(embedding));
  const server = ["queue", "compute"].map((part) => Number(headers.get(`x-${part}-time-ms`)));
  say(
    byId("summary"),
    `${count(vectors.length)} ${vectors.length === 1 ? "vector" : "vectors"} of ${count(vectors[0].length)} dimensions · `
      + `${count(content.usage.prompt_tokens)} tokens · ${duration(tookMs)} here, `
      + `${duration(server[0])} in the queue, ${duration(server[1])} of devices' time`,
  );
  const remarks = [
    [headers.get("x-truncated-inputs"), (value) => `Inputs that were cut to what the model reads: ${value}.`],
    [headers.get("x-ignored-params"), (value) => `Not read by this model: ${value}.`],
  ];
  byId("error").replaceChildren(...remarks.filter(([value]) => value).map(([value, text]) => el("p", { class: "remark" }, text(value))));
  byId("comparison").replaceChildren(drawComparison(inputs, cosineMatrix(vectors)));
}

function showError(inputs, error) {
  say(byId("summary"), "");
  byId("comparison").replaceChildren();
  const isAnswer = error.status !== undefined;
  const details = [isAnswer && `status ${error.status}`, error.code, error.param].filter(Boolean).join(" · ");
  byId("error").replaceChildren(
    el("p", { class: "refusal" }, isAnswer ? error.message : `No answer from the server: ${error.message}.`),
    details ? el("p", { class: "hint" }, details) : "",
  );
  const index = /^input\[(\d+)\]/.exec(error.param ?? "")?.[1];
  if (index !== undefined) markRow(inputs[Number(index)]?.row ?? null);
}
