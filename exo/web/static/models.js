// The models that this ring knows: which are here, which it can hold, and how downloads go.

import { ApiError, events, json, request } from "./api.js";
import { $, bytes, h } from "./element.js";

const CHOSEN = "exo.model", POLL_MS = 1_000, IDLE_POLL_MS = 10_000, EAGER_MS = 10_000;

export class Models {
  constructor(ring, confirm) {
    Object.assign(this, { ring, confirm, list: [], polling: false, eagerUntil: 0 });
    $("model").addEventListener("change", () => this.choose($("model").value));
    $("model-search").addEventListener("input", () => this.draw());
    $("models-section").addEventListener("toggle", () => this.refresh());
    this.refresh();
  }

  /** The model of the next request, "" for the node's default. */
  get chosen() { return localStorage.getItem(CHOSEN) ?? ""; }

  choose(id) {
    localStorage.setItem(CHOSEN, id);
    this.options();
    this.draw();
  }

  async refresh() {
    clearTimeout(this.timer);
    if (this.polling) return;
    if (document.hidden) {
      this.timer = setTimeout(() => this.refresh(), POLL_MS);
      return;
    }
    this.polling = true;
    try {
      this.list = await pool(this.ring.state?.node_id);
      $("models-note").textContent = "";
    } catch (error) {
      $("models-note").textContent = error.message;
    } finally {
      this.polling = false;
    }
    this.options();
    this.draw();
    const busy = this.list.some((m) => m.fetching) || performance.now() < this.eagerUntil;
    this.timer = setTimeout(() => this.refresh(), busy ? POLL_MS : IDLE_POLL_MS);
  }

  options() {
    const here = this.list.filter((m) => usable(m) || m.id === this.chosen);
    const key = here.map((m) => m.id).join("\n") + this.chosen;
    if (key === this.optionsKey) return;
    this.optionsKey = key;
    $("model").replaceChildren(new Option("Default model", ""), ...here.map((m) => new Option(m.name, m.id)));
    if (this.chosen && !here.some((m) => m.id === this.chosen)) $("model").append(new Option(this.chosen, this.chosen));
    $("model").value = this.chosen;
  }

  draw() {
    const wanted = $("model-search").value.trim().toLowerCase();
    const shown = this.list.filter((m) => m.id.toLowerCase().includes(wanted) || m.name.toLowerCase().includes(wanted));
    const repository = /^[\w.-]+\/[\w.-]+$/.test($("model-search").value.trim()) && !shown.length;
    const key = JSON.stringify([shown, this.chosen, repository && wanted]);
    if (key === this.drawnKey) return;
    this.drawnKey = key;
    const focused = document.activeElement?.dataset?.action;
    const rows = shown.map((m) => this.row(m));
    if (repository) rows.push(this.row({ id: $("model-search").value.trim(), name: $("model-search").value.trim(), note: "a repository on the Hugging Face hub" }));
    if (!rows.length) rows.push(h("li", {}, h("p", { class: "note" }, "No known model has this name. A Hugging Face id (organisation/name) works too.")));
    $("models").replaceChildren(...rows);
    if (focused) $("models").querySelector(`[data-action="${CSS.escape(focused)}"]`)?.focus();
  }

  row(m) {
    const buttons = [];
    const button = (label, act, extra = {}) => buttons.push(h("button", { type: "button", "data-action": `${label} ${m.id}`, "aria-label": `${label} ${m.name}`, onclick: act, ...extra }, label));
    if (usable(m) && m.id !== this.chosen) button("Use", () => this.choose(m.id));
    if (m.fetching) button("Cancel", () => this.cancel(m));
    else if (!m.here) button("Download", () => this.download(m));
    if ((m.here || m.have) && m.deletable && !m.fetching) button("Delete", () => this.remove(m), { class: "danger" });
    const facts = [m.size ? bytes(m.size) : "", fitting(m.fit),
      m.fetching ? "" : m.here ? "here" : m.ready ? "on other nodes" : m.have ? `${Math.round(100 * m.have / m.size)} % here` : "", m.verified === false ? "unverified: from another node, not compared with the hub yet" : "", m.note].filter(Boolean);
    const bar = m.fetching ? h("progress", { max: "100", value: m.percent, "aria-label": `Download of ${m.name}` }) : null;
    const progress = m.fetching ? h("span", { class: "note" }, `${bytes(m.have)}${m.size ? ` of ${bytes(m.size)}` : ""}, ${Math.round(m.percent)} %${m.speed ? `, ${bytes(m.speed)}/s` : ""}`) : null;
    return h("li", { class: m.id === this.chosen ? "chosen" : null, "data-model": m.id },
      h("div", { class: "model-name" }, h("strong", {}, m.name), m.id === this.chosen ? " in use" : null),
      h("p", { class: `note${m.fit?.where === "nowhere" ? " bad" : ""}` }, facts.join(" · ")), bar, progress,
      m.error ? h("p", { class: "error" }, m.error) : null, h("div", { class: "row" }, ...buttons));
  }

  async act(path, options, m) {
    try {
      await request(path, options);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      $("models-note").textContent = `${m.name}: ${error.message}`;
      return;
    }
    this.eagerUntil = performance.now() + EAGER_MS; // what was asked for begins, or fails, a moment later
    await this.refresh();
  }

  download(m) { return this.act("download", { method: "POST", body: { model: m.id } }, m); }

  cancel(m) { return this.act(`download/${m.id}`, { method: "DELETE" }, m); }

  async remove(m) {
    if (await this.confirm(`Delete ${m.name} from this node? ${m.size ? `${bytes(m.size)} become free. ` : ""}It can be downloaded again.`, "Delete")) {
      if (this.chosen === m.id) this.choose("");
      await this.act(`models/${m.id}`, { method: "DELETE" }, m);
    }
  }
}

/** Every model: what `modelpool` says of it, and downloads that have failed or only begin. */
async function pool(here) {
  const found = new Map();
  for await (const event of events("modelpool")) {
    for (const [id, m] of Object.entries(event)) found.set(id, described(id, m));
  }
  for (const d of (await json("v1/download/progress")).data) {
    if (d.node_id !== here || d.done) continue;
    const known = found.get(d.model) ?? { id: d.model, name: d.model, here: false, size: d.total_bytes, have: d.downloaded_bytes, deletable: false };
    found.set(d.model, { ...known, error: d.error ?? known.error, fetching: !d.error && (known.fetching || !found.has(d.model)), percent: d.percentage });
  }
  return [...found.values()].sort((a, b) => Number(b.here) - Number(a.here) || a.name.localeCompare(b.name));
}

/** Whether there is a point in asking for it: it is here, or other nodes have it. */
const usable = (m) => m.here || m.ready;

/** What the node says of where a model could run, in a few words. */
function fitting(fit) {
  if (fit?.where === "here") return "fits here";
  if (fit?.where === "ring") return `fits with other nodes: ${fit.missing_mb ? `${fit.missing_mb} MB are missing here` : fit.reason}`;
  return fit?.where === "nowhere" ? `cannot run: ${fit.reason}` : "";
}

function described(id, m) {
  return {
    id, name: m.name ?? id, here: Boolean(m.downloaded), percent: m.download_percentage ?? 0, size: m.total_size ?? 0,
    have: m.total_downloaded ?? 0, fetching: Boolean(m.downloading ?? m.loading), deletable: m.deletable ?? true, fit: m.fit, ready: m.ready,
    speed: m.speed, error: m.error, verified: m.verified,
  };
}
