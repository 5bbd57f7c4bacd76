// Answers under way: they go on whatever conversation is open, and are taken up again when the page is loaded anew.

import { ApiError, events, request } from "./api.js";
import { path } from "./branches.js";
import { fileAsText } from "./transfer.js";

const SAVE_MS = 1_000, RETRIES = 5, RETRY_MS = 1_000, STOP_MS = 3_000, STALE_MS = 4_000;

/** One answer that is written into a message of a conversation. */
class Run {
  constructor(conversation, message) {
    Object.assign(this, { conversation, message, controller: new AbortController(), status: "Waiting for the first token", progress: null, stopping: false });
    this.started = performance.now();
  }
}

/** Tells of itself by `begin`, `text`, `status` and `end`, each with the run as its detail. */
export class Answers extends EventTarget {
  constructor(conversations, settings, models) {
    super();
    Object.assign(this, { conversations, settings, models, runs: new Map() });
    conversations.busy = (m) => this.runs.has(m.id);
    addEventListener("pagehide", () => { for (const run of this.runs.values()) conversations.save(run.conversation); });
  }

  /** The run whose message is on the branch that is shown, of which there is at most one. */
  of(conversation) {
    const shown = path(conversation);
    return [...this.runs.values()].find((run) => run.conversation === conversation && shown.includes(run.message)) ?? null;
  }

  isRunning(conversation) { return [...this.runs.values()].some((run) => run.conversation === conversation); }

  /** Have `message`, the leaf, answered; with `continued` its text goes on. */
  begin(conversation, message, { continued = false } = {}) {
    const before = path(conversation);
    const sent = before.slice(0, continued ? undefined : -1).map((m) => ({ role: m.role, content: contentOf(m) }));
    const { system, ...fields } = this.settings.of(conversation);
    if (system) sent.unshift({ role: "system", content: system });
    const body = { messages: sent, stream: true, stream_options: { include_usage: true }, keep_running: true, return_progress: true, ...fields };
    if (this.models.chosen) body.model = this.models.chosen;
    if (continued) body.continue_final_message = true;
    const run = new Run(conversation, message);
    run.model = body.model;
    delete message.run;
    return this.follow(run, () => events("v1/chat/completions", { method: "POST", body, signal: run.controller.signal }));
  }

  /** Go on with what was under way when this page, or another tab, was left; what another tab still writes is left to it. */
  takeUp() {
    for (const conversation of this.conversations.all) {
      for (const message of conversation.messages) {
        if (!message.run || this.runs.has(message.id)) continue;
        if (message.run.tab !== tab && Date.now() - message.at < STALE_MS) setTimeout(() => this.takeUp(), STALE_MS);
        else this.resume(new Run(conversation, message));
      }
    }
  }

  resume(run) {
    run.id = run.message.run.id;
    run.resumed = true;
    run.status = "Taking up the answer";
    return this.follow(run, () => this.rest(run));
  }

  rest(run) {
    return events(`v1/chat/completions/${encodeURIComponent(run.id)}/stream?starting_after=${run.message.run.last}`, { signal: run.controller.signal });
  }

  async follow(run, source) {
    const { conversation, message } = run;
    this.runs.set(message.id, run);
    for (const key of ["error", "stopped", "cut"]) delete message[key];
    this.conversations.touch(conversation);
    this.tell("begin", run);
    const saving = setInterval(() => this.save(run), SAVE_MS);
    try {
      for (let tries = 0; ; source = () => this.rest(run)) {
        try {
          for await (const event of source()) {
            tries = 0;
            this.take(run, event);
            if (run.stopping && run.id) this.stop(run);
          }
          break;
        } catch (error) { // a broken connection: the answer goes on, and so does the page
          if (!message.run || error.status !== 0 || error.code || (tries += 1) > RETRIES) throw error;
          this.say(run, "The connection broke off; trying again …");
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
          if (run.controller.signal.aborted) throw new DOMException("stopped", "AbortError");
        }
      }
    } catch (error) {
      this.failed(run, error);
    } finally {
      clearInterval(saving);
      delete message.run;
      message.at = Date.now();
      this.runs.delete(message.id);
      run.status = message.error ? "The answer failed" : message.stopped ? "Stopped" : message.cut ? "The answer was cut" : "The answer is complete";
      this.conversations.touch(conversation);
      this.tell("end", run);
    }
  }

