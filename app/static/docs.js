// Draws the OpenAPI document of this server. No library, nothing from another origin, no markup from strings:
// every text goes through textContent, so nothing in the document can become code.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];

/** Make an element: el("a", {href: "#x"}, "text", child). */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A text of the document, in which `backticks` mark code. */
function prose(text) {
  return (text ?? "").split(/`+([^`]+)`+/).map((part, index) => (index % 2 ? el("code", {}, part) : part));
}

const nameOf = (ref) => ref.split("/").at(-1);
const anchorOf = (name) => `schema-${name.replace(/[^\w.-]/g, "_")}`;

// Schemas ---------------------------------------------------------------------------------------------------

function follow(api, schema) {
  for (let steps = 0; schema && schema.$ref && steps < 16; steps++) {
    schema = schema.$ref.replace(/^#\//, "").split("/").reduce((node, key) => node?.[key], api);
  }
  return schema ?? {};
}

/** A schema as a short type, such as: string | array of integer. Named schemas are links. */
function typeOf(schema, depth = 0) {
  const parts = [];
  const add = (...nodes) => {
    if (parts.length) parts.push(" | ");
    parts.push(...nodes);
  };
  if (!schema || depth > 6) return ["any"];
  if (schema.$ref) return [el("a", { href: `#${anchorOf(nameOf(schema.$ref))}` }, nameOf(schema.$ref))];
  for (const option of schema.oneOf ?? schema.anyOf ?? []) add(...typeOf(option, depth + 1));
  if (schema.const !== undefined) add(JSON.stringify(schema.const));
  else if (schema.enum) add(schema.enum.map((value) => JSON.stringify(value)).join(" | "));
  else if (!parts.length) {
    for (const type of [schema.type ?? "any"].flat()) {
      if (type === "array") add("array of ", ...bracketed(typeOf(schema.items, depth + 1)));
      else add(schema.format ? `${type} (${schema.format})` : type);
    }
  }
  return parts;
}

const bracketed = (nodes) => (nodes.length > 1 ? ["(", ...nodes, ")"] : nodes);

function limitsOf(schema) {
  const words = {
    minimum: "at least", maximum: "at most", exclusiveMinimum: "more than", exclusiveMaximum: "less than",
    minLength: "min. length", maxLength: "max. length", minItems: "min. items", maxItems: "max. items", pattern: "pattern",
  };
  const limits = Object.entries(words).filter(([key]) => schema[key] !== undefined).map(([key, word]) => `${word} ${schema[key]}`);
  if (schema.default !== undefined && schema.default !== null) limits.push(`default ${JSON.stringify(schema.default)}`);
  return limits.join(", ");
}

function propertyTable(api, schema) {
  const properties = Object.entries(schema.properties ?? {});
  if (!properties.length) return el("p", { class: "type" }, ...typeOf(schema));
  const required = new Set(schema.required ?? []);
  const rows = properties.map(([name, property]) =>
    el("tr", {},
      el("td", {}, name, required.has(name) ? el("div", { class: "required" }, "required") : null),
      el("td", {}, el("span", { class: "type" }, ...typeOf(property)), limitsOf(property) ? el("div", {}, limitsOf(property)) : null),
      el("td", { class: "note" }, ...prose(property.description ?? follow(api, property).description))));
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Field"), el("th", { scope: "col" }, "Type"), el("th", { scope: "col" }, "Meaning"))),
    el("tbody", {}, ...rows));
}

/** An example value: the document's own, or one made from the types of the required fields. */
function exampleOf(api, schema, depth = 0) {
  schema = follow(api, schema);
  const given = schema.example ?? (Array.isArray(schema.examples) ? schema.examples[0] : Object.values(schema.examples ?? {})[0]?.value);
  if (given !== undefined) return given;
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  if (schema.default !== undefined && schema.default !== null) return schema.default;
  const options = schema.oneOf ?? schema.anyOf;
  if (options && depth < 6) return exampleOf(api, options.find((option) => option.type !== "null") ?? {}, depth + 1);
  if (depth >= 6) return null;
  if (schema.properties) {
    const names = Object.keys(schema.properties);
    const needed = names.filter((name) => schema.required?.includes(name));
    return Object.fromEntries((needed.length ? needed : names).map((name) =>
      [name, name === "model" && api.servedModel ? api.servedModel : exampleOf(api, schema.properties[name], depth + 1)]));
  }
  switch ([schema.type ?? "null"].flat()[0]) {
    case "string": return "Hello, world";
    case "integer": return schema.minimum ?? 1;
    case "number": return schema.minimum ?? 1.5;
    case "boolean": return true;
    case "array": return [exampleOf(api, schema.items ?? {}, depth + 1)];
    case "object": return {};
    default: return null;
  }
}

function bodyExample(api, media) {
  const named = Object.values(media.examples ?? {})[0];
  return media.example ?? (named && follow(api, named).value) ?? exampleOf(api, media.schema);
}

