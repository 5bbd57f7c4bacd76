// What an answer waits for before its first token: a download, a load, or just its turn.

import { ApiError, json, request } from "./api.js";
import { called } from "./element.js";
import { going } from "./models.js";

const LOOK_MS = 1_000, WORTH_SAYING_S = 3;

export class Waits {
  constructor(answers, models, ring) {
    Object.assign(this, { answers, models, ring });
    setInterval(() => this.look(), LOOK_MS);
  }

  async look() {
    const waiting = [...this.answers.runs.values()].filter((run) => !run.first && !run.reading && !run.stopping);
    if (!waiting.length || document.hidden) return;
    let downloads = [];
    try {
      downloads = (await json("v1/download/progress")).data.filter((d) => !d.done && !d.error);
    } catch (error) { // the answer's own stream says what is wrong
      if (!(error instanceof ApiError)) throw error;
    }
    for (const run of waiting) if (!run.first && !run.reading) this.say(run, downloads);
  }

  say(run, downloads) {
    const model = run.message.stats?.model ?? run.model ?? this.models.default?.id, nodes = this.ring.state?.nodes ?? {};
    const download = downloads.find((d) => d.model === model);
    const loads = Object.entries(nodes).flatMap(([id, node]) => node.workers.map((w) => [called(id, node), w.loading[model]])).filter(([, part]) => part !== undefined);
    const before = run.progress;
    if (download) {
      const words = going({ have: download.downloaded_bytes, size: download.total_bytes, percent: download.percentage, speed: download.bytes_per_s, left_s: download.left_s });
      const cancel = download.node_id === this.ring.state?.node_id ? () => request(`download/${model}`, { method: "DELETE" }).catch(() => { /* it is over */ }) : null;
      run.progress = { part: download.percentage / 100, text: `Downloading ${model}: ${download.total_bytes ? words : download.status}`, cancel };
    } else if (loads.length) {
      const [name, part] = loads.sort((a, b) => a[1] - b[1])[0];
      run.progress = { part, text: `Loading ${model}${Object.keys(nodes).length > 1 ? ` on ${name}` : ""}: ${Math.round(100 * part)} %` };
    } else run.progress = null;
    const waited = Math.round((performance.now() - run.started) / 1000);
    if (run.progress) this.answers.say(run, run.progress.text);
    else if (before || (run.queued === undefined && waited >= WORTH_SAYING_S)) this.answers.say(run, `Waiting for the first token, ${waited} s`);
  }
}
