// Colours for code: one pass of one regular expression, into text nodes and spans. Good enough for reading, not a parser.

const words = (text) => new Set(text.split(" "));

const C_LIKE = "auto bool break case catch char class const constexpr continue default delete do double else enum explicit "
  + "extends extern final float for friend func go if implements import in inline int interface let long match mod mut "
  + "namespace new nil null nullptr operator override package private protected pub public return self short signed "
  + "sizeof static struct super switch template this throw trait true false try type typedef typename union unsigned use "
  + "using val var virtual void volatile where while yield async await export from of function instanceof typeof impl fn "
  + "crate defer chan map range select string error byte undefined None Some Ok Err guard init loop move ref unsafe";
const PYTHON = "False None True and as assert async await break class continue def del elif else except finally for from "
  + "global if import in is lambda match nonlocal not or pass raise return self try while with yield";
const SHELL = "if then else elif fi for while do done case esac function in return export local source set unset echo cd "
  + "exit sudo true false";
const SQL = "select from where and or not insert into values update set delete create table drop alter index join left "
  + "right inner outer on group by order having limit offset as distinct union all null is primary key foreign references "
  + "in like between case when then else end with";

const HASH = "#[^\\n]*", SLASHES = "\\/\\/[^\\n]*|\\/\\*[^]*?(?:\\*\\/|$)", DASHES = "--[^\\n]*";
const QUOTED = "\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?";
const TRIPLE = "\"\"\"[^]*?(?:\"\"\"|$)|'''[^]*?(?:'''|$)|", TICKS = "`(?:\\\\.|[^`\\\\])*`?|";

const language = (comment, string, keywords, flags = "g") => ({
  pattern: new RegExp(`(${comment})|(${string})|(\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b)`
    + "|([A-Za-z_$][\\w$]*)(\\s*\\()?", flags),
  keywords: words(keywords),
  fold: flags.includes("i"),
});

const NEVER = "(?!)";
const LANGUAGES = {
  c: language(SLASHES, TICKS + QUOTED, C_LIKE),
  python: language(HASH, TRIPLE + QUOTED, PYTHON),
  shell: language(HASH, QUOTED, SHELL),
  sql: language(DASHES, QUOTED, SQL, "gi"),
  json: language(NEVER, "\"(?:\\\\.|[^\"\\\\\\n])*\"?", "true false null"),
  config: language(HASH, QUOTED, "true false null yes no on off"),
  markup: language("<!--[^]*?(?:-->|$)", QUOTED, ""),
};
const ALIASES = {
  py: "python", python3: "python", sh: "shell", bash: "shell", zsh: "shell", console: "shell", yaml: "config", yml: "config",
  toml: "config", ini: "config", dockerfile: "config", makefile: "config", ruby: "python", r: "python", html: "markup",
  xml: "markup", svg: "markup", jsonl: "json", text: "", txt: "", plain: "", markdown: "", md: "", diff: "", "": "",
};
const MAX_CHARS = 50_000;

/** A fragment that shows `source`, coloured where the language is known or looks like C. */
export function highlighted(source, name) {
  const fragment = document.createDocumentFragment();
  const key = name.toLowerCase();
  const rules = LANGUAGES[Object.hasOwn(ALIASES, key) ? ALIASES[key] : Object.hasOwn(LANGUAGES, key) ? key : "c"];
  if (!rules || source.length > MAX_CHARS) {
    fragment.append(source);
    return fragment;
  }
  let end = 0;
  const put = (text, kind) => {
    if (!kind) return fragment.append(text);
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    return fragment.append(span);
  };
  for (const match of source.matchAll(rules.pattern)) {
    const [all, comment, string, number, word, call] = match;
    if (match.index > end) put(source.slice(end, match.index));
    const known = word && rules.keywords.has(rules.fold ? word.toLowerCase() : word);
    if (comment) put(comment, "tok-comment");
    else if (string) put(string, "tok-string");
    else if (number) put(number, "tok-number");
    else if (word) {
      put(word, known ? "tok-keyword" : call ? "tok-call" : "");
      if (call) put(call);
    }
    end = match.index + all.length;
  }
  if (end < source.length) put(source.slice(end));
  return fragment;
}
