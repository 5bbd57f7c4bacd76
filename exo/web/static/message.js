// One message on the page: its text, what the model thought, its speed, its other versions, and what can be done with it.

import { $, bytes, h } from "./element.js";
import { MarkdownView, copyText } from "./markdown.js";
import { Painter } from "./painter.js";

const THINK = /^\s*<think(?:ing)?>/, END = /<\/think(?:ing)?>/;

/** [thought, answer]: the API tells them apart, or tags in the text do; an open tag is a thought that goes on. */
export function parts(message) {
  if (message.reasoning) return [message.reasoning, message.content];
  const begin = THINK.exec(message.content);
  if (!begin) return ["", message.content];
  const rest = message.content.slice(begin[0].length);
  const end = END.exec(rest);
  return end ? [rest.slice(0, end.index).trim(), rest.slice(end.index + end[0].length).trimStart()] : [rest.trimStart(), ""];
}

export class MessageView {
  /** `actions`: edit(view), regenerate(), proceed() where it was cut, version(step) to the one before or after. */
  constructor(message, { versions, last }, actions) {
    Object.assign(this, { message, last, actions });
    this.body = h("div", { class: "body" });
    this.stats = h("span", { class: "stats" });
    this.buttons = h("div", { class: "actions" });
    const name = message.role === "user" ? "You" : "Model";
    this.node = h("article", { class: message.role, "aria-label": name }, h("h2", { class: "who" }, name), this.body,
      h("div", { class: "foot" }, this.versions(versions), this.buttons, this.stats));
    this.addActions();
    if (message.role === "user") this.body.append(...(message.files ?? []).map(attached), h("p", { class: "typed", dir: "auto" }, message.content));
    else this.refresh();
  }

  versions(all) {
    if (all.length < 2) return null;
    const at = all.indexOf(this.message);
    const step = (by, sign, label) => h("button", { type: "button", class: `step${by}`, "aria-label": label, disabled: !all[at + by], onclick: () => this.actions.version(by) }, sign);
    return this.steps = h("div", { class: "versions", role: "group", "aria-label": "Versions" }, step(-1, "‹", "Version before"), h("span", {}, `${at + 1}/${all.length}`), step(1, "›", "Next version"));
  }

  /** To the button that leads further in this direction, or back. */
  focusVersion(by) {
    const buttons = [`.step${by}`, `.step${-by}`].map((selector) => this.steps?.querySelector(selector));
    buttons.find((button) => button && !button.disabled)?.focus();
  }

  addActions() {
    const button = (label, act) => {
      const made = h("button", { type: "button", onclick: act }, label);
      this.buttons.append(made);
      return made;
    };
    button("Copy", (event) => copyText(parts(this.message)[1], event.currentTarget));
    if (this.message.role === "user") {
      button("Edit", () => this.actions.edit(this));
      return;
    }
    button("Regenerate", () => this.actions.regenerate());
    this.more = button("Continue", () => this.actions.proceed());
  }

  /** Show the message as it is now. */
  refresh() {
    const { message } = this, [thought, answer] = parts(message);
    if (thought) this.think(thought, !answer && this.busy);
    this.markdown ??= new MarkdownView(this.body.appendChild(h("div", { class: "markdown" })));
    this.markdown.update(answer);
    this.fault?.remove();
    if (message.error) this.body.append(this.fault = h("p", { class: "error", role: "alert" }, message.error));
    this.stats.textContent = speed(message.stats, message.stopped, message.cut);
    this.more.hidden = !(this.last && answer && (message.cut || message.stopped));
  }

  think(thought, going) {
    if (!this.thinking) {
      this.thinking = h("details", { class: "think" }, h("summary"), h("div", { class: "markdown" }));
      this.body.prepend(this.thinking);
      this.thoughts = new MarkdownView(this.thinking.lastChild);
    }
    this.thinking.firstChild.textContent = going ? "Thinking …" : "Thought";
    this.thoughts.update(thought);
  }

  // while it is written

  begin(run) {
    this.running(true);
    this.refresh();
    this.progress(run);
  }

  /** Its text has grown; `painted()` is called when that is shown. */
  changed(painted) {
    this.painter ??= new Painter(() => {
      this.refresh();
      painted();
    });
    this.painter.request();
  }

  /** What is waited for, in words and as a bar. */
  progress({ progress }) {
    if (!progress) {
      this.waiting?.remove();
      this.waiting = null;
      return;
    }
    if (!this.waiting) {
      this.waiting = h("div", { class: "waiting" }, h("span"), h("progress", { max: "1", "aria-label": "Progress before the first token" }), h("button", { type: "button", hidden: true }, "Cancel"));
      this.body.append(this.waiting);
    }
    const [text, bar, cancel] = this.waiting.children;
    text.textContent = progress.text;
    if (progress.part === null) bar.removeAttribute("value");
    else bar.value = progress.part;
    cancel.hidden = !progress.cancel;
    cancel.onclick = progress.cancel ?? null;
  }

  end() {
    this.painter?.stop();
    this.running(false);
    this.progress({ progress: null });
    this.refresh();
  }

  running(value) {
    this.busy = value;
    this.node.setAttribute("aria-busy", value); // a screen reader waits for the end and then reads it whole
    this.node.classList.toggle("running", value);
  }

  /** Turn a question into a text box; `done(text)` when it is sent. */
  edit(done) {
    const box = h("textarea", { "aria-label": "Your message, edited", dir: "auto", rows: Math.min(12, this.message.content.split("\n").length + 1) });
    box.value = this.message.content;
    const close = () => {
      form.replaceWith(...before);
      this.buttons.hidden = false;
      $("prompt").focus();
    };
    const form = h("form", { class: "edit", onsubmit: (event) => {
      event.preventDefault();
      const text = box.value.trim();
      close();
      if (text) done(text);
    } }, box, h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, "Send"), h("button", { type: "button", onclick: close }, "Cancel")));
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      close();
    });
    const before = [...this.body.childNodes];
    this.body.replaceChildren(form);
    this.buttons.hidden = true;
    box.focus();
  }
}

/** An attached file, folded. */
function attached(file) {
  return h("details", { class: "attached" }, h("summary", {}, `${file.name}, ${bytes(file.text.length)} of text`, file.note ? h("span", { class: "bad" }, ` (${file.note})`) : null),
    h("pre", { tabindex: "0", dir: "auto", role: "group", "aria-label": file.name }, file.text));
}

function speed(stats, stopped, cut) {
  const texts = stopped ? ["stopped"] : cut ? [cut] : [];
  if (stats?.first_ms) texts.push(`first token ${stats.first_ms < 1000 ? `${Math.round(stats.first_ms)} ms` : `${(stats.first_ms / 1000).toFixed(1)} s`}`);
  if (stats?.per_s) texts.push(`${stats.per_s.toFixed(stats.per_s < 10 ? 1 : 0)} tokens/s`);
  if (stats?.tokens) texts.push(`${stats.tokens} tokens`);
  if (stats?.model) texts.push(stats.model);
  if (stats?.notice) texts.push(stats.notice);
  return texts.join(" · ");
}
