// The models that this ring knows: which one is asked, which are here, loaded or coming, and what can be done with them.

import { ApiError, events, json, request } from "./api.js";
import { $, bytes, duration } from "./element.js";
import { Picker } from "./picker.js";

const CHOSEN = "exo.model", POLL_MS = 1_000, IDLE_POLL_MS = 10_000, EAGER_MS = 10_000;

export class Models {
  constructor(ring, confirm) {
    Object.assign(this, { ring, confirm, list: [], polling: false, eagerUntil: 0, busy: new Map() });
    this.picker = new Picker(this);
    $("models-section").addEventListener("toggle", () => this.refresh());
    this.refresh();
  }

  /** The model of the next request, "" for the node's default. */
  get chosen() { return localStorage.getItem(CHOSEN) ?? ""; }

  get default() { return this.list.find((m) => m.default) ?? null; }

  choose(id) {
    localStorage.setItem(CHOSEN, id);
    this.picker.draw();
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
      if (this.failed) $("models-note").textContent = "";
      this.failed = false;
    } catch (error) {
      this.failed = true;
      $("models-note").textContent = error.message;
    } finally {
      this.polling = false;
    }
    this.picker.draw();
    const busy = this.list.some((m) => m.fetching) || performance.now() < this.eagerUntil;
    this.timer = setTimeout(() => this.refresh(), busy ? POLL_MS : IDLE_POLL_MS);
  }

  async act(path, options, m) {
    $("models-note").textContent = "";
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

  /** While it goes on the row says `what`. */
  async waited(what, path, options, m) {
    this.busy.set(m.id, what);
    this.picker.draw();
    try {
      await this.act(path, options, m);
    } finally {
      this.busy.delete(m.id);
      this.picker.draw();
    }
  }

  download(m, form = "") { return this.act("download", { method: "POST", body: { model: form ? `${m.id}:${form}` : m.id } }, m); }

  cancel(m) { return this.act(`download/${m.id}`, { method: "DELETE" }, m); }

  load(m) { return this.waited("loading …", "api/generate", { method: "POST", body: { model: m.id, stream: false } }, m); }

  unload(m) { return this.waited("unloading …", "api/generate", { method: "POST", body: { model: m.id, stream: false, keep_alive: 0 } }, m); }

  async remove(m) {
    if (await this.confirm(`Delete ${m.name} from this node? ${m.size ? `${bytes(m.size)} become free. ` : ""}It can be downloaded again.`, "Delete")) {
      if (this.chosen === m.id) this.choose("");
      await this.act(`models/${m.id}`, { method: "DELETE" }, m);
    }
  }
}

/** Every model: what `modelpool` says of it, and downloads that have failed or only begin. Those of most use come first. */
async function pool(here) {
  const found = new Map();
  for await (const event of events("modelpool")) {
    for (const [id, m] of Object.entries(event)) found.set(id, described(id, m));
  }
  for (const d of (await json("v1/download/progress")).data) {
    if (d.node_id !== here || d.done) continue;
    const known = found.get(d.model) ?? { id: d.model, name: d.model, here: false, size: d.total_bytes, have: d.downloaded_bytes, deletable: false, forms: [], loaded: [] };
    found.set(d.model, { ...known, error: d.error ?? known.error, fetching: !d.error && (known.fetching || !found.has(d.model)), percent: d.percentage });
  }
  return [...found.values()].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name, "en", { numeric: true }));
}

/** Loaded, here, coming, on other nodes, what fits by and by, what nobody has looked at, what does not; the default first among its like. */
function rank(m) {
  const groups = [m.loaded.length, m.here, m.fetching, m.ready, m.fit?.where === "here", m.fit?.where === "ring", m.fit?.where !== "nowhere", true];
  return groups.findIndex(Boolean) - (m.default ? 0.5 : 0);
}

/** Whether there is a point in asking for it: it is here, or other nodes have it. */
export const usable = (m) => m.here || m.ready;

/** How a download goes, in words: of `have`, `size`, `speed` and `left_s`. */
export const going = (d) => [`${bytes(d.have)}${d.size ? ` of ${bytes(d.size)}` : ""}`, `${Math.round(d.percent)} %`, d.speed ? `${bytes(d.speed)}/s` : "", d.left_s ? `${duration(d.left_s)} left` : ""].filter(Boolean).join(", ");

function described(id, m) {
  return {
    id, name: m.name ?? id, here: Boolean(m.downloaded), percent: m.download_percentage ?? 0, size: m.total_size ?? 0,
    have: m.total_downloaded ?? 0, fetching: Boolean(m.downloading ?? m.loading), deletable: m.deletable ?? true, fit: m.fit, ready: m.ready,
    speed: m.speed, left_s: m.left_s, error: m.error, verified: m.verified, default: m.default, quantization: m.quantization, forms: m.forms ?? [],
    context: m.context, loaded: m.loaded ?? [],
  };
}