const jsonMedia = (content) => content?.["application/json"] ?? Object.values(content ?? {})[0];
const pretty = (value) => JSON.stringify(value, null, 2) ?? "";

// Endpoints -------------------------------------------------------------------------------------------------

function listEndpoints(api) {
  return Object.entries(api.paths ?? {}).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => {
      const operation = item[method];
      return {
        path, method, operation,
        id: `${method}-${path.replace(/[^\w]+/g, "-").replace(/^-|-$/g, "")}`,
        tag: operation.tags?.[0] ?? "Endpoints",
        parameters: [...(item.parameters ?? []), ...(operation.parameters ?? [])].map((one) => follow(api, one)),
        body: operation.requestBody ? jsonMedia(follow(api, operation.requestBody).content) : null,
      };
    }));
}

function drawEndpoint(api, endpoint, isFirst) {
  const { operation, method, path, id } = endpoint;
  const content = el("div", { class: "content" });
  if (operation.description && operation.description !== operation.summary) {
    content.append(el("p", { class: "note" }, ...prose(operation.description)));
  }
  if (endpoint.parameters.length) content.append(el("h3", {}, "Parameters"), parameterTable(endpoint.parameters));
  if (endpoint.body) {
    const schema = endpoint.body.schema ?? {};
    content.append(el("h3", {}, "Body: ", el("span", { class: "type" }, ...typeOf(schema))), propertyTable(api, follow(api, schema)));
  }
  content.append(el("h3", {}, "Answers"), answerTable(api, operation.responses ?? {}));
  content.append(el("h3", {}, "Try it"), tryForm(api, endpoint));
  return el("details", { class: "item", id, open: isFirst },
    el("summary", {},
      el("span", { class: `method ${method}` }, method.toUpperCase()),
      el("span", { class: "path" }, path),
      el("span", { class: "summary" }, operation.summary ?? "")),
    content);
}

function parameterTable(parameters) {
  return el("table", {}, el("tbody", {}, ...parameters.map((one) =>
    el("tr", {},
      el("td", {}, one.name, one.required ? el("div", { class: "required" }, "required") : null),
      el("td", {}, el("span", { class: "type" }, `${one.in}: `, ...typeOf(one.schema))),
      el("td", { class: "note" }, ...prose(one.description))))));
}

function answerTable(api, responses) {
  return el("table", {}, el("tbody", {}, ...Object.entries(responses).map(([status, response]) => {
    response = follow(api, response);
    const schema = jsonMedia(response.content)?.schema;
    return el("tr", {},
      el("td", {}, status),
      el("td", { class: "type" }, ...(schema ? typeOf(schema) : ["no JSON"])),
      el("td", { class: "note" }, ...prose(response.description)));
  })));
}

// Trying ----------------------------------------------------------------------------------------------------

function tryForm(api, endpoint) {
  const inputs = endpoint.parameters.filter((one) => one.in === "path" || one.in === "query")
    .map((one) => ({ parameter: one, input: el("input", { name: one.name, required: one.required === true, spellcheck: "false" }) }));
  const body = endpoint.body ? el("textarea", { spellcheck: "false", "aria-label": "Request body, JSON" }) : null;
  if (body) body.value = pretty(bodyExample(api, endpoint.body));
  const send = el("button", { type: "submit" }, "Send");
  const copy = el("button", { type: "button", class: "plain" }, "Copy as curl");
  const output = el("div", { "aria-live": "polite" });
  const request = () => describeRequest(endpoint, inputs, body);
  copy.addEventListener("click", async () => {
    const command = asCurl(request());
    // Browsers give pages the clipboard on HTTPS and localhost alone.
    const copied = await (navigator.clipboard?.writeText(command) ?? Promise.reject()).then(() => true, () => false);
    output.replaceChildren(el("p", {}, copied ? "Copied." : "Copy this:"), el("pre", { tabindex: "0" }, command));
  });
  return el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      send.disabled = true;
      output.replaceChildren(el("p", {}, "Waiting for the answer…"));
      output.replaceChildren(...await answerTo(request()));
      send.disabled = false;
    },
  }, ...inputs.map(({ parameter, input }) => el("label", {}, `${parameter.name} (${parameter.in})`, input)),
    body, el("div", { class: "buttons" }, send, copy), output);
}

function describeRequest(endpoint, inputs, body) {
  let path = endpoint.path;
  const query = new URLSearchParams();
  for (const { parameter, input } of inputs) {
    if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (input.value !== "") query.set(parameter.name, input.value);
  }
  const headers = {};
  if (body) headers["content-type"] = "application/json";
  const key = document.getElementById("key").value;
  if (key) headers.authorization = `Bearer ${key}`;
  const suffix = query.size ? `?${query}` : "";
  return { url: `${location.origin}${path}${suffix}`, method: endpoint.method.toUpperCase(), headers, body: body?.value };
}

