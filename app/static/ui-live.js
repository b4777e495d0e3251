// Lanes, device and GPUs: asked for once a second, drawn as numbers and as charts of the last two minutes. What
// happened before the page was opened, or while its tab was hidden, the server tells with the next answer.

import { Chart, CHART_S } from "./ui-chart.js";
import { byId, bytes, count, duration, el, percent, roundDuration, say, short, span } from "./ui-dom.js";
import { readLive } from "./ui-server.js";

const POLL_MS = 1000;
// More seconds than this without an answer are asked for as history.
const AWAY_S = 2;
const LANES = [
  ["query", "Query", "Somebody waits"],
  ["document", "Document", "Indexing"],
  ["batch", "Batch", "What is left"],
];

const samples = [];
const nowS = () => performance.now() / 1000;
let parts = null;
let timer = null;
// Each question's number: only the latest one asks again, however often the tab was hidden and shown meanwhile.
let turn = 0;
// Why the latest question had no answer; null: it had one.
let lost = null;
// Seconds before now that the numbers are of: by the slider, or for as long as the pointer is on a chart.
let slidS = 0;
let pointedS = null;

/** Draw what there will be, and begin to ask. `onModel` is told the model's fingerprint with every answer; null while it loads. */
export function startLive(onModel) {
  parts = draw();
  byId("lookback").addEventListener("input", (event) => {
    slidS = -event.target.valueAsNumber;
    show();
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) poll(onModel);
  });
  poll(onModel);
}

async function poll(onModel) {
  const mine = ++turn;
  const startedMs = performance.now();
  try {
    const told = await readLive(missedS());
    lost = null;
    take(told, nowS());
    while (samples[0].at < nowS() - CHART_S - 5) samples.shift();
    onModel(told.model?.fingerprint ?? null);
  } catch (error) {
    lost = error;
  }
  show();
  if (!document.hidden && mine === turn) timer = setTimeout(() => poll(onModel), Math.max(100, POLL_MS - (performance.now() - startedMs)));
}

/** Seconds of history to ask for: none while answers follow each other. */
function missedS() {
  const awayS = samples.length ? nowS() - samples.at(-1).at : CHART_S;
  return awayS > AWAY_S ? Math.min(Math.ceil(awayS), CHART_S) : 0;
}

/** Keep an answer, and before it the seconds of its history that nothing is known of yet. */
function take(told, at) {
  const lastAt = samples.at(-1)?.at ?? -Infinity;
  samples.push(...pastOf(told, at).filter((one) => one.at > lastAt + 0.5), { at, told });
}

/** A history's columns as samples; they hold less than an answer does, and seconds that nobody knows of are left out. */
export function pastOf({ history }, at) {
  if (!history) return [];
  const known = history.device.busy_ratio;
  return known.map((ratio, index) => (ratio === null ? null : { at: at - (known.length - index), told: rowOf(history, index) }))
    .filter((one) => one !== null);
}

const rowOf = (columns, index) => Object.fromEntries(
  Object.entries(columns).map(([name, column]) => [name, Array.isArray(column) ? column[index] : rowOf(column, index)]),
);

// Drawn once ------------------------------------------------------------------------------------------------

function fact(name, ...attributes) {
  const value = el("b", {}, "–");
  return { value, node: el("span", { class: ["fact", ...attributes].join(" ") }, el("span", {}, name), " ", value) };
}

function measure(title, facts, chart) {
  return el(
    "div",
    { class: "measure" },
    el("div", { class: "figures" }, el("h4", {}, title), ...facts.map(({ node }) => node)),
    chart.node,
  );
}

