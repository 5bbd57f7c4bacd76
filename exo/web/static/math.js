// A subset of TeX as MathML, which browsers lay out themselves. What is not understood is shown as it was written.

import { mathml as m } from "./element.js";

const pairs = (text) => Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split("=")));

const LETTERS = pairs(`alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι
  kappa=κ lambda=λ mu=μ nu=ν xi=ξ pi=π rho=ρ sigma=σ tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ
  Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω ell=ℓ hbar=ℏ infty=∞ partial=∂ nabla=∇ emptyset=∅
  varnothing=∅ aleph=ℵ Re=ℜ Im=ℑ ldots=… dots=… cdots=⋯ vdots=⋮ ddots=⋱ prime=′ degree=° angle=∠ top=⊤ bot=⊥`);
const OPERATORS = pairs(`times=× cdot=⋅ div=÷ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=∙ oplus=⊕ otimes=⊗ leq=≤ le=≤ geq=≥ ge=≥
  neq=≠ ne=≠ approx=≈ equiv=≡ sim=∼ simeq=≃ cong=≅ propto=∝ ll=≪ gg=≫ in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ supset=⊃
  supseteq=⊇ cup=∪ cap=∩ setminus=∖ forall=∀ exists=∃ neg=¬ lnot=¬ land=∧ wedge=∧ lor=∨ vee=∨ to=→ rightarrow=→
  leftarrow=← gets=← Rightarrow=⇒ Leftarrow=⇐ iff=⇔ Leftrightarrow=⇔ leftrightarrow=↔ implies=⟹ mapsto=↦ uparrow=↑
  downarrow=↓ mid=∣ nmid=∤ parallel=∥ perp=⊥ vdash=⊢ models=⊨ therefore=∴ because=∵ colon=: lbrace={ rbrace=}
  langle=⟨ rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ vert=| Vert=‖ backslash=∖ prec=≺ succ=≻ asymp=≍ triangle=△`);
const LARGE = pairs(`sum=∑ prod=∏ coprod=∐ int=∫ iint=∬ iiint=∭ oint=∮ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigotimes=⨂
  bigvee=⋁ bigwedge=⋀`);
const FUNCTIONS = new Set(("arccos arcsin arctan arg cos cosh cot csc deg det dim exp gcd hom inf ker lg lim liminf limsup ln "
  + "log max min Pr sec sin sinh sup tan tanh argmax argmin").split(" "));
const LIMITS = new Set("lim liminf limsup max min sup inf det gcd Pr argmax argmin".split(" "));
const ACCENTS = pairs("hat=^ widehat=^ bar=¯ overline=¯ vec=→ tilde=~ widetilde=~ dot=˙ ddot=¨ overrightarrow=→");
const STYLES = { mathbf: "bold", boldsymbol: "bold", bm: "bold", mathbb: "double-struck", mathcal: "script", mathscr: "script",
  mathfrak: "fraktur", mathrm: "normal", mathit: "italic", mathsf: "sans-serif", mathtt: "monospace", operatorname: "normal" };
