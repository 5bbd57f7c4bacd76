// TeX as MathML, which browsers lay out themselves. A command that is not known is shown as it was written, among the rest.

import { mathml as m } from "./element.js";
import { ACCENTS, ARROWS, ENVIRONMENTS, FUNCTIONS, LARGE, LETTERS, LIMITS, OPERATORS, SIZES, SPACES, STRETCHED, inAlphabet, styleOf } from "./math_symbols.js";

const MAX_DEPTH = 40, MAX_CHARS = 5_000;
const COLOR = /^(#[0-9a-f]{3}|#[0-9a-f]{6}|[a-z]{3,20})$/i;
const IGNORED = new Set("displaystyle textstyle scriptstyle limits nolimits nonumber notag label hline centering left. allowbreak".split(" "));

class Broken extends Error {}

/** A `<math>` element, or null where the source is none: a brace or an end is missing, as while it is written. */
export function math(source, display) {
  if (source.length > MAX_CHARS) return null;
  try {
    const parser = new Parser(source);
    const row = parser.row(() => parser.done);
    if (parser.tag) row.append(m("mspace", { width: "2em" }), parser.tag);
    return m("math", { display: display ? "block" : "inline" }, row);
  } catch (error) {
    if (error instanceof Broken) return null;
    throw error;
  }
}

class Parser {
  constructor(source) {
    this.tokens = source.match(/\\(?:[A-Za-z]+\*?|[^])|[0-9]+(?:\.[0-9]+)?|\s+|[^]/g) ?? [];
    this.at = 0;
    this.depth = 0;
    this.tag = null;
  }

  get done() { return this.at >= this.tokens.length; }

  get next() { return this.tokens[this.at]; }

  skipSpace() { while (!this.done && /^\s/.test(this.next)) this.at += 1; }

  /** Whether this token comes next, which is then passed. */
  takes(token) {
    this.skipSpace();
    if (this.next !== token) return false;
    this.at += 1;
    return true;
  }

  expect(token) { if (!this.takes(token)) throw new Broken(`${token} is missing`); }

  row(ends) {
    if ((this.depth += 1) > MAX_DEPTH) throw new Broken("too deep");
    const row = m("mrow");
    for (this.skipSpace(); !this.done && !ends(); this.skipSpace()) {
      const color = this.next === "\\color" ? this.color() : null;
      if (!color) row.append(this.scripted());
      else if (this.next === "{") row.append(colored(color, this.group())); // as MathJax has it
      else row.append(colored(color, this.row(ends)));
    }
    this.depth -= 1;
    return row;
  }

  color() {
    this.at += 1;
    const name = this.raw().trim();
    this.skipSpace();
    return COLOR.test(name) ? name : "currentcolor";
  }

  group() {
    this.skipSpace();
    if (this.next !== "{") return this.atom();
    this.at += 1;
    const row = this.row(() => this.next === "}");
    this.expect("}");
    return row;
  }

  optional() {
    if (!this.takes("[")) return null;
    const row = this.row(() => this.next === "]");
    this.expect("]");
    return row;
  }

  raw() {
    this.expect("{");
    let text = "", open = 1;
    for (; !this.done; this.at += 1) {
      if (this.next === "{") open += 1;
      if (this.next === "}" && (open -= 1) === 0) break;
      text += this.next;
    }
    this.expect("}");
    return text;
  }

  scripted() {
    const token = this.next, name = token?.startsWith("\\") ? token.slice(1) : "";
    let large = (Object.hasOwn(LARGE, name) && !/int/.test(name)) || LIMITS.has(name) || /^(under|over)brace$|^operatorname\*$/.test(name);
    const base = token === "^" || token === "_" ? m("mrow") : this.atom();
    let sub = null, sup = null;
    for (this.skipSpace(); !this.done; this.skipSpace()) {
      if (this.next === "_" && !sub) { this.at += 1; sub = this.group(); }
      else if (this.next === "^" && !sup) { this.at += 1; sup = this.group(); }
      else if (this.next === "'" && !sup) {
        let primes = "";
        for (; this.next === "'"; this.at += 1) primes += "′";
        sup = m("mo", {}, primes);
        if (this.next === "^") { this.at += 1; sup = m("mrow", {}, sup, this.group()); }
      } else if (this.next === "\\limits" || this.next === "\\nolimits") { large = this.next === "\\limits"; this.at += 1; }
      else break;
    }
    if (sub && sup) return m(large ? "munderover" : "msubsup", {}, base, sub, sup);
    if (sub) return m(large ? "munder" : "msub", {}, base, sub);
    return sup ? m(large ? "mover" : "msup", {}, base, sup) : base;
  }

  atom() {
    this.skipSpace();
    if (this.done) throw new Broken("an argument is missing");
    const token = this.next;
    if (token === "{") return this.group();
    if (token === "}" || token === "&") throw new Broken(`${token} is out of place`);
    this.at += 1;
    if (token.startsWith("\\")) return this.command(token.slice(1));
    if (/^[0-9]/.test(token)) return m("mn", {}, token);
    if (/^\p{L}/u.test(token)) return m("mi", {}, token);
    if ("()[]|".includes(token)) return m("mo", { stretchy: "false" }, token);
    if (token === "~") return m("mspace", { width: SPACES["~"] });
    return m("mo", { stretchy: "false" }, token === "-" ? "−" : token === "*" ? "∗" : token);
  }

  command(name) {
    if (Object.hasOwn(LETTERS, name)) return m("mi", {}, LETTERS[name]);
    if (Object.hasOwn(OPERATORS, name)) return m("mo", { stretchy: "false" }, OPERATORS[name]);
    if (Object.hasOwn(LARGE, name)) return m("mo", { largeop: "true" }, LARGE[name]);
    if (FUNCTIONS.has(name)) return m("mi", { mathvariant: "normal" }, name);
    if (Object.hasOwn(SPACES, name)) return m("mspace", { width: SPACES[name] });
    if (Object.hasOwn(ACCENTS, name)) return m("mover", { accent: "true" }, this.group(), m("mo", { stretchy: String(STRETCHED.has(name)) }, ACCENTS[name]));
    if (Object.hasOwn(ARROWS, name)) return this.arrow(ARROWS[name]);
    if (IGNORED.has(name)) return this.ignored(name);
    if (styleOf(name)) return this.styled(styleOf(name));
    const size = SIZES[name.replace(/[lrm]$/, "")];
    if (size) return m("mo", { stretchy: "true", symmetric: "true", minsize: `${size}em`, maxsize: `${size}em` }, this.delimiter());
    switch (name) {
      case "frac": case "dfrac": case "tfrac": case "cfrac": return m("mfrac", {}, this.group(), this.group());
      case "binom": case "dbinom": case "tbinom": return m("mrow", {}, fence("("), m("mfrac", { linethickness: "0" }, this.group(), this.group()), fence(")"));
      case "sqrt": return this.root();
      case "text": case "textrm": case "mbox": case "textit": case "textsf": case "texttt": case "hbox": return m("mrow", {}, ...this.text());
      case "textbf": return m("mrow", { class: "math-bold" }, ...this.text());
      case "left": return this.fenced();
      case "begin": return this.environment();
      case "substack": return this.substack();
      case "overline": case "underline": return m("mrow", { class: name }, this.group());
      case "overset": case "stackrel": { const over = m("mpadded", { depth: ".3em" }, this.group()); return m("mover", {}, this.group(), over); }
      case "underset": { const under = this.group(); return m("munder", {}, this.group(), under); }
      case "underbrace": return m("munder", {}, this.group(), m("mo", { stretchy: "true" }, "⏟"));
      case "overbrace": return m("mover", {}, this.group(), m("mo", { stretchy: "true" }, "⏞"));
      case "boxed": case "fbox": return m("mrow", { class: "boxed" }, this.group());
      case "cancel": case "bcancel": case "xcancel": return m("mrow", { class: name }, this.group());
      case "phantom": return m("mphantom", {}, this.group());
      case "textcolor": { this.at -= 1; const color = this.color(); return colored(color, this.group()); }
      case "tag": case "tag*": this.tag = m("mtext", {}, name === "tag" ? `(${this.raw()})` : this.raw()); return m("mrow");
      case "hspace": case "hspace*": case "mspace": case "kern": return m("mspace", { width: /^-?[\d.]+(em|ex|pt|px|mm|cm)$/.exec(this.raw())?.[0] ?? "1em" });
      case "pmod": return m("mrow", {}, fence("("), m("mi", {}, "mod"), m("mspace", { width: ".3em" }), this.group(), fence(")"));
      case "bmod": case "mod": return m("mo", {}, "mod");
      case "mathop": case "mathbin": case "mathrel": case "mathord": case "ensuremath": return this.group();
      case "not": return m("mo", {}, `${this.atom().textContent}\u0338`);
      case "\\": return m("mspace", { linebreak: "newline" });
      default:
        if (/^[{}%$#&_|]$/.test(name)) return m("mo", { stretchy: "false" }, name === "|" ? "‖" : name);
        return m("mtext", { class: "unknown" }, `\\${name}`);
    }
  }

  ignored(name) {
    if (name === "label") this.raw();
    return m("mrow");
  }

  /** Letters of another alphabet: everything in the group, whatever commands stand in it. */
  styled(style) {
    const body = this.group();
    for (const node of [body, ...body.querySelectorAll("mi, mn, mo")]) {
      if (node.children.length) continue;
      if (node.localName !== "mo") node.textContent = inAlphabet(node.textContent, style);
      if (node.localName === "mi" && style !== "italic") node.setAttribute("mathvariant", "normal");
    }
    if (style === "upright" && [...body.children].every((node) => node.localName === "mi")) return m("mi", { mathvariant: "normal" }, body.textContent);
    return body;
  }

  /** Words, and formulas between dollar signs in them. */
  text() {
    return this.raw().split("$").map((part, i) => {
      const inner = i % 2 ? new Parser(part) : null;
      return inner ? inner.row(() => inner.done) : m("mtext", {}, part.replaceAll(/\\([%&_#{}])/g, "$1").replaceAll(/^ | $/g, "\u00a0"));
    });
  }

  arrow(sign) {
    const pad = (body) => m("mrow", {}, m("mspace", { width: ".4em" }), body, m("mspace", { width: ".4em" }));
    const under = this.optional(), over = this.group(), base = m("mo", { stretchy: "true" }, sign);
    return under ? m("munderover", {}, base, pad(under), pad(over)) : m("mover", {}, base, pad(over));
  }

  root() {
    const index = this.optional();
    return index ? m("mroot", {}, this.group(), index) : m("msqrt", {}, this.group());
  }

  delimiter() {
    this.skipSpace();
    const token = this.next;
    if (token === undefined) throw new Broken("a delimiter is missing");
    this.at += 1;
    if (token === ".") return "";
    const name = token.slice(1);
    return token.startsWith("\\") ? OPERATORS[name] ?? (name === "|" ? "‖" : name) : token;
  }

  fenced() {
    const row = m("mrow", {}, fence(this.delimiter()));
    for (;;) {
      row.append(this.row(() => this.next === "\\right" || this.next === "\\middle"));
      if (this.takes("\\middle")) row.append(fence(this.delimiter()));
      else break;
    }
    this.expect("\\right");
    row.append(fence(this.delimiter()));
    return row;
  }

  substack() {
    this.expect("{");
    const table = this.lines("", () => this.next === "}");
    this.expect("}");
    return table;
  }

  environment() {
    const name = this.raw(), plain = name.replace(/\*$/, "");
    if (!Object.hasOwn(ENVIRONMENTS, plain)) return m("mtext", { class: "unknown" }, `\\begin{${name}}`);
    const columns = plain === "array" || plain === "subarray" ? this.raw().replaceAll(/[^lcr]/g, "") : /^(align|split|eqnarray)/.test(plain) ? "rl" : /cases/.test(plain) ? "l" : "";
    if (/at(ed)?$/.test(plain) && plain.startsWith("align")) this.raw();
    else if (plain !== "array" && plain !== "subarray" && /^\[[tbc]\]$/.test(this.tokens.slice(this.at, this.at + 3).join(""))) this.at += 3;
    const table = this.lines(columns, () => this.next === "\\end");
    this.expect("\\end");
    if (this.raw() !== name) throw new Broken("\\end of another environment");
    const [open, close] = ENVIRONMENTS[plain];
    return m("mrow", {}, fence((open ?? "").trim()), table, fence(close));
  }

  /** Rows of cells; `columns` says in turn on which side each column is flush. */
  lines(columns, ends) {
    const table = m("mtable", { class: columns === "rl" ? "pairs" : null });
    for (let line = m("mtr"), column = 0; ;) {
      const side = columns[columns === "rl" ? column % 2 : Math.min(column, columns.length - 1)] ?? "c";
      line.append(m("mtd", { class: side === "c" ? null : `side-${side}` }, this.row(() => this.next === "&" || this.next === "\\\\" || ends())));
      if (this.done) throw new Broken("an end is missing");
      if (this.takes("&")) { column += 1; continue; }
      table.append(line);
      if (ends()) break;
      this.at += 1;
      if (this.next === "[") while (!this.done && this.tokens[this.at++] !== "]"); // a distance
      [line, column] = [m("mtr"), 0];
      this.skipSpace();
      if (ends()) break; // nothing comes after the last break
    }
    return table;
  }
}

const fence = (sign) => (sign ? m("mo", { stretchy: "true", fence: "true", symmetric: "true" }, sign) : m("mrow"));

/** Attributes of style are refused by this page's own policy; this one is not. */
const colored = (color, body) => m("mstyle", color === "currentcolor" ? {} : { mathcolor: color }, body);