async function answerTo({ url, method, headers, body }) {
  const started = performance.now();
  try {
    const response = await fetch(url, { method, headers, body, cache: "no-store", credentials: "omit" });
    const text = await response.text();
    const took = `${Math.round(performance.now() - started)} ms`;
    const shown = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    return [
      el("p", { class: response.ok ? "ok" : "bad" }, `${response.status} ${response.statusText}, ${took}, ${text.length.toLocaleString("en")} characters`),
      el("pre", { tabindex: "0", "aria-label": "Answer" }, shorten(text)),
      el("details", {}, el("summary", {}, "Headers"), el("pre", { tabindex: "0" }, shown)),
    ];
  } catch (error) {
    return [el("p", { class: "bad" }, `No answer: ${error.message}`)];
  }
}

/** Indented JSON with long lists of numbers cut: a vector has hundreds of them. */
function shorten(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return text.slice(0, 100_000);
  }
  const cut = (node) => {
    if (Array.isArray(node)) {
      if (node.length > 8 && node.every((one) => typeof one === "number")) {
        return `[${node.slice(0, 4).join(", ")}, … ${node.length} numbers]`;
      }
      return node.map(cut);
    }
    if (node && typeof node === "object") return Object.fromEntries(Object.entries(node).map(([key, one]) => [key, cut(one)]));
    return node;
  };
  return pretty(cut(value)).slice(0, 100_000);
}

function asCurl({ url, method, headers, body }) {
  const quoted = (word) => `'${word.replaceAll("'", `'\\''`)}'`;
  const parts = ["curl", method === "GET" ? "" : `-X ${method}`, quoted(url)];
  for (const [name, value] of Object.entries(headers)) parts.push(`-H ${quoted(`${name}: ${value}`)}`);
  if (body) parts.push(`-d ${quoted(body)}`);
  return parts.filter(Boolean).join(" ");
}

// The page --------------------------------------------------------------------------------------------------

function drawContents(byTag, schemas) {
  const list = (items) => el("ul", {}, ...items);
  const nodes = [...byTag].flatMap(([tag, endpoints]) => [
    el("h2", {}, tag),
    list(endpoints.map((one) => el("li", {}, el("a", { href: `#${one.id}` }, el("span", { class: `method ${one.method}` }, one.method.toUpperCase()), ` ${one.path}`)))),
  ]);
  if (schemas.length) nodes.push(el("h2", {}, "Schemas"), list(schemas.map(([name]) => el("li", {}, el("a", { href: `#${anchorOf(name)}` }, name)))));
  document.getElementById("contents").replaceChildren(...nodes);
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.querySelector("summary").focus();
    target.scrollIntoView();
  }
}

function draw(api) {
  const endpoints = listEndpoints(api);
  const byTag = new Map();
  for (const one of endpoints) byTag.set(one.tag, [...(byTag.get(one.tag) ?? []), one]);
  const schemas = Object.entries(api.components?.schemas ?? {}).sort(([one], [other]) => one.localeCompare(other));
  document.title = `${api.info.title} API`;
  document.getElementById("title").textContent = api.info.title;
  document.getElementById("version").textContent = api.info.version;
  document.getElementById("description").textContent = api.info.description ?? "";
  drawContents(byTag, schemas);
  const first = endpoints.find((one) => one.body && one.path.startsWith("/v1/")) ?? endpoints[0];
  document.getElementById("endpoints").replaceChildren(...[...byTag].flatMap(([tag, group]) => [
    el("h2", {}, tag), ...group.map((one) => drawEndpoint(api, one, one === first)),
  ]));
  document.getElementById("schemas").replaceChildren(
    schemas.length ? el("h2", {}, "Schemas") : "",
    ...schemas.map(([name, schema]) => el("details", { class: "item", id: anchorOf(name) },
      el("summary", {}, el("span", { class: "path" }, name)),
      el("div", { class: "content" },
        schema.description ? el("p", { class: "note" }, ...prose(schema.description)) : null,
        propertyTable(api, schema),
        el("h3", {}, "Example"), el("pre", { tabindex: "0" }, pretty(exampleOf(api, schema)))))));
  document.getElementById("status").hidden = true;
  window.addEventListener("hashchange", openTarget);
  openTarget();
}

/** The name of the first served model, for examples that work as they are; null while it loads. */
async function servedModel() {
  const response = await fetch("/v1/models", { credentials: "omit" });
  return response.ok ? ((await response.json()).data?.[0]?.id ?? null) : null;
}

async function load() {
  const response = await fetch("/schema/openapi.json", { credentials: "omit" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  draw({ ...await response.json(), servedModel: await servedModel().catch(() => null) });
}

load().catch((error) => {
  const status = document.getElementById("status");
  status.textContent = `The description of the API could not be read: ${error.message}.`;
  status.className = "bad";
});
