// One line at the bottom that goes by itself, with something that can be done about it.

import { $, h } from "./element.js";

const SHOWN_MS = 15_000;
let timer = 0;

/** Say `text`, with a button `label` that does `act`. */
export function toast(text, label, act) {
  clearTimeout(timer);
  const box = $("toast");
  const hide = () => box.replaceChildren();
  const button = label && h("button", { type: "button", onclick: () => {
    hide();
    act();
    $("prompt").focus();
  } }, label);
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: hide }, "×");
  box.replaceChildren(h("div", {}, h("span", { dir: "auto" }, text), button || null, close));
  timer = setTimeout(() => {
    if (!box.matches(":hover, :focus-within")) hide();
  }, SHOWN_MS);
}
