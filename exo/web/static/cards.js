// What there is to know of each node in words: a card for each, in groups where they are many, and a page when one is clicked.

import { ApiError, json } from "./api.js";
import { $, bytes, called, gigabytes, h } from "./element.js";
import { order } from "./picture.js";

const MOST_UNGROUPED = 30, LOG_MS = 2_000;

/** Layers of a node, or of one device of it, in words: "smollm2-135m 0–14". */
function held(node) {
  const by = Object.fromEntries((node.workers ?? [node]).flatMap((w) => w.loaded).map((s) => [`${s.model} ${s.start_layer}`, s.engine]));
  return node.layers.map((s) => `${s.model} ${s.start_layer}–${s.end_layer} of ${s.n_layers}${by[`${s.model} ${s.start_layer}`] ? ` (${by[`${s.model} ${s.start_layer}`]})` : ""}`);
}

/** One device of a node in words. */
function worker(w) {
  const parts = [`${w.engines.join(", ")} on ${w.device}`, `${gigabytes(w.used_memory)} used of ${gigabytes(w.memory)}`, held(w).join(", ") || "no layers"];
  return [...parts, ...(w.problem ? [w.problem] : [])].join("; ");
}

/** A link of `id` in words: the other end, round trip, what goes over it, and over which interface. */
function link(state, id, l) {
  const other = l.nodes.find((n) => n !== id);
  return [called(other, state.nodes[other]), l.rtt_ms ? `${l.rtt_ms.toFixed(l.rtt_ms < 10 ? 1 : 0)} ms` : "", l.bytes_per_s ? `${bytes(l.bytes_per_s)}/s` : "", l.interface ? `over ${l.interface}` : ""].filter(Boolean).join(" ");
}

/** [name, value] of everything that is known of a node. */
function facts(state, id) {
  const node = state.nodes[id], here = id === state.node_id, several = node.workers.length > 1;
  const links = state.links.filter((l) => l.nodes.includes(id)).map((l) => link(state, id, l));
  const state_of = [`${Math.round(node.load * 100)} %`, node.temperature_c ? `${Math.round(node.temperature_c)} °C` : "", node.power_w ? `${Math.round(node.power_w)} W` : ""].filter(Boolean).join(", ");
  return [
    ["Device", `${node.model}, ${node.chip}`], ["Memory", `${gigabytes(node.used_memory)} used, ${gigabytes(node.free_memory)} free of ${gigabytes(node.memory)}`],
    ["Engine", `${node.engine} on ${node.device}`], ["Load", state_of],
    ["Layers", held(node).join(", ") || "–"], ...state.loaded.filter((l) => l.node_id === id).map((l) => ["Model", `${l.model}: ${l.words}`]), ["Links", links.join("; ") || "–"],
    ...(several ? node.workers.map((w) => [w.name, worker(w)]) : []),
    ...node.workers.flatMap((w) => Object.entries(w.loading).map(([model, done]) => ["Loads", `${several ? `${w.name}: ` : ""}${model}, ${Math.round(100 * done)} %`])),
    ...node.ailments.map((a) => ["Cannot run", `${several ? `${a.worker}: ` : ""}${a.model}: ${a.reason}`]),
    ...(here ? state.files.map((f) => ["File", `${f.model}: ${f.name}${f.repository ? ` of ${f.repository}` : ""}${f.why ? `: ${f.why}` : ""}`]) : []),
    ...(here ? Object.entries(state.refused_models).map(([model, reason]) => ["Refused", `${model}: ${reason}`]) : []),
  ];
}

const list = (rows) => rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]);

export class Cards {
  constructor() {
    $("picture").addEventListener("click", (event) => {
      // the picture may have been drawn anew since the button went down: what counts is what is there now
      const id = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-node]")?.dataset.node;
      if (id) this.open(id);
    });
    $("node-close").addEventListener("click", () => $("node-page").close());
    $("node-page").addEventListener("close", () => { this.opened = null; });
  }

  show(state) {
    this.state = state;
    const ids = order(state), cards = ids.map((id) => ({ id, title: `${called(id, state.nodes[id])}${id === state.node_id ? " (this node)" : ""}`, group: state.nodes[id].chip, rows: facts(state, id) }));
    if (this.opened) this.page();
    const key = JSON.stringify(cards);
    if (key === this.key) return;
    this.key = key;
    const known = new Map([...$("nodes").querySelectorAll("details[data-node]")].map((card) => [card.dataset.node, card]));
    // cards are updated in place, so that neither focus nor what is open is lost
    for (const [id, card] of known) if (!state.nodes[id]) card.remove();
    for (const { id, title, group, rows } of cards) {
      let card = known.get(id);
      if (!card) card = h("details", { "data-node": id, open: cards.length <= 2 }, h("summary"), h("dl"), h("button", { type: "button", onclick: () => this.open(id) }, "Page of this node"));
      const home = cards.length > MOST_UNGROUPED ? this.group(group, cards) : $("nodes");
      if (card.parentElement !== home) home.append(card);
      card.firstChild.textContent = title;
      card.children[1].replaceChildren(...list(rows));
    }
    for (const old of $("nodes").querySelectorAll("details[data-group]")) if (!old.querySelector("[data-node]")) old.remove();
  }

  /** Nodes of one kind, folded. */
  group(name, cards) {
    const inside = cards.filter((c) => c.group === name).map((c) => this.state.nodes[c.id]);
    let group = [...$("nodes").children].find((g) => g.dataset.group === name);
    if (!group) $("nodes").append(group = h("details", { "data-group": name }, h("summary")));
    const memory = inside.reduce((sum, n) => sum + n.memory, 0), load = inside.reduce((sum, n) => sum + n.load, 0) / inside.length;
    group.firstChild.textContent = `${inside.length} × ${name}, ${gigabytes(memory)}, ${Math.round(100 * load)} % busy`;
    return group;
  }

  // one node's page: its workers, models, and where it is this one, its log

  open(id) {
    this.opened = id;
    this.page();
    $("node-page").showModal();
    $("node-log").textContent = "";
    this.log();
  }

  page() {
    const { state, opened: id } = this, node = state.nodes[id];
    $("node-title").textContent = node ? called(id, node) : `${id} is gone`;
    if (!node) return;
    const rows = [["Id", id], ["Version", node.version], ["Address", node.address], ...facts(state, id), ...(node.workers.length > 1 ? [] : node.workers.map((w) => [`Worker ${w.name}`, worker(w)]))];
    const key = JSON.stringify(rows);
    if (key !== this.pageKey) $("node-facts").replaceChildren(...list(rows));
    this.pageKey = key;
  }

  async log() {
    const id = this.opened, box = $("node-log");
    if (!id) return;
    if (id !== this.state.node_id) {
      box.textContent = "A node's log is on its own page: open it at that machine, on the port of its API.";
      return;
    }
    try {
      const text = (await json("v1/log")).data.join("\n"), atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
      if (this.opened === id && box.textContent !== text) box.textContent = text || "Nothing is written yet: DEBUG=1 says more.";
      if (atEnd) box.scrollTop = box.scrollHeight;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      box.textContent = error.message;
      return;
    }
    setTimeout(() => this.opened === id && this.log(), LOG_MS);
  }
}
