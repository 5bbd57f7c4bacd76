// The live ring: one stream of whole pictures from this node, drawn as a graph, with the same facts in words beside it.

import { events } from "./api.js";
import { $, gigabytes, h, plural, svg } from "./element.js";

const RETRY_MS = 1_000, MAX_DOTS = 40, DOT_MS = 450, LABEL_CHARS = 18;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Ring {
  constructor() {
    this.state = null;
    this.listeners = [];
    this.dots = [];
    this.lines = new Map();
    new ResizeObserver(() => this.draw()).observe($("picture"));
    // a page that nobody looks at holds no connection: browsers allow six to one host, over all tabs
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stream.abort() : this.follow()));
    addEventListener("pagehide", () => this.stream.abort());
    addEventListener("pageshow", (event) => event.persisted && this.follow());
    this.follow();
  }

  listen(listener) { this.listeners.push(listener); }

  async follow() {
    this.stream?.abort();
    const { signal } = this.stream = new AbortController();
    while (!document.hidden) {
      try {
        for await (const state of events("v1/topology/stream", { signal })) this.take(state);
      } catch { /* the node is gone or restarts: the summary says so */ }
      if (signal.aborted) return;
      $("summary").textContent = "This node does not answer; trying again …";
      document.body.classList.add("offline");
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  take(state) {
    const before = this.state;
    this.state = state;
    document.body.classList.remove("offline");
    const count = Object.keys(state.nodes).length;
    const text = `${plural(count, "node")}, ${gigabytes(state.total.memory)}`;
    if ($("summary").textContent !== text) $("summary").textContent = text;
    this.draw();
    this.facts();
    if (before) this.move(before);
    for (const listener of this.listeners) listener(state);
  }

  /** Layers of a node, or of one device of it, in words: "smollm2-135m 0–14". */
  held(node) {
    const by = Object.fromEntries((node.workers ?? [node]).flatMap((w) => w.loaded).map((s) => [`${s.model} ${s.start_layer}`, s.engine]));
    return node.layers.map((s) => `${s.model} ${s.start_layer}–${s.end_layer} of ${s.n_layers}${by[`${s.model} ${s.start_layer}`] ? ` (${by[`${s.model} ${s.start_layer}`]})` : ""}`);
  }

  /** One device of a node in words. */
  worker(w) {
    const parts = [`${w.engines.join(", ")} on ${w.device}`, `${gigabytes(w.used_memory)} used of ${gigabytes(w.memory)}`, this.held(w).join(", ") || "no layers"];
    return [...parts, ...(w.problem ? [w.problem] : [])].join("; ");
  }

  // the picture

  draw() {
    const { state } = this;
    const width = $("picture").clientWidth;
    if (!state || !width) return;
    const ids = order(state), wide = width >= 600, detailed = wide || ids.length <= 2;
    const height = ids.length <= 2 ? 200 : wide ? 490 : 330;
    const places = place(ids, width, height, detailed);
    const key = JSON.stringify([ids, width, state.rings, state.links.map((l) => l.nodes)]);
    if (key !== this.drawnKey) {
      this.drawnKey = key;
      this.dots = [];
      this.lines.clear();
    }
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.describe(ids) });
    for (const link of state.links) if (link.nodes.every((id) => places[id])) root.append(...edge(link, places, ids, wide));
    const old = this.lines;
    this.lines = new Map();
    for (const ring of state.rings) {
      ring.stages.forEach((stage, i) => {
        const to = ring.stages[(i + 1) % ring.stages.length].node_id;
        const d = hop(places[stage.node_id], places[to], ids.length > 2 ? { x: width / 2, y: height / 2 } : null);
        const path = svg("path", { d, class: `hop${old.get(`${stage.node_id} ${to}`)?.busy ? " busy" : ""}` });
        this.lines.set(`${stage.node_id} ${to}`, { path, busy: old.get(`${stage.node_id} ${to}`)?.busy ?? false });
        root.append(path);
      });
    }
    this.layer = svg("g", { class: "dots" });
    for (const dot of this.dots) this.layer.append(dot.circle);
    root.append(this.layer);
    for (const id of ids) root.append(this.node(id, state.nodes[id], places[id], detailed));
    $("picture").replaceChildren(root);
  }

  node(id, node, { x, y }, detailed) {
    const here = id === this.state.node_id, part = node.memory ? Math.min(1, node.used_memory / node.memory) : 0;
    const lines = [short(id)];
    if (detailed) lines.push(short(node.chip), `${gigabytes(node.used_memory)} of ${gigabytes(node.memory)}`, `${node.engine}, ${Math.round(node.load * 100)} % busy`);
    lines.push(...(node.layers.length ? node.layers.map((s) => short(`${s.start_layer}–${s.end_layer} ${s.model}`)) : ["no layers"]).slice(0, 2));
    const group = svg("g", { class: `node heat-${Math.min(4, Math.ceil(node.load * 4))}${here ? " here" : ""}`, "data-node": id, transform: `translate(${x} ${y})` });
    group.append(svg("circle", { r: 22, class: "body" }), svg("circle", { r: 26, class: "room" }));
    if (part > 0) group.append(svg("path", { d: arc(26, part), class: "used" }));
    const text = svg("text", { y: 4, class: "mark" }, here ? "here" : `${Math.round(node.load * 100)} %`);
    group.append(text, ...lines.map((line, i) => svg("text", { y: 43 + i * 13, class: i ? "fact" : "name" }, line)));
    return group;
  }

  describe(ids) {
    const { state } = this;
    const rings = state.rings.map((r) => `${r.model} over ${r.stages.map((s) => `${s.node_id} ${s.start_layer} to ${s.end_layer}`).join(", ")}`);
    return `${plural(ids.length, "node")}: ${ids.join(", ")}. ${rings.join("; ") || "No model is loaded"}`;
  }

  // frames: what each stage has computed since the last picture leaves it as dots

  move(before) {
    for (const line of this.lines.values()) line.busy = false;
    for (const ring of this.state.rings) {
      ring.stages.forEach((stage, i) => {
        const frames = (this.state.nodes[stage.node_id]?.frames ?? 0) - (before.nodes[stage.node_id]?.frames ?? 0);
        if (frames <= 0) return;
        const key = `${stage.node_id} ${ring.stages[(i + 1) % ring.stages.length].node_id}`;
        const line = this.lines.get(key);
        if (line) line.busy = true;
        const count = Math.min(3, frames);
        for (let k = 0; k < count && !calm.matches && this.dots.length < MAX_DOTS; k += 1) this.spawn(key, k / count);
      });
    }
    for (const { path, busy } of this.lines.values()) path.classList.toggle("busy", busy);
  }

  spawn(key, delay) {
    const circle = svg("circle", { r: 4, class: "frame", opacity: 0 });
    this.layer.append(circle);
    this.dots.push({ circle, key, start: performance.now() + delay * 200 });
    this.animation ??= requestAnimationFrame((now) => this.step(now));
  }

  step(now) {
    this.dots = this.dots.filter((dot) => {
      const part = (now - dot.start) / DOT_MS, line = this.lines.get(dot.key);
      if (part > 1 || !line) {
        dot.circle.remove();
        return false;
      }
      if (part >= 0) {
        const point = line.path.getPointAtLength(line.path.getTotalLength() * part);
        dot.circle.setAttribute("cx", point.x);
        dot.circle.setAttribute("cy", point.y);
        dot.circle.setAttribute("opacity", 1);
      }
      return true;
    });
    this.animation = this.dots.length ? requestAnimationFrame((later) => this.step(later)) : null;
  }

  // the facts, one card a node

  facts() {
    const { state } = this;
    const cards = order(state).map((id) => {
      const node = state.nodes[id], here = id === state.node_id;
      const links = state.links.filter((l) => l.nodes.includes(id)).map((l) =>
        `${l.nodes.find((n) => n !== id)} ${l.rtt_ms ? `${l.rtt_ms.toFixed(l.rtt_ms < 10 ? 1 : 0)} ms` : ""}${l.interface ? ` over ${l.interface}` : ""}`);
      const rows = [
        ["Device", `${node.model}, ${node.chip}`], ["Memory", `${gigabytes(node.used_memory)} used, ${gigabytes(node.free_memory)} free of ${gigabytes(node.memory)}`],
        ["Engine", `${node.engine} on ${node.device}`], ["Load", `${Math.round(node.load * 100)} %`],
        ["Layers", this.held(node).join(", ") || "–"], ...state.loaded.filter((l) => l.node_id === id).map((l) => ["Model", `${l.model}: ${l.words}`]), ["Links", links.join("; ") || "–"],
        ...(node.workers.length > 1 ? node.workers.map((w) => [w.name, this.worker(w)]) : []),
        ...node.workers.flatMap((w) => Object.entries(w.loading).map(([model, done]) => ["Loads", `${node.workers.length > 1 ? `${w.name}: ` : ""}${model}, ${Math.round(100 * done)} %`])),
        ...node.ailments.map((a) => ["Cannot run", `${node.workers.length > 1 ? `${a.worker}: ` : ""}${a.model}: ${a.reason}`]),
        ...(here ? state.files.map((f) => ["File", `${f.model}: ${f.name}${f.repository ? ` of ${f.repository}` : ""}${f.why ? `: ${f.why}` : ""}`]) : []),
        ...(here ? Object.entries(state.refused_models).map(([model, reason]) => ["Refused", `${model}: ${reason}`]) : []),
      ];
      return { id, title: `${id}${here ? " (this node)" : ""}`, rows };
    });
    const key = JSON.stringify(cards);
    if (key === this.factsKey) return;
    this.factsKey = key;
    const open = new Set([...$("nodes").querySelectorAll("details[open]")].map((d) => d.dataset.node));
    // cards are updated in place, so that neither focus nor what is open is lost
    for (const card of [...$("nodes").children]) if (!cards.some((c) => c.id === card.dataset.node)) card.remove();
    for (const { id, title, rows } of cards) {
      let card = [...$("nodes").children].find((c) => c.dataset.node === id);
      if (!card) {
        card = h("details", { "data-node": id, open: open.has(id) || cards.length <= 2 }, h("summary"), h("dl"));
        $("nodes").append(card);
      }
      card.firstChild.textContent = title;
      card.lastChild.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    }
  }
}