function drawLane([lane, name, meaning]) {
  const of = (sample) => sample.told.lanes[lane];
  const facts = {
    p50: fact("p50", "solid"), p99: fact("p99", "thin"), items: fact("items/s"), tokens: fact("tokens/s"),
    waiting: fact("waiting"), backlog: fact("backlog"),
  };
  const refusing = el("strong", { class: "refusing", hidden: true });
  const charts = [
    new Chart({
      label: `${name} lane: latency, p50 and p99, last two minutes`,
      series: [
        { kind: "thin", valueOf: (sample) => of(sample).p99_ms },
        { kind: "line", valueOf: (sample) => of(sample).p50_ms },
      ],
      scale: "log",
      least: 100,
      format: roundDuration,
    }),
    new Chart({
      label: `${name} lane: items a second, last two minutes`,
      series: [
        { kind: "area", valueOf: (sample) => of(sample).items_per_s },
        { kind: "line", valueOf: (sample) => of(sample).items_per_s },
      ],
      least: 10,
      format: (value) => `${short(value)} items/s`,
    }),
    new Chart({
      label: `${name} lane: inputs that wait, last two minutes`,
      series: [
        { kind: "area", valueOf: (sample) => of(sample).waiting_items },
        { kind: "line", valueOf: (sample) => of(sample).waiting_items },
      ],
      least: 10,
      format: (value) => `${short(value)} items`,
    }),
  ];
  const node = el(
    "article",
    { class: `card lane ${lane}`, "aria-label": `${name} lane` },
    el("h3", {}, name, el("small", {}, meaning), refusing),
    measure("Latency", [facts.p50, facts.p99], charts[0]),
    measure("Throughput", [facts.items, facts.tokens], charts[1]),
    measure("Queue", [facts.waiting, facts.backlog], charts[2]),
  );
  const update = (told) => {
    const one = told?.lanes[lane];
    say(facts.p50.value, duration(one?.p50_ms));
    say(facts.p99.value, duration(one?.p99_ms));
    say(facts.items.value, short(one?.items_per_s));
    say(facts.tokens.value, short(one?.tokens_per_s));
    say(facts.waiting.value, short(one?.waiting_items));
    say(facts.backlog.value, duration(one && one.backlog_s * 1000));
    refusing.hidden = !one?.refused_per_s;
    node.classList.toggle("bad", !refusing.hidden);
    say(refusing, refusing.hidden ? "" : `refuses ${short(one.refused_per_s)} of ${short(one.requests_per_s)} requests/s`);
  };
  return { node, charts, update };
}

function drawDevice() {
  const facts = {
    busy: fact("of the workers’ time"), workers: fact("Workers ready"), passes: fact("Passes/s"),
    tokens: fact("Tokens a pass"), interruptions: fact("Interruptions/s"), requests: fact("Requests/s"),
    clientErrors: fact("4xx/s"), serverErrors: fact("5xx/s"), flight: fact("In flight"), running: fact("On the device"),
  };
  const chart = new Chart({
    label: "Part of the workers’ time spent on passes, last two minutes",
    series: ["area", "line"].map((kind) => ({ kind, valueOf: (sample) => sample.told.device.busy_ratio })),
    least: 1,
    format: percent,
  });
  const { busy, ...others } = facts;
  byId("device").append(
    el("div", { class: "measure" }, el("div", { class: "figures" }, el("h3", {}, "Device"), busy.node), chart.node),
    el("div", { class: "facts" }, ...Object.values(others).map(({ node }) => node)),
  );
  const update = (told) => {
    const device = told?.device;
    say(facts.busy.value, percent(device?.busy_ratio));
    say(facts.workers.value, device?.num_workers === undefined ? "–" : `${device.num_ready_workers} of ${device.num_workers}`);
    say(facts.passes.value, short(device?.passes_per_s));
    say(facts.tokens.value, short(device?.tokens_per_pass));
    say(facts.interruptions.value, short(device?.interruptions_per_s));
    say(facts.requests.value, short(told?.http.requests_per_s));
    say(facts.clientErrors.value, short(told?.http.client_errors_per_s));
    say(facts.serverErrors.value, short(told?.http.server_errors_per_s));
    facts.serverErrors.node.classList.toggle("bad", told?.http.server_errors_per_s > 0);
    say(facts.flight.value, count(told?.http.in_flight));
    const running = Object.values(told?.lanes ?? {}).map((lane) => lane.running_items);
    say(facts.running.value, running[0] === undefined ? "–" : `${count(running.reduce((sum, one) => sum + one, 0))} items`);
  };
  return { charts: [chart], update };
}

