// The conversation that is open: its messages, asking, asking anew, and what an answer under way says of itself.

import { append, path, show, versions } from "./branches.js";
import { $ } from "./element.js";
import { MessageView } from "./message.js";

const NEAR_END_PX = 80;

export class Chat {
  constructor(conversations, settings, answers, attachments) {
    Object.assign(this, { conversations, settings, answers, attachments, views: [] });
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        $("form").requestSubmit();
      }
    });
    $("prompt").addEventListener("input", () => this.grow());
    $("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open]")) this.stop();
    });
    $("log").addEventListener("scroll", () => {
      const log = $("log");
      this.atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    });
    for (const name of ["begin", "text", "status", "end"]) answers.addEventListener(name, (event) => this.heard(name, event.detail));
    this.open();
  }

  grow() {
    const box = $("prompt");
    box.rows = Math.min(10, Math.max(2, box.value.split("\n").length));
  }

  get run() { return this.answers.of(this.conversation); }

  /** Show the current conversation; what is under way in others goes on, unless the settings say otherwise. */
  open() {
    const before = this.conversation;
    this.conversation = this.conversations.current;
    if (before && before !== this.conversation && this.settings.stopsOnSwitching) {
      for (const run of this.answers.runs.values()) if (run.conversation === before) this.answers.stop(run);
    }
    $("status").textContent = "";
    this.draw();
    this.follow(true);
  }

  /** Bring what is shown up to date, after this or another tab has changed it; views of messages that stay are kept. */
  draw() {
    const messages = path(this.conversation);
    let same = 0;
    while (same < messages.length && this.views[same]?.message === messages[same] && this.views[same].at === this.stamp(messages[same])) same += 1;
    for (const old of this.views.splice(same)) old.node.remove();
    for (const message of messages.slice(same)) this.add(message);
    $("welcome").hidden = messages.length > 0;
    this.state();
  }

  /** What a view depends on: an answer under way is drawn by its own events. */
  stamp(message) {
    const others = versions(this.conversation, message);
    return `${this.answers.runs.has(message.id) ? "running" : message.at} ${others.indexOf(message)} of ${others.length}`;
  }

  add(message) {
    const others = versions(this.conversation, message), running = this.answers.runs.get(message.id);
    const view = new MessageView(message, { versions: others, last: message.id === this.conversation.leaf }, {
      edit: (v) => v.edit((text) => this.ask(text, message.parent, message.files)),
      regenerate: () => this.answer(message.parent),
      proceed: () => this.proceed(message),
      version: (step) => this.version(others, message, step),
    });
    view.at = this.stamp(message);
    if (running) view.begin(running);
    this.views.push(view);
    $("log").append(view.node);
    return view;
  }

  version(others, message, step) {
    show(this.conversation, others[others.indexOf(message) + step]);
    this.conversations.touch(this.conversation);
    this.draw();
    const view = this.views.find((v) => v.message.parent === message.parent && v.message.role === message.role);
    view?.focusVersion(step);
    this.conversations.dispatchEvent(new Event("list"));
  }

  send() {
    const text = $("prompt").value.trim(), files = this.attachments.files;
    if ((!text && !files.length) || this.run || this.attachments.reading) return;
    $("prompt").value = "";
    this.attachments.clear();
    this.grow();
    this.ask(text, this.conversation.leaf, files);
  }

  /** A question after `parent`; where there is one already it stays, as another version. */
  ask(text, parent, files) {
    const message = append(this.conversation, parent, { role: "user", content: text, ...(files?.length ? { files } : {}) });
    this.answer(message.id);
  }

  answer(parent) {
    const message = append(this.conversation, parent, { role: "assistant", content: "" });
    this.draw();
    this.answers.begin(this.conversation, message);
    this.follow(true);
  }

  /** Go on where the answer was cut. */
  proceed(message) {
    this.answers.begin(this.conversation, message, { continued: true });
    this.follow(true);
  }

  stop() { if (this.run) this.answers.stop(this.run); }

  heard(name, run) {
    if (run.conversation !== this.conversation) return;
    const view = this.views.find((v) => v.message === run.message);
    if (name === "begin" || (name === "end" && view)) {
      if (name === "begin") view?.begin(run);
      else view.end();
      if (view) view.at = this.stamp(run.message);
    } else if (name === "text") view?.changed(() => this.follow(false));
    else view?.progress(run);
    if (name !== "text") this.state(name === "end" ? run : this.run);
    if (name === "end") this.follow(false);
  }

  state(run = this.run) {
    const busy = Boolean(this.run);
    $("stop").disabled = !busy;
    $("send").disabled = busy || this.attachments.reading;
    if (run) $("status").textContent = run.status;
  }

  /** Keep the end in sight, unless the reader has scrolled away from it. */
  follow(force) {
    const log = $("log");
    if (force || this.atEnd !== false) log.scrollTop = log.scrollHeight;
    if (force) this.atEnd = true;
  }
}
