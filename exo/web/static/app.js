"use strict";
const $ = (id) => document.getElementById(id);
const messages = [];
let running = null;

function addParagraph(kind, text) {
  const p = document.createElement("p");
  p.className = kind;
  p.textContent = text; // never HTML: what a model says is not to be trusted
  $("log").append(p);
  return p;
}

async function refreshRing() {
  try {
    const ring = await (await fetch("/v1/topology")).json();
    const layers = {};
    for (const plan of ring.plans) for (const s of plan.stages) (layers[s.node_id] ??= []).push(`${plan.model} ${s.start_layer}–${s.end_layer}`);
    $("nodes").replaceChildren(...Object.entries(ring.nodes).map(([id, node]) => {
      const row = document.createElement("tr");
      row.className = id === ring.active_node_id ? "active" : "";
      const own = id === ring.node_id ? " (this node)" : "";
      for (const text of [id + own, `${node.model}, ${node.chip}`, `${node.memory} MB`, `${node.engine} on ${node.device}`, (layers[id] ?? ["–"]).join(", ")]) {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    }));
    const count = Object.keys(ring.nodes).length;
    const total = Object.values(ring.nodes).reduce((sum, node) => sum + node.memory, 0);
    $("summary").textContent = `${count} node${count === 1 ? "" : "s"}, ${(total / 1024).toFixed(1)} GB`;
  } catch {
    $("summary").textContent = "this node does not answer";
  }
}

async function fillModels() {
  const list = await (await fetch("/v1/models")).json();
  $("model").replaceChildren(new Option("default model", ""), ...list.data.map((m) => new Option(m.id, m.id)));
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

async function ask(text) {
  messages.push({ role: "user", content: text });
  addParagraph("user", text);
  const answer = addParagraph("assistant", "");
  running = new AbortController();
  $("stop").disabled = false;
  $("send").disabled = true;
  const started = performance.now();
  let first = 0, count = 0;
  try {
    const body = { messages, stream: true };
    if ($("model").value) body.model = $("model").value;
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices[0]?.delta?.content;
      if (!piece) continue;
      first ||= performance.now();
      count += 1;
      answer.textContent += piece;
      const seconds = (performance.now() - first) / 1000;
      if (seconds > 0) $("speed").textContent = `${(first - started).toFixed(0)} ms to the first, ${(count / seconds).toFixed(0)} pieces/s`;
    }
  } catch (error) {
    if (error.name !== "AbortError") addParagraph("error", error.message);
  } finally {
    messages.push({ role: "assistant", content: answer.textContent });
    running = null;
    $("stop").disabled = true;
    $("send").disabled = false;
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  ask(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
fillModels();
refreshRing();
setInterval(refreshRing, 1000);
