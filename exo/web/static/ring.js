// The live ring: one stream of whole pictures from this node, shown as a picture and in words.

import { events } from "./api.js";
import { Cards } from "./cards.js";
import { $, gigabytes, plural } from "./element.js";
import { Picture } from "./picture.js";

const RETRY_MS = 1_000;

export class Ring {
  constructor() {
    this.state = null;
    this.picture = new Picture();
    this.cards = new Cards();
    // a page that nobody looks at holds no connection: browsers allow six to one host, over all tabs
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stream.abort() : this.follow()));
    addEventListener("pagehide", () => this.stream.abort());
    addEventListener("pageshow", (event) => event.persisted && this.follow());
    this.follow();
  }

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
    this.picture.show(state, before);
    this.cards.show(state);
  }
}
