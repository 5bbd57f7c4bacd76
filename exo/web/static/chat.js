// The conversation that is open: asking, streaming, stopping, asking again.

import { ApiError, events } from "./api.js";
import { $, h } from "./element.js";
import { MessageView } from "./message.js";

const SAVE_MS = 1_000, NEAR_END_PX = 80;

export class Chat {
  constructor(conversations, settings, models) {
    Object.assign(this, { conversations, settings, models, running: null, views: [] });
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $("prompt").value.trim();
      if (!text || this.running) return;
      $("prompt").value = "";
      this.grow();
      this.ask(text);
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
      if (event.key === "Escape" && this.running && !document.querySelector("dialog[open]")) this.stop();
    });
    this.show();
  }

  grow() {
    const box = $("prompt");
    box.rows = Math.min(10, Math.max(2, box.value.split("\n").length));
  }

  /** Show the current conversation from its beginning. */
  show() {
    this.stop();
    this.conversation = this.conversations.current;
    this.views = [];
    $("log").replaceChildren();
    for (const message of this.conversation.messages) this.add(message);
    this.emptiness();
    $("log").scrollTop = $("log").scrollHeight;
  }

  emptiness() {
    $("welcome").hidden = this.conversation.messages.length > 0;
  }

  add(message) {
    const view = new MessageView(message, {
      edit: (v) => !this.running && v.edit((text) => this.again(v, text)),
      regenerate: (v) => !this.running && this.again(v),
    });
    this.views.push(view);
    $("log").append(view.node);
    return view;
  }

  /** Go back to before a message: to the same question for an answer, to another one for a question. */
  again(view, text) {
    const { messages } = this.conversation;
    const at = messages.indexOf(view.message);
    messages.length = at;
    for (const old of this.views.splice(at)) old.node.remove();
    if (text === undefined) this.answer();
    else this.ask(text);
  }

  ask(text) {
    const message = { role: "user", content: text };
    this.conversation.messages.push(message);
    this.add(message);
    this.answer();
  }

  stop() { this.running?.abort(); }

  async answer() {
    const conversation = this.conversation, controller = this.running = new AbortController();
    const sent = conversation.messages.map(({ role, content }) => ({ role, content }));
    const message = { role: "assistant", content: "" };
    conversation.messages.push(message);
    this.conversations.touch(conversation);
    this.emptiness();
    const view = this.add(message);
    view.running = true;
    $("stop").disabled = false;
    $("send").disabled = true;
    $("status").textContent = "Waiting for the first token";
    this.follow(true);
    const painter = new Painter(() => {
      view.refresh();
      this.follow(false);
    });
    const saving = setInterval(() => this.conversations.save(), SAVE_MS);
    try {
      await this.stream(sent, message, controller.signal, painter);
    } catch (error) {
      if (error.name === "AbortError") message.stopped = true;
      else {
        message.error = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
        if (!(error instanceof ApiError)) console.error(error);
      }
    } finally {
      clearInterval(saving);
      painter.stop();
      view.running = false;
      view.refresh();
      this.follow(false);
      if (this.running === controller) this.running = null;
      $("stop").disabled = true;
      $("send").disabled = false;
      $("status").textContent = message.error ? "The answer failed" : message.stopped ? "Stopped" : "The answer is complete";
      this.conversations.touch(conversation);
    }
  }

  async stream(messages, message, signal, painter) {
    const { system } = this.settings;
    if (system) messages.unshift({ role: "system", content: system });
    const body = { messages, stream: true, stream_options: { include_usage: true }, ...this.settings.fields };
    if (this.models.chosen) body.model = this.models.chosen;
    const stats = message.stats = {}, started = performance.now();
    let first = 0, last = 0, pieces = 0;
    for await (const event of events("v1/chat/completions", { method: "POST", body, signal })) {
      if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
      if (event.notice) stats.notice = event.notice;
      const delta = event.choices?.[0]?.delta ?? {};
      const thought = delta.reasoning_content ?? delta.reasoning;
      if (thought) message.reasoning = (message.reasoning ?? "") + thought;
      if (delta.content) message.content += delta.content;
      if (thought || delta.content) {
        last = performance.now();
        pieces += 1;
        if (!first) {
          first = last;
          stats.first_ms = first - started;
          $("status").textContent = "Answering";
        }
      }
      if (event.model) stats.model = event.model;
      if (event.usage) stats.tokens = event.usage.completion_tokens;
      const count = stats.tokens ?? pieces;
      if (count > 1 && last > first) stats.per_s = (count - 1) / ((last - first) / 1000);
      painter.request();
    }
  }

  /** Keep the end in sight, unless the reader has scrolled away from it. */
  follow(force) {
    const log = $("log");
    if (force || this.atEnd !== false) log.scrollTop = log.scrollHeight;
    if (!this.watching) {
      this.watching = true;
      log.addEventListener("scroll", () => { this.atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX; });
    }
    if (force) this.atEnd = true;
  }
}

/** Paints at most once a frame, and more rarely where painting is slow: at most a fifth of the time goes into it. */
class Painter {
  constructor(paint) {
    this.paint = paint;
    this.timer = 0;
    this.pause = 0;
  }

  request() {
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      const started = performance.now();
      this.paint();
      this.pause = 16 + 4 * (performance.now() - started);
    }, this.pause);
  }

  stop() { clearTimeout(this.timer); }
}

/** The list at the side. `open()` shows the current conversation. */
export function listConversations(conversations, open) {
  const list = $("chat-list");
  const items = conversations.all.filter((c) => c.messages.length || c === conversations.current).map((c) => {
    const title = c.title || "New chat";
    const select = h("button", { type: "button", class: "chat-name", "aria-current": c === conversations.current ? "true" : null,
      onclick: () => { conversations.open(c.id); open(); } }, title);
    const remove = h("button", { type: "button", class: "quiet", "aria-label": `Delete “${title}”`, title: "Delete",
      onclick: () => { conversations.remove(c.id); open(); } }, "×");
    return h("li", {}, select, c.messages.length ? remove : null);
  });
  list.replaceChildren(...items);
}
