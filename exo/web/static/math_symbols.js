// The commands of TeX that stand for a sign, and the alphabets of mathematics.

const pairs = (text) => Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split("=")));

export const LETTERS = pairs(`alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι
  kappa=κ lambda=λ mu=μ nu=ν xi=ξ pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ
  omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω ell=ℓ hbar=ℏ hslash=ℏ infty=∞
  partial=∂ nabla=∇ emptyset=∅ varnothing=∅ aleph=ℵ beth=ℶ Re=ℜ Im=ℑ wp=℘ imath=ı jmath=ȷ ldots=… dots=… dotsc=… cdots=⋯ dotsb=⋯
  vdots=⋮ ddots=⋱ prime=′ degree=° angle=∠ top=⊤ bot=⊥ square=□ blacksquare=■ Box=□ checkmark=✓ complement=∁ mho=℧ S=§ pounds=£`);
export const OPERATORS = pairs(`times=× cdot=⋅ div=÷ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=∙ oplus=⊕ ominus=⊖ otimes=⊗ odot=⊙ leq=≤
  le=≤ leqslant=⩽ geq=≥ ge=≥ geqslant=⩾ neq=≠ ne=≠ approx=≈ equiv=≡ sim=∼ simeq=≃ cong=≅ propto=∝ ll=≪ gg=≫ lesssim=≲ gtrsim=≳
  in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ subsetneq=⊊ supset=⊃ supseteq=⊇ cup=∪ cap=∩ sqcup=⊔ sqcap=⊓ uplus=⊎ setminus=∖ forall=∀
  exists=∃ nexists=∄ neg=¬ lnot=¬ land=∧ wedge=∧ lor=∨ vee=∨ to=→ rightarrow=→ leftarrow=← gets=← Rightarrow=⇒ Leftarrow=⇐ iff=⟺
  Leftrightarrow=⇔ leftrightarrow=↔ implies=⟹ impliedby=⟸ longrightarrow=⟶ longleftarrow=⟵ Longrightarrow=⟹ Longleftrightarrow=⟺
  longmapsto=⟼ mapsto=↦ hookrightarrow=↪ rightharpoonup=⇀ rightleftharpoons=⇌ leftrightarrows=⇆ uparrow=↑ downarrow=↓ updownarrow=↕
  Uparrow=⇑ Downarrow=⇓ nearrow=↗ searrow=↘ mid=∣ nmid=∤ parallel=∥ perp=⊥ vdash=⊢ dashv=⊣ models=⊨ vDash=⊨ therefore=∴ because=∵
  colon=: coloneqq=≔ triangleq=≜ doteq=≐ lbrace={ rbrace=} lbrack=[ rbrack=] langle=⟨ rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉
  vert=| lvert=| rvert=| Vert=‖ lVert=‖ rVert=‖ backslash=∖ prec=≺ succ=≻ preceq=⪯ succeq=⪰ asymp=≍ triangle=△ diamond=⋄
  dagger=† ddagger=‡ bowtie=⋈ lt=< gt=>`);
export const LARGE = pairs(`sum=∑ prod=∏ coprod=∐ int=∫ iint=∬ iiint=∭ oint=∮ bigcup=⋃ bigcap=⋂ bigsqcup=⨆ bigoplus=⨁ bigotimes=⨂
  bigodot=⨀ bigvee=⋁ bigwedge=⋀`);
export const FUNCTIONS = new Set(("arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf ker lcm lg lim liminf "
  + "limsup ln log max min Pr sec sin sinh sup tan tanh argmax argmin").split(" "));
export const LIMITS = new Set("lim liminf limsup max min sup inf det gcd Pr argmax argmin".split(" "));
export const ACCENTS = pairs("hat=^ widehat=̂ bar=¯ vec=→ tilde=~ widetilde=̃ dot=˙ ddot=¨ dddot=⃛ check=ˇ breve=˘ mathring=˚ overrightarrow=→ overleftarrow=← overleftrightarrow=↔");
export const STRETCHED = new Set("widehat widetilde overrightarrow overleftarrow overleftrightarrow".split(" "));
export const ARROWS = pairs("xrightarrow=→ xleftarrow=← xRightarrow=⇒ xLeftarrow=⇐ xleftrightarrow=↔ xLeftrightarrow=⇔ xmapsto=↦ xhookrightarrow=↪ xrightleftharpoons=⇌ xlongequal==");
export const SPACES = { ",": ".17em", ":": ".22em", ">": ".22em", ";": ".28em", "!": "-.17em", " ": ".25em", "~": ".25em", quad: "1em", qquad: "2em", enspace: ".5em", thinspace: ".17em" };
export const SIZES = { big: 1.2, Big: 1.8, bigg: 2.4, Bigg: 3 };
/** Of environments: the fences, and how columns are set: r and l by turns, l, or in the middle. */
export const ENVIRONMENTS = { pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", matrix: "", smallmatrix: "", cases: "{", dcases: "{", rcases: " }",
  aligned: "", align: "", alignedat: "", alignat: "", split: "", gathered: "", gather: "", multline: "", equation: "", array: "", subarray: "", eqnarray: "" };

const STYLES = { mathbf: "bold", boldsymbol: "bold", bm: "bold", mathbb: "double", Bbb: "double", mathcal: "script", mathscr: "script", mathfrak: "fraktur",
  mathsf: "sans", mathtt: "mono", mathrm: "upright", mathit: "italic", mathnormal: "italic", operatorname: "upright", "operatorname*": "upright", textnormal: "upright", bf: "bold", rm: "upright" };
export const styleOf = (name) => (Object.hasOwn(STYLES, name) ? STYLES[name] : null);

// where each alphabet has its A, a and 0 among the mathematical alphanumerics, and the letters that stand elsewhere
const ALPHABETS = { bold: [0x1d400, 0x1d41a, 0x1d7ce], double: [0x1d538, 0x1d552, 0x1d7d8], script: [0x1d49c, 0x1d4b6], fraktur: [0x1d504, 0x1d51e], sans: [0x1d5a0, 0x1d5ba, 0x1d7e2], mono: [0x1d670, 0x1d68a, 0x1d7f6] };
const ELSEWHERE = { double: pairs("C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ"), script: pairs("B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ e=ℯ g=ℊ o=ℴ"), fraktur: pairs("C=ℭ H=ℌ I=ℑ R=ℜ Z=ℨ") };
const GREEK = { bold: [0x1d6a8, 0x1d6c2] };

/** Browsers know no `mathvariant` but "normal": letters of other alphabets are characters of their own. */
export function inAlphabet(text, style) {
  const [upper, lower, digit] = ALPHABETS[style] ?? [], [upperGreek, lowerGreek] = GREEK[style] ?? [];
  return [...text].map((letter) => {
    const code = letter.codePointAt(0), at = (base, first) => (base ? String.fromCodePoint(base + code - first.codePointAt(0)) : letter);
    if (ELSEWHERE[style]?.[letter]) return ELSEWHERE[style][letter];
    if (/[A-Z]/.test(letter)) return at(upper, "A");
    if (/[a-z]/.test(letter)) return at(lower, "a");
    if (/[0-9]/.test(letter)) return at(digit, "0");
    if (/[Α-Ω]/.test(letter)) return at(upperGreek, "Α");
    return /[α-ω]/.test(letter) ? at(lowerGreek, "α") : letter;
  }).join("");
}
