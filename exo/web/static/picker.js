// Models as they are chosen: the box beside the question, and the list at the side.

import { $, bytes, h } from "./element.js";
import { going, usable } from "./models.js";

export class Picker {
  constructor(models) {
    this.models = models;
    $("model").addEventListener("change", () => models.choose($("model").value));
    $("model-search").addEventListener("input", () => this.draw());
  }

  draw() {
    this.options();
    this.rows();
  }

  /** What can be asked at once, those in memory first. */
  options() {
    const { list, chosen, default: standard } = this.models, groups = [["Loaded", []], ["On this node", []], ["On other nodes", []]];
    for (const m of list.filter(usable)) groups[m.loaded.length ? 0 : m.here ? 1 : 2][1].push(m);
    const key = JSON.stringify([groups, chosen, standard?.id]);
    if (key === this.optionsKey) return;
    this.optionsKey = key;
    const label = (m) => [m.name, m.quantization, m.size ? bytes(m.size) : "", m.default ? "default" : ""].filter(Boolean).join(" · ");
    const boxes = groups.filter(([, models]) => models.length).map(([name, models]) => h("optgroup", { label: name }, ...models.map((m) => new Option(label(m), m.id))));
    const known = list.some((m) => usable(m) && m.id === chosen);
    $("model").replaceChildren(new Option(standard ? `Default: ${standard.name}` : "Default model", ""), ...boxes, ...(chosen && !known ? [new Option(chosen, chosen)] : []));
    $("model").value = chosen;
  }

  rows() {
    const { list, chosen, busy } = this.models, typed = $("model-search").value.trim(), wanted = typed.toLowerCase();
    const shown = list.filter((m) => m.id.toLowerCase().includes(wanted) || m.name.toLowerCase().includes(wanted));
    const repository = /^[\w.-]+\/[\w.-]+(:[\w.-]+)?$/.test(typed) && !shown.length;
    const key = JSON.stringify([shown, chosen, [...busy], repository && wanted]);
    if (key === this.drawnKey) return;
    this.drawnKey = key;
    const focused = document.activeElement?.dataset?.action;
    const rows = shown.map((m) => this.row(m));
    if (repository) rows.push(this.row({ id: typed, name: typed, note: "a repository on the Hugging Face hub", forms: [], loaded: [] }));
    if (!rows.length) rows.push(h("li", {}, h("p", { class: "note" }, "No known model has this name. A Hugging Face id (organisation/name) works too.")));
    $("models").replaceChildren(...rows);
    if (focused) $("models").querySelector(`[data-action="${CSS.escape(focused)}"]`)?.focus();
  }

  row(m) {
    const { models } = this, chosen = m.id === models.chosen || (m.default && !models.chosen), busy = models.busy.get(m.id), buttons = [];
    const button = (label, act, extra = {}) => buttons.push(h("button", { type: "button", "data-action": `${label} ${m.id}`, "aria-label": `${label} ${m.name}`, disabled: Boolean(busy), onclick: act, ...extra }, label));
    if (usable(m) && !chosen) button("Use", () => models.choose(m.default ? "" : m.id));
    if (m.loaded.length) button("Unload", () => models.unload(m));
    else if (m.ready) button("Load", () => models.load(m));
    let form = null;
    if (m.fetching) button("Cancel", () => models.cancel(m));
    else if (!m.here) {
      if (m.forms.length > 1) form = h("select", { "aria-label": `Form of ${m.name}` }, new Option("best for this node", ""), ...m.forms.map((f) => new Option(f, f)));
      button("Download", () => models.download(m, form?.value));
    }
    if ((m.here || m.have) && m.deletable && !m.fetching) button("Delete", () => models.remove(m), { class: "danger" });
    const facts = [m.quantization, m.size ? bytes(m.size) : "", fitting(m.fit), m.loaded.length ? `loaded${m.context ? `, ${m.context.toLocaleString("en")} tokens` : ""}` : "",
      m.fetching ? "" : m.here ? "here" : m.ready ? "on other nodes" : m.have ? `${Math.round(100 * m.have / m.size)} % here` : "", m.verified === false ? "unverified: from another node, not compared with the hub yet" : "", m.note, busy].filter(Boolean);
    const bar = m.fetching ? h("progress", { max: "100", value: m.percent, "aria-label": `Download of ${m.name}` }) : null;
    const mark = (text) => h("span", { class: "mark-word" }, text);
    return h("li", { class: chosen ? "chosen" : null, "data-model": m.id },
      h("div", { class: "model-name" }, h("strong", {}, m.name), m.default ? mark("default") : null, chosen ? mark("in use") : null),
      h("p", { class: `note${m.fit?.where === "nowhere" ? " bad" : ""}` }, facts.join(" · ")), bar, m.fetching ? h("span", { class: "note" }, going(m)) : null,
      m.error ? h("p", { class: "error" }, m.error) : null, h("div", { class: "row" }, ...buttons, form));
  }
}

/** What the node says of where a model could run, in a few words. */
function fitting(fit) {
  if (fit?.where === "here") return "fits here";
  if (fit?.where === "ring") return `fits with other nodes: ${fit.missing_mb ? `${fit.missing_mb} MB are missing here` : fit.reason}`;
  return fit?.where === "nowhere" ? `cannot run: ${fit.reason}` : "";
}