  failed(run, error) {
    const { message } = run;
    if (error.name === "AbortError" || run.stopping) message.stopped = true;
    else if (error.code === "response_lost") {
      message.cut = message.content ? "the rest is lost: the node keeps answers for ten minutes, and not over a restart" : undefined;
      message.error = message.content ? undefined : "This answer is lost: the node keeps answers for ten minutes, and not over a restart. Ask again.";
    } else {
      message.error = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
      if (!(error instanceof ApiError)) console.error(error);
    }
  }

  take(run, event) {
    const { message } = run;
    if (event.error) throw new ApiError(event.error.message, 0, event.error.code ?? "error");
    const stats = message.stats ??= {};
    if (event.notice) stats.notice = event.notice;
    run.id ??= event.id;
    if (event.seq) message.run = { id: run.id, last: event.seq, tab };
    if (event.prompt_progress) this.prompt(run, event.prompt_progress);
    if (event.queue) this.say(run, `Waiting in the queue, place ${run.queued = event.queue.place}`);
    const choice = event.choices?.[0] ?? {}, delta = choice.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought) message.reasoning = (message.reasoning ?? "") + thought;
    if (delta.content) message.content += delta.content;
    if (thought || delta.content) this.measure(run, stats);
    if (event.model) stats.model = event.model;
    if (event.usage) stats.tokens = event.usage.completion_tokens;
    const count = stats.tokens ?? run.pieces;
    if (event.timings?.predicted_per_second) stats.per_s = event.timings.predicted_per_second;
    else if (!run.resumed && count > 1 && run.last > run.first) stats.per_s = (count - 1) / ((run.last - run.first) / 1000);
    if (choice.finish_reason === "length") message.cut = "cut at the most tokens that an answer may have";
    const guard = event.exo_stopped ?? choice.stopped_by ?? choice.stop_reason;
    if (guard === "repetition") stats.notice = "ended: it ran in circles";
    this.tell("text", run);
  }

  measure(run, stats) {
    run.last = performance.now();
    run.pieces = (run.pieces ?? 0) + 1;
    if (run.first) return;
    run.first = run.last;
    if (!run.resumed) stats.first_ms ??= run.first - run.started;
    run.progress = null;
    this.say(run, "Answering");
  }

  prompt(run, { total, cache = 0, processed }) {
    const part = total > cache ? (processed - cache) / (total - cache) : 1;
    run.reading = true;
    run.progress = { part, text: `Reading the prompt: ${Math.round(100 * part)} % of ${total - cache} tokens` };
    this.say(run, run.progress.text);
  }

  say(run, status) {
    run.status = status;
    this.tell("status", run);
  }

  save(run) {
    run.message.at = Date.now();
    this.conversations.save(run.conversation);
  }

  /** End it on the node too: it would go on without this page. */
  stop(run) {
    if (!run.id) {
      if (!run.stopping) setTimeout(() => run.controller.abort(), STOP_MS);
      run.stopping = true;
      this.say(run, "Stopping");
      return;
    }
    run.stopping = true;
    if (run.message.run) request(`v1/cancel/${encodeURIComponent(run.id)}`, { method: "POST", body: {} }).catch(() => { /* it is over already */ });
    run.controller.abort();
  }

  tell(name, run) { this.dispatchEvent(new CustomEvent(name, { detail: run })); }
}

/** What tells this tab from others, over a reload. */
const tab = sessionStorage.getItem("exo.tab") ?? String(Math.random());
sessionStorage.setItem("exo.tab", tab);

/** What the model reads of a message. */
const contentOf = (message) => [...(message.files ?? []).map(fileAsText), message.content].filter(Boolean).join("\n\n");
