// What the page asks this server, and nobody else. The key stays in this tab: sessionStorage is gone with it.

const KEY = "laneway.key";
const PATIENCE_MS = 5000;

/** The API key, as far as the reader gave one. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server said in place of an answer. */
export class ServerError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
    this.param = error?.param ?? null;
  }
}

function headers(more = {}) {
  return key.get() ? { ...more, authorization: `Bearer ${key.get()}` } : more;
}

async function answer(response) {
  if (response.ok) return response.json();
  const body = await response.json().catch(() => null);
  throw new ServerError(response.status, body?.error);
}

/** The last seconds; with so many before them as history, if any are wanted. */
export async function readLive(historyS) {
  const response = await fetch(historyS ? `/live?history_s=${historyS}` : "/live", { headers: headers(), credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
  return answer(response);
}

/** The card of the served model; null while it loads. */
export async function readModel() {
  const response = await fetch("/v1/models", { headers: headers(), credentials: "omit", signal: AbortSignal.timeout(PATIENCE_MS) });
  return (await answer(response)).data[0] ?? null;
}

/** Embed; returns the answer, its headers, and how long it took here, in ms. */
export async function embed(body) {
  const startedMs = performance.now();
  const response = await fetch("/v1/embeddings", {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    credentials: "omit",
    body: JSON.stringify(body),
  });
  const content = await answer(response);
  return { content, headers: response.headers, tookMs: performance.now() - startedMs };
}
