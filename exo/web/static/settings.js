// What every request carries beside the conversation: system prompt and sampling. Kept in this browser.

import { $ } from "./element.js";

const STORE = "exo.settings";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens"];

export class Settings {
  constructor() {
    this.values = {};
    try {
      this.values = Object.assign({}, JSON.parse(localStorage.getItem(STORE) ?? "{}"));
    } catch { /* damaged: the defaults */ }
    const dialog = $("settings");
    $("open-settings").addEventListener("click", () => {
      this.show();
      dialog.showModal();
    });
    $("settings-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.read();
      dialog.close();
    });
    $("settings-reset").addEventListener("click", () => {
      this.values = {};
      this.show();
      this.read();
    });
    $("settings-cancel").addEventListener("click", () => dialog.close());
  }

  show() {
    for (const name of [...NUMBERS, "system"]) $(`set-${name}`).value = this.values[name] ?? "";
  }

  read() {
    this.values = {};
    for (const name of NUMBERS) {
      const input = $(`set-${name}`);
      if (input.value !== "" && !Number.isNaN(input.valueAsNumber)) this.values[name] = input.valueAsNumber;
    }
    if ($("set-system").value.trim()) this.values.system = $("set-system").value;
    localStorage.setItem(STORE, JSON.stringify(this.values));
  }

  /** Fields of a request's body; what is not set is the node's to decide. */
  get fields() {
    const { system, ...numbers } = this.values;
    return numbers;
  }

  get system() { return this.values.system ?? ""; }
}