const short = (text) => (text.length > LABEL_CHARS ? `${text.slice(0, LABEL_CHARS - 1)}…` : text);

/** Ring order where there is one, then the others. */
function order(state) {
  const staged = state.rings.flatMap((ring) => ring.stages.map((s) => s.node_id));
  return [...new Set([...staged, ...Object.keys(state.nodes).sort()])].filter((id) => state.nodes[id]);
}

function place(ids, width, height, detailed) {
  if (ids.length === 1) return { [ids[0]]: { x: width / 2, y: 70 } };
  if (ids.length === 2) return { [ids[0]]: { x: width * 0.24, y: 80 }, [ids[1]]: { x: width * 0.76, y: 80 } };
  const rx = width / 2 - (detailed ? 90 : 62), ry = height / 2 - (detailed ? 85 : 58);
  return Object.fromEntries(ids.map((id, i) => {
    const angle = -Math.PI / 2 + (2 * Math.PI * i) / ids.length;
    return [id, { x: width / 2 + rx * Math.cos(angle), y: height / 2 - 22 + ry * Math.sin(angle) }];
  }));
}

/** A link; among many only neighbours in the ring have their figures beside it, the cards have all. */
function edge(link, places, ids, wide) {
  const [a, b] = link.nodes.map((id) => places[id]);
  const apart = Math.abs(ids.indexOf(link.nodes[0]) - ids.indexOf(link.nodes[1]));
  const neighbours = apart === 1 || apart === ids.length - 1;
  const label = !neighbours ? "" : [link.rtt_ms ? `${link.rtt_ms.toFixed(link.rtt_ms < 10 ? 1 : 0)} ms` : "", wide || ids.length < 3 ? link.interface : ""].filter(Boolean).join(" · ");
  return [svg("line", { x1: a.x, y1: a.y, x2: b.x, y2: b.y, class: "link" }),
    svg("text", { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 - 4, class: "link-label" }, label)];
}

