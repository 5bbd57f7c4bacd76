// The ring as a picture: a circle of nodes, rows of tiles where they are many; beyond thirty the list says more.

import { $, called, gigabytes, plural, svg } from "./element.js";

const MAX_DOTS = 40, DOT_MS = 450, LABEL_CHARS = 18;
const MOST_IN_RING = 6, MOST_IN_WIDE_RING = 12, MOST_DRAWN = 30, TILE = { width: 104, height: 58 };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Picture {
  constructor() {
    this.state = null;
    this.dots = [];
    this.lines = new Map();
    new ResizeObserver(() => this.draw()).observe($("picture").parentElement);
  }

  show(state, before) {
    this.state = state;
    this.draw();
    if (before) this.move(before);
  }

  draw() {
    const { state } = this;
    const width = $("picture").clientWidth;
    if (!state || !width) return;
    const ids = order(state), wide = width >= 600, detailed = wide || ids.length <= 2, tiled = ids.length > (wide ? MOST_IN_WIDE_RING : MOST_IN_RING);
    $("picture").hidden = ids.length > MOST_DRAWN;
    if (ids.length > MOST_DRAWN) return;
    const columns = Math.max(1, Math.floor(width / TILE.width)), cell = width / columns;
    const height = tiled ? Math.ceil(ids.length / columns) * TILE.height : ids.length <= 2 ? 200 : wide ? 490 : 330;
    const places = tiled ? tiles(ids, columns, cell) : place(ids, width, height, detailed);
    const key = JSON.stringify([ids, width, state.rings, state.links.map((l) => l.nodes)]);
    if (key !== this.drawnKey) {
      this.drawnKey = key;
      this.dots = [];
      this.lines.clear();
    }
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": this.describe(ids) });
    for (const link of tiled ? [] : state.links) if (link.nodes.every((id) => places[id])) root.append(...edge(link, places, ids, wide));
    const old = this.lines;
    this.lines = new Map();
    for (const ring of state.rings) {
      ring.stages.forEach((stage, i) => {
        const to = ring.stages[(i + 1) % ring.stages.length].node_id;
        const d = tiled ? straight(places[stage.node_id], places[to]) : hop(places[stage.node_id], places[to], ids.length > 2 ? { x: width / 2, y: height / 2 } : null);
        const path = svg("path", { d, class: `hop${old.get(`${stage.node_id} ${to}`)?.busy ? " busy" : ""}` });
        this.lines.set(`${stage.node_id} ${to}`, { path, busy: old.get(`${stage.node_id} ${to}`)?.busy ?? false });
        root.append(path);
      });
    }
    this.layer = svg("g", { class: "dots" });
    for (const dot of this.dots) this.layer.append(dot.circle);
    root.append(this.layer);
    for (const id of ids) root.append(tiled ? this.tile(id, state.nodes[id], places[id], cell - 10) : this.node(id, state.nodes[id], places[id], detailed));
    $("picture").replaceChildren(root);
  }

  /** One of many nodes: its name, what it holds, and its load as a bar. */
  tile(id, node, { x, y }, width) {
    const left = -width / 2, held = node.layers.map((s) => `${s.start_layer}–${s.end_layer}`).join(", ") || "no layers", chars = Math.floor(width / 7);
    return svg("g", { class: `node ${heat(node)}${id === this.state.node_id ? " here" : ""}`, "data-node": id, transform: `translate(${x} ${y})` },
      svg("rect", { x: left, y: -22, width, height: 44, rx: 6, class: "body" }), svg("rect", { x: left, y: 18, width: width * Math.min(1, node.load), height: 4, class: "bar" }),
      svg("text", { y: -5, class: "name" }, short(called(id, node), chars)), svg("text", { y: 11, class: "fact" }, short(`${held} · ${Math.round(node.load * 100)} %`, chars)));
  }

  node(id, node, { x, y }, detailed) {
    const here = id === this.state.node_id, part = node.memory ? Math.min(1, node.used_memory / node.memory) : 0;
    const lines = [short(called(id, node))];
    if (detailed) lines.push(short(node.chip), `${gigabytes(node.used_memory)} of ${gigabytes(node.memory)}`, `${node.engine}, ${Math.round(node.load * 100)} % busy`);
    lines.push(...(node.layers.length ? node.layers.map((s) => short(`${s.start_layer}–${s.end_layer} ${s.model}`)) : ["no layers"]).slice(0, 2));
    const group = svg("g", { class: `node ${heat(node)}${here ? " here" : ""}`, "data-node": id, transform: `translate(${x} ${y})` });
    group.append(svg("circle", { r: 22, class: "body" }), svg("circle", { r: 26, class: "room" }));
    if (part > 0) group.append(svg("path", { d: arc(26, part), class: "used" }));
    const text = svg("text", { y: 4, class: "mark" }, here ? "here" : `${Math.round(node.load * 100)} %`);
    group.append(text, ...lines.map((line, i) => svg("text", { y: 43 + i * 13, class: i ? "fact" : "name" }, line)));
    return group;
  }

  describe(ids) {
    const { state } = this;
    const name = (id) => called(id, state.nodes[id]);
    const rings = state.rings.map((r) => `${r.model} over ${r.stages.map((s) => `${name(s.node_id)} ${s.start_layer} to ${s.end_layer}`).join(", ")}`);
    return `${plural(ids.length, "node")}: ${ids.map(name).join(", ")}. ${rings.join("; ") || "No model is loaded"}`;
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
}

const short = (text, most = LABEL_CHARS) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const heat = (node) => `heat-${Math.min(4, Math.ceil(node.load * 4))}`;

/** Row by row, forth and back, so that neighbours in the ring are neighbours here. */
function tiles(ids, columns, cell) {
  return Object.fromEntries(ids.map((id, i) => {
    const row = Math.floor(i / columns), column = row % 2 ? columns - 1 - (i % columns) : i % columns;
    return [id, { x: (column + 0.5) * cell, y: (row + 0.5) * TILE.height }];
  }));
}

const straight = (from, to) => `M ${from.x} ${from.y} L ${to.x} ${to.y}`;

/** Ring order where there is one, then the others. */
export function order(state) {
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
