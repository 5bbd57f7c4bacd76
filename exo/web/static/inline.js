// Inline markdown as DOM nodes. A model may be hostile: no markup is ever parsed, nothing is loaded, and links leave only
// by http, https or mail, when they are clicked.

import { h } from "./element.js";
import { math } from "./math.js";

const MAX_DEPTH = 8, MAX_SPAN = 4_000, MAX_EMPHASIS = 1_000;
const SPECIAL = /[\\`*_~$[!<\n]|https?:\/\//g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/** The nodes of one paragraph's text. */
export function inline(text, depth = 0) {
  const nodes = [];
  const unclosed = new Set(); // marks known to have no end further on
  let plain = 0;
  SPECIAL.lastIndex = 0;
  const rules = depth < MAX_DEPTH ? RULES : {};
  for (let match = SPECIAL.exec(text); match; match = SPECIAL.exec(text)) {
    const at = match.index;
    const rule = rules[match[0]] ?? (match[0].length > 1 ? autolink : null);
    const found = rule?.(text, at, depth, unclosed);
    if (!found) {
      SPECIAL.lastIndex = at + 1;
      continue;
    }
    const [end, node] = found;
    if (at > plain) nodes.push(text.slice(plain, at));
    nodes.push(node);
    plain = SPECIAL.lastIndex = end;
  }
  if (plain < text.length) nodes.push(text.slice(plain));
  return nodes;
}

const RULES = {
  "\\": escape, "`": codeSpan, "*": emphasis, "_": emphasis, "~": strike, "$": dollars, "[": link, "!": image, "<": angle,
  "\n": lineBreak,
};

/** Where `mark` next stands after `from`, not too far away; -1 remembered, so that a text of openers stays linear. */
function closing(text, mark, from, unclosed) {
  if (unclosed.has(mark)) return -1;
  const at = text.indexOf(mark, from);
  if (at < 0) unclosed.add(mark);
  return at - from > MAX_SPAN ? -1 : at;
}

function escape(text, at, depth, unclosed) {
  const next = text[at + 1];
  if (next === "(" || next === "[") {
    const end = closing(text, next === "(" ? "\\)" : "\\]", at + 2, unclosed);
    if (end > 0) return formula(text.slice(at + 2, end), text.slice(at, end + 2), end + 2, next === "[");
  }
  if (next === "\n") return [at + 2, h("br")];
  return next && PUNCTUATION.test(next) ? [at + 2, next] : null;
}

function codeSpan(text, at, depth, unclosed) {
  let length = 1;
  while (text[at + length] === "`") length += 1;
  const mark = "`".repeat(length);
  let end = closing(text, mark, at + length, unclosed);
  while (end > 0 && text[end + length] === "`") { // a longer run is no end
    let after = end + length;
    while (text[after] === "`") after += 1;
    end = closing(text, mark, after, unclosed);
  }
  if (end < 0) return [at + length, mark];
  const body = text.slice(at + length, end).replaceAll("\n", " ");
  return [end + length, h("code", {}, /^ .*[^ ].* $/.test(body) ? body.slice(1, -1) : body)];
}

const WORD = /[\p{L}\p{N}]/u;

function emphasis(text, at, depth, unclosed) {
  const sign = text[at];
  let length = 1;
  while (length < 3 && text[at + length] === sign) length += 1;
  if (!text[at + length] || /\s/.test(text[at + length])) return null;
  if (sign === "_" && at > 0 && WORD.test(text[at - 1])) return null; // snake_case
  const mark = sign.repeat(length);
  for (let from = at + length; ;) {
    const end = closing(text, mark, from, unclosed);
    if (end < 0) return null;
    const fits = !/\s/.test(text[end - 1]) && text[end - 1] !== "\\" && !(length < 3 && text[end + length] === sign)
      && !(sign === "_" && WORD.test(text[end + length] ?? ""));
    if (fits && end > at + length) {
      const inner = inline(text.slice(at + length, end), depth + 1);
      const node = length === 1 ? h("em", {}, ...inner) : h("strong", {}, ...inner);
      return [end + length, length === 3 ? h("em", {}, node) : node];
    }
    from = end + 1;
    while (text[from] === sign) from += 1;
    if (from - at > MAX_EMPHASIS) return null;
  }
}

function strike(text, at, depth, unclosed) {
  if (text[at + 1] !== "~") return null;
  const end = closing(text, "~~", at + 2, unclosed);
  return end > at + 2 ? [end + 2, h("del", {}, ...inline(text.slice(at + 2, end), depth + 1))] : null;
}

function dollars(text, at, depth, unclosed) {
  const mark = text[at + 1] === "$" ? "$$" : "$";
  const start = at + mark.length;
  const end = closing(text, mark, start, unclosed);
  if (end <= start) return null;
  const body = text.slice(start, end);
  // prices are no formulas: "$5 and $6"
  if (mark === "$" && (/^\s|\s$|\n\n/.test(body) || /\d/.test(text[end + 1] ?? "") || text[end - 1] === "\\")) return null;
  return formula(body, text.slice(at, end + mark.length), end + mark.length, mark === "$$");
}

function formula(body, source, end, display) {
  return [end, math(body, display) ?? h("code", { class: "tex" }, source)];
}

/** [label](target "title"): brackets inside the label are counted. */
function link(text, at, depth, unclosed) {
  if (closing(text, "](", at, unclosed) < 0) return null;
  let open = 0, close = at;
  for (const limit = Math.min(text.length, at + 1_000); close < limit; close += 1) {
    if (text[close] === "[") open += 1;
    else if (text[close] === "]" && (open -= 1) === 0) break;
  }
  if (text[close] !== "]" || text[close + 1] !== "(") return null;
  let end = close + 2, round = 1;
  for (const limit = Math.min(text.length, end + 2_000); end < limit; end += 1) {
    if (text[end] === "(") round += 1;
    else if (text[end] === ")" && (round -= 1) === 0) break;
  }
  if (text[end] !== ")") return null;
  const target = text.slice(close + 2, end).trim().replace(/\s+["'(].*$/s, "");
  return [end + 1, anchor(target, inline(text.slice(at + 1, close), depth + 1))];
}

/** A picture would be fetched from its host without being asked for: it becomes a link. */
function image(text, at, depth, unclosed) {
  if (text[at + 1] !== "[") return null;
  const found = link(text, at + 1, depth, unclosed);
  if (found && found[1] instanceof HTMLElement) found[1].prepend("🖼 ");
  return found;
}

function angle(text, at) {
  const match = /^<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/.exec(text.slice(at, at + 2_100));
  return match ? [at + match[0].length, anchor(match[1], [match[1]])] : null;
}

function autolink(text, at) {
  if (at > 0 && WORD.test(text[at - 1])) return null;
  const match = /^https?:\/\/[^\s<>"'`*]{1,2000}/.exec(text.slice(at, at + 2_100));
  if (!match) return null;
  let url = match[0].replace(/[.,;:!?]+$/, "");
  if (url.endsWith(")") && !url.includes("(")) url = url.slice(0, -1);
  return [at + url.length, anchor(url, [url])];
}

function anchor(target, children) {
  let url = null;
  try {
    url = new URL(target.replace(/^<|>$/g, ""));
  } catch { /* relative or malformed: nothing of ours is to be linked to */ }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) {
    return h("span", { class: "no-link", title: target.slice(0, 200) }, ...children);
  }
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function lineBreak(text, at) {
  return / {2}$/.test(text.slice(Math.max(0, at - 2), at)) ? [at + 1, h("br")] : null;
}
