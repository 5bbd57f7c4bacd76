// The only place where elements are made: text is always text, never markup.

/** An element with attributes (`class`, `aria-…`, `on…` as listeners) and children (nodes or strings). */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
export const mathml = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(MATHML, name), attributes, children);

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** Bytes as people read them, in the form of exo/sizes.py: 98 MB, 1.5 GB. */
export function bytes(count) {
  let unit = 0;
  while (Math.round(count) >= 1024 && unit < UNITS.length - 1) [count, unit] = [count / 1024, unit + 1];
  return `${count.toFixed(unit > 2 && count < 99.95 ? 1 : 0)} ${UNITS[unit]}`;
}

/** Seconds as people read them: 3 min 20 s. */
export const duration = (s) => (s < 60 ? `${Math.ceil(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`);

/** Memory given in MB. */
export const gigabytes = (mb) => bytes(mb * 2 ** 20);

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** What people call a node: its name where it has one, else its id. */
export const called = (id, node) => node?.name || id;