const SPACES = { ",": ".17em", ":": ".22em", ";": ".28em", "!": "-.17em", " ": ".25em", quad: "1em", qquad: "2em" };
const FENCES = { pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", matrix: "", cases: "{", aligned: "",
  align: "", "align*": "", gathered: "", equation: "", "equation*": "", split: "", array: "", smallmatrix: "" };
const MAX_DEPTH = 40, MAX_CHARS = 5_000;

class Unknown extends Error {}

/** A `<math>` element, or null where the source is beyond this subset. */
export function math(source, display) {
  if (source.length > MAX_CHARS) return null;
  try {
    const parser = new Parser(source);
    const row = parser.row(() => parser.done);
    return m("math", { display: display ? "block" : "inline" }, row);
  } catch (error) {
    if (error instanceof Unknown) return null;
    throw error;
  }
}

class Parser {
  constructor(source) {
    this.tokens = source.match(/\\(?:[A-Za-z]+\*?|[^])|[0-9]+(?:\.[0-9]+)?|\s+|[^]/g) ?? [];
    this.at = 0;
    this.depth = 0;
  }

  get done() { return this.at >= this.tokens.length; }

  get next() { return this.tokens[this.at]; }

  skipSpace() { while (!this.done && /^\s/.test(this.next)) this.at += 1; }

  expect(token) {
    this.skipSpace();
    if (this.next !== token) throw new Unknown(`${token} is missing`);
    this.at += 1;
  }

  row(ends) {
    if ((this.depth += 1) > MAX_DEPTH) throw new Unknown("too deep");
    const row = m("mrow");
    for (this.skipSpace(); !this.done && !ends(); this.skipSpace()) row.append(this.scripted());
    this.depth -= 1;
    return row;
  }

  group() {
    this.skipSpace();
    if (this.next !== "{") return this.atom();
    this.at += 1;
    const row = this.row(() => this.next === "}");
    this.expect("}");
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
    let large = false;
    const token = this.next;
    if (token?.startsWith("\\")) large = token.slice(1) in LARGE && !/int/.test(token) || LIMITS.has(token.slice(1));
    const base = token === "^" || token === "_" ? m("mrow") : this.atom();
    let sub = null, sup = null;
    for (this.skipSpace(); !this.done; this.skipSpace()) {
      if (this.next === "_" && !sub) { this.at += 1; sub = this.group(); }
      else if (this.next === "^" && !sup) { this.at += 1; sup = this.group(); }
      else if (this.next === "'" && !sup) {
        let primes = "";
        for (; this.next === "'"; this.at += 1) primes += "′";
        sup = m("mo", {}, primes);
      } else if (this.next === "\\limits" || this.next === "\\nolimits") { large = this.next === "\\limits"; this.at += 1; }
      else break;
    }
    if (sub && sup) return m(large ? "munderover" : "msubsup", {}, base, sub, sup);
    if (sub) return m(large ? "munder" : "msub", {}, base, sub);
    return sup ? m(large ? "mover" : "msup", {}, base, sup) : base;
  }

  atom() {
    this.skipSpace();
    if (this.done) throw new Unknown("an argument is missing");
    const token = this.next;
    if (token === "{") return this.group();
    if (token === "}" || token === "&") throw new Unknown(`${token} is out of place`);
    this.at += 1;
    if (token.startsWith("\\")) return this.command(token.slice(1));
    if (/^[0-9]/.test(token)) return m("mn", {}, token);
    if (/^\p{L}/u.test(token)) return m("mi", {}, token);
    if ("()[]|".includes(token)) return m("mo", { stretchy: "false" }, token);
    return m("mo", {}, token === "-" ? "−" : token === "*" ? "∗" : token);
  }

  command(name) {
    if (Object.hasOwn(LETTERS, name)) return m("mi", {}, LETTERS[name]);
    if (Object.hasOwn(OPERATORS, name)) return m("mo", {}, OPERATORS[name]);
    if (Object.hasOwn(LARGE, name)) return m("mo", { largeop: "true" }, LARGE[name]);
    if (FUNCTIONS.has(name)) return m("mi", { mathvariant: "normal" }, name);
    if (Object.hasOwn(SPACES, name)) return m("mspace", { width: SPACES[name] });
    if (Object.hasOwn(ACCENTS, name)) return m("mover", { accent: "true" }, this.group(), m("mo", {}, ACCENTS[name]));
    if (Object.hasOwn(STYLES, name)) return m("mi", { mathvariant: STYLES[name], class: `math-${STYLES[name]}` }, letters(this.raw(), STYLES[name]));
    switch (name) {
      case "frac": case "dfrac": case "tfrac": return m("mfrac", {}, this.group(), this.group());
      case "binom": return m("mrow", {}, m("mo", {}, "("), m("mfrac", { linethickness: "0" }, this.group(), this.group()), m("mo", {}, ")"));
      case "sqrt": return this.root();
      case "text": case "textbf": case "textit": case "textrm": case "mbox": return m("mtext", {}, this.raw());
      case "left": return this.fenced();
      case "begin": return this.environment();
      case "underline": return m("munder", {}, this.group(), m("mo", {}, "_"));
      case "overset": { const over = this.group(); return m("mover", {}, this.group(), over); }
      case "underset": { const under = this.group(); return m("munder", {}, this.group(), under); }
      case "underbrace": return m("munder", {}, this.group(), m("mo", {}, "⏟"));
      case "overbrace": return m("mover", {}, this.group(), m("mo", {}, "⏞"));
      case "boxed": return m("mrow", { class: "boxed" }, this.group());
      case "pmod": return m("mrow", {}, m("mo", {}, "("), m("mi", {}, "mod"), m("mspace", { width: ".3em" }), this.group(), m("mo", {}, ")"));
      case "bmod": case "mod": return m("mo", {}, "mod");
      case "not": return m("mo", {}, `${this.atom().textContent}\u0338`);
      case "big": case "Big": case "bigg": case "Bigg": case "bigl": case "bigr": case "displaystyle": case "textstyle":
      case "limits": case "nolimits": case "tag": return m("mrow");
      case "\\": return m("mspace", { linebreak: "newline" });
      default:
        if (/^[{}%$#&_|]$/.test(name)) return m("mo", {}, name === "|" ? "‖" : name);
        throw new Unknown(name);
    }
  }

  root() {
    this.skipSpace();
    if (this.next !== "[") return m("msqrt", {}, this.group());
    this.at += 1;
    const index = this.row(() => this.next === "]");
    this.expect("]");
    return m("mroot", {}, this.group(), index);
  }

  delimiter() {
    this.skipSpace();
    const token = this.next;
    if (token === undefined) throw new Unknown("a delimiter is missing");
    this.at += 1;
    if (token === ".") return "";
    const name = token.slice(1);
    return token.startsWith("\\") ? OPERATORS[name] ?? (name === "|" ? "‖" : name) : token;
  }

  fenced() {
    const open = this.delimiter();
    const body = this.row(() => this.next === "\\right");
    this.expect("\\right");
    return m("mrow", {}, open && m("mo", { stretchy: "true" }, open), body, this.close(this.delimiter()));
  }

  close(sign) { return sign ? m("mo", { stretchy: "true" }, sign) : null; }

  environment() {
    const name = this.raw();
    if (!Object.hasOwn(FENCES, name)) throw new Unknown(name);
    if (name === "array") this.raw();
    const ends = () => ["&", "\\\\", "\\end"].includes(this.next);
    const table = m("mtable", name === "cases" || name.startsWith("align") || name === "split" ? { class: "left" } : {});
    let line = m("mtr");
    for (;;) {
      line.append(m("mtd", {}, this.row(ends)));
      if (this.done) throw new Unknown("\\end is missing");
      const token = this.next;
      this.at += 1;
      if (token === "&") continue;
      table.append(line);
      line = m("mtr");
      if (token === "\\end") break;
    }
    if (this.raw() !== name) throw new Unknown("\\end of another environment");
    const [open, close] = FENCES[name];
    return m("mrow", {}, open ? m("mo", { stretchy: "true" }, open) : null, table, this.close(close));
  }
}

const BLACKBOARD = { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ", E: "𝔼", F: "𝔽", K: "𝕂" };

/** Browsers know no mathvariant but "normal": the double-struck letters have characters of their own. */
function letters(text, style) {
  return style === "double-struck" ? [...text].map((letter) => BLACKBOARD[letter] ?? letter).join("") : text;
}
