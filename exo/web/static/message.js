// One message on the page: its text, what the model thought, its speed, and what can be done with it.

import { $, h } from "./element.js";
import { MarkdownView, copyText } from "./markdown.js";

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
  /** `actions` are called with this view: edit, regenerate. */
  constructor(message, actions) {
    this.message = message;
    this.body = h("div", { class: "body" });
    this.stats = h("span", { class: "stats" });
    this.buttons = h("div", { class: "actions" });
    const name = message.role === "user" ? "You" : "Model";
    this.node = h("article", { class: message.role, "aria-label": name }, h("h2", { class: "who" }, name), this.body,
      h("div", { class: "foot" }, this.buttons, this.stats));
    this.addActions(actions);
    if (message.role === "user") this.body.append(h("p", { class: "typed" }, message.content));
    else this.refresh();
  }

  addActions({ edit, regenerate }) {
    const button = (label, act) => this.buttons.append(h("button", { type: "button", onclick: act }, label));
    button("Copy", (event) => copyText(parts(this.message)[1], event.currentTarget));
    if (this.message.role === "user") button("Edit", () => edit(this));
    else button("Regenerate", () => regenerate(this));
  }

  /** Show the message as it is now. */
  refresh() {
    const [thought, answer] = parts(this.message);
    if (thought) this.think(thought, !answer && this.busy);
    this.markdown ??= new MarkdownView(this.body.appendChild(h("div", { class: "markdown" })));
    this.markdown.update(answer);
    this.fault?.remove();
    if (this.message.error) this.body.append(this.fault = h("p", { class: "error", role: "alert" }, this.message.error));
    this.stats.textContent = speed(this.message.stats, this.message.stopped);
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

  set running(value) {
    this.busy = value;
    this.node.setAttribute("aria-busy", value); // a screen reader waits for the end and then reads it whole
    this.node.classList.toggle("running", value);
    if (value) {
      this.message.error = undefined;
      this.message.stopped = undefined;
    }
  }

  /** Turn a question into a text box; `done(text)` when it is sent. */
  edit(done) {
    const box = h("textarea", { "aria-label": "Your message, edited", rows: Math.min(12, this.message.content.split("\n").length + 1) });
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
    form.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
    const before = [...this.body.childNodes];
    this.body.replaceChildren(form);
    this.buttons.hidden = true;
    box.focus();
  }
}

function speed(stats, stopped) {
  const texts = stopped ? ["stopped"] : [];
  if (stats?.first_ms) texts.push(`first token ${stats.first_ms < 1000 ? `${Math.round(stats.first_ms)} ms` : `${(stats.first_ms / 1000).toFixed(1)} s`}`);
  if (stats?.per_s) texts.push(`${stats.per_s.toFixed(stats.per_s < 10 ? 1 : 0)} tokens/s`);
  if (stats?.tokens) texts.push(`${stats.tokens} tokens`);
  if (stats?.model) texts.push(stats.model);
  if (stats?.notice) texts.push(stats.notice);
  return texts.join(" · ");
}