/** From one node's rim to the next, bowed away from `centre`; around the node itself where it is the whole ring. */
function hop(from, to, centre) {
  if (from === to) return `M ${from.x - 20} ${from.y - 20} C ${from.x - 60} ${from.y - 85} ${from.x + 60} ${from.y - 85} ${from.x + 20} ${from.y - 20}`;
  const dx = to.x - from.x, dy = to.y - from.y, length = Math.hypot(dx, dy) || 1;
  const mid = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  let nx = dy / length, ny = -dx / length;
  if (centre && (mid.x - centre.x) * nx + (mid.y - centre.y) * ny < -1) [nx, ny] = [-nx, -ny];
  const bow = 40, rim = 26;
  const point = (p, sign) => `${p.x + sign * (dx / length) * rim + nx * 8} ${p.y + sign * (dy / length) * rim + ny * 8}`;
  return `M ${point(from, 1)} Q ${mid.x + nx * bow} ${mid.y + ny * bow} ${point(to, -1)}`;
}

function arc(radius, part) {
  const angle = 2 * Math.PI * Math.min(part, 0.9999), x = radius * Math.sin(angle), y = -radius * Math.cos(angle);
  return `M 0 ${-radius} A ${radius} ${radius} 0 ${part > 0.5 ? 1 : 0} 1 ${x} ${y}`;
}
