// Markdown blocks as DOM nodes, for text that is still being written: what has not changed keeps its nodes.

import { highlighted } from "./code.js";
import { h } from "./element.js";
import { inline } from "./inline.js";
import { math } from "./math.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const FORMULA = /^\s*(\$\$|\\\[)/;
const MAX_DEPTH = 6;

/** Shows a growing text in `container`. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.shown = [];
  }

  update(text) {
    const blocks = split(text.split("\n"));
    let same = 0;
    while (same < blocks.length && same < this.shown.length && blocks[same].source === this.shown[same].source) same += 1;
    for (const old of this.shown.splice(same)) old.node.remove();
    for (const block of blocks.slice(same)) {
      const node = render(block, 0);
      this.container.append(node);
      this.shown.push({ source: block.source, node });
    }
  }
}

/** Cut lines into blocks: {kind, lines, source, …}. */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (!lines[at].trim()) { at += 1; continue; }
    const block = take(lines, at);
    block.source = lines.slice(at, block.end).join("\n");
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

function take(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) {
    let end = at + 1;
    const close = new RegExp(`^ {0,3}\\${fence[1][0]}{${fence[1].length},}\\s*$`);
    while (end < lines.length && !close.test(lines[end])) end += 1;
    return { kind: "code", language: fence[2], lines: lines.slice(at + 1, end), end: Math.min(lines.length, end + 1) };
  }
  const formula = FORMULA.exec(line);
  if (formula) {
    const mark = formula[1] === "$$" ? "$$" : "\\]";
    let end = at;
    let rest = line.slice(formula[0].length);
    while (!rest.includes(mark) && end + 1 < lines.length && lines[end + 1].trim()) rest += `\n${lines[end += 1]}`;
    const close = rest.indexOf(mark);
    if (close >= 0 && !rest.slice(close + mark.length).trim()) return { kind: "math", text: rest.slice(0, close), end: end + 1 };
  }
  if (HEADING.test(line)) return { kind: "heading", end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !ends(lines, end, QUOTE)) end += 1;
    return { kind: "quote", lines: lines.slice(at, end).map((l) => l.replace(QUOTE, "")), end };
  }
  if (ITEM.test(line)) return list(lines, at);
  if (line.includes("|") && at + 1 < lines.length && TABLE_RULE.test(lines[at + 1]) && lines[at + 1].includes("-")) {
    let end = at + 2;
    while (end < lines.length && lines[end].includes("|")) end += 1;
    return { kind: "table", lines: lines.slice(at, end), end };
  }
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !ends(lines, end, null)) end += 1;
  return { kind: "paragraph", lines: lines.slice(at, end), end };
}

/** Whether another block begins here, other than the one that `own` goes on with. */
function ends(lines, at, own) {
  const line = lines[at];
  if (own?.test(line)) return false;
  return [FENCE, HEADING, RULE, QUOTE, FORMULA].some((begin) => begin !== own && begin.test(line)) || /^ {0,3}([-*+]|1[.)])\s/.test(line);
}

function list(lines, at) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at, width = 0;
  for (; end < lines.length; end += 1) {
    const line = lines[end], item = ITEM.exec(line);
    const indent = line.length - line.trimStart().length;
    if (item && indent < Math.max(width, first[1].length + 2) && !RULE.test(line)) {
      if (/\d/.test(item[2]) !== ordered || indent < first[1].length) break;
      width = Math.min(item[0].length, indent + 5);
      items.push([line.slice(item[0].length)]);
    } else if (!line.trim()) {
      const next = lines[end + 1];
      if (next === undefined || !(next.startsWith(" ".repeat(2)) || ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (indent >= Math.min(width, 2) || !ends(lines, end, ITEM) && lines[end - 1].trim()) {
      items.at(-1).push(line.slice(Math.min(indent, width)));
    } else break;
  }
  return { kind: "list", ordered, start: parseInt(first[2], 10), items, end };
}

function render(block, depth) {
  switch (block.kind) {
    case "code": return codeBlock(block.lines.join("\n"), block.language);
    case "math": return h("p", { class: "formula" }, math(block.text, true) ?? h("code", { class: "tex" }, block.source.trim()));
    case "heading": {
      const [, signs, text] = HEADING.exec(block.source);
      return h(`h${Math.min(6, signs.length + 2)}`, { dir: "auto" }, ...inline(text.trimEnd())); // the page has h1 and h2 of its own
    }
    case "rule": return h("hr");
    case "quote": return h("blockquote", { dir: "auto" }, ...children(block.lines, depth));
    case "list": return listNode(block, depth);
    case "table": return table(block.lines);
    default: return h("p", { dir: "auto" }, ...inline(block.lines.map((l) => l.trimStart()).join("\n")));
  }
}

function children(lines, depth) {
  return depth >= MAX_DEPTH ? [lines.join("\n")] : split(lines).map((block) => render(block, depth + 1));
}

function listNode(block, depth) {
  const items = block.items.map((lines) => {
    const task = /^\[([ xX])\]\s+/.exec(lines[0]);
    if (task) lines = [lines[0].slice(task[0].length), ...lines.slice(1)];
    const nodes = children(lines, depth);
    if (nodes[0] instanceof HTMLParagraphElement && !lines.includes("")) nodes.splice(0, 1, ...nodes[0].childNodes);
    return h("li", { dir: "auto" }, task ? (task[1] === " " ? "☐ " : "☑ ") : null, ...nodes);
  });
  return block.ordered ? h("ol", { dir: "auto", start: block.start === 1 ? null : block.start }, ...items) : h("ul", { dir: "auto" }, ...items);
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function table(lines) {
  const align = cells(lines[1]).map((rule) => (rule.endsWith(":") ? (rule.startsWith(":") ? "middle" : "end") : ""));
  const row = (line, name) => h("tr", {}, ...cells(line).slice(0, align.length).map((cell, i) =>
    h(name, { dir: "auto", class: align[i] || null, scope: name === "th" ? "col" : null }, ...inline(cell))));
  const body = h("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")));
  return h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "table" }, h("table", {}, h("thead", {}, row(lines[0], "th")), body));
}

function codeBlock(source, language) {
  const copy = h("button", { type: "button", class: "copy" }, "Copy");
  copy.addEventListener("click", () => copyText(source, copy));
  const head = h("div", { class: "code-head" }, h("span", {}, language || "text"), copy);
  const body = h("pre", { dir: "ltr", tabindex: "0", role: "group", "aria-label": `code, ${language || "text"}` }, h("code", {}, highlighted(source, language)));
  return h("div", { class: "code" }, head, body);
}

/** To the clipboard, and say so on the button. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

/** Browsers offer `navigator.clipboard` only to https and this machine; a page from another machine has this. */
function copyBySelection(text) {
  const area = h("textarea", { class: "hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("not allowed");
}