/** GPUs come and go with the server, so they are drawn anew; there are few, and often none. */
function showGpus(gpus) {
  byId("gpus").hidden = !gpus.length;
  byId("gpus").replaceChildren(...gpus.map((gpu) => el(
    "div",
    { class: "card gpu" },
    el("h3", {}, `GPU ${gpu.index}`, el("small", {}, gpu.name)),
    gauge("Utilization", gpu.utilization_ratio, percent(gpu.utilization_ratio)),
    gauge(
      "Memory",
      gpu.memory_total_bytes ? (gpu.memory_used_bytes ?? 0) / gpu.memory_total_bytes : null,
      `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`,
    ),
    el("div", { class: "facts" },
      ...[["Power", gpu.power_watts, "W"], ["Temperature", gpu.temperature_celsius, "°C"]].map(([name, value, unit]) => {
        const one = fact(name);
        say(one.value, value === null || value === undefined ? "–" : `${Math.round(value)} ${unit}`);
        return one.node;
      })),
  )));
}

function gauge(name, ratio, text) {
  const meter = el("meter", { min: 0, max: 1, value: ratio ?? 0, "aria-label": `${name}: ${text}` });
  return el("div", { class: "gauge" }, el("span", {}, name), meter, el("b", {}, text));
}

function draw() {
  const lanes = LANES.map(drawLane);
  byId("lanes").append(...lanes.map(({ node }) => node));
  const all = [...lanes, drawDevice()];
  for (const { node } of all.flatMap(({ charts }) => charts)) {
    node.addEventListener("pointermove", (event) => {
      const box = node.getBoundingClientRect();
      pointedS = Math.max(0, Math.round(CHART_S * (1 - (event.clientX - box.left) / box.width)));
      show();
    });
    node.addEventListener("pointerleave", () => {
      pointedS = null;
      show();
    });
  }
  return all;
}

// Drawn every second ----------------------------------------------------------------------------------------

/** The sample nearest to a moment; null if there is none within two seconds of it. */
function sampleAt(at) {
  const nearest = samples.reduce((best, one) => (best && Math.abs(best.at - at) <= Math.abs(one.at - at) ? best : one), null);
  return nearest && Math.abs(nearest.at - at) <= 2 ? nearest : null;
}

function show() {
  const now = nowS();
  const backS = pointedS ?? slidS;
  const latest = samples.at(-1) ?? null;
  const shown = backS ? sampleAt(now - backS) : latest;
  for (const { charts, update } of parts) {
    update(shown?.told);
    for (const chart of charts) chart.draw(samples, now, backS ? now - backS : null);
  }
  // No history has them; what stays is their names, or the page would jump under the pointer.
  showGpus(shown?.told.gpus ?? (latest?.told.gpus ?? []).map(({ index, name }) => ({ index, name })));
  say(byId("lookback-text"), backS ? `${backS} s ago` : "now");
  byId("lookback").setAttribute("aria-valuetext", slidS ? `${slidS} seconds ago` : "now");
  byId("live").classList.toggle("past", backS > 0);
  showHead(latest?.told ?? null);
}

function showHead(told) {
  const [state, text] = stateOf(told);
  byId("state").dataset.state = state;
  byId("live").classList.toggle("stale", lost !== null);
  say(byId("state-text"), text);
  if (!told) return;
  say(byId("version"), told.version);
  say(byId("uptime"), span(told.uptime_s));
  say(byId("model-name"), told.model?.name ?? "–");
  document.title = told.model ? `${told.model.name} · Laneway` : "Laneway";
  say(byId("live-hint"), `Rates and latencies over ${told.window_s} s, charts over two minutes.`);
}

function stateOf(told) {
  if (lost !== null) {
    // Without a status nobody answered at all.
    return ["lost", lost.status ? `refused: ${lost.message}` : "unreachable, asking again"];
  }
  if (told === null) return ["waiting", "connecting"];
  return [told.state === "ready" ? "ready" : "waiting", told.state];
}
