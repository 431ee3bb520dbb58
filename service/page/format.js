// Formatting: numbers with their units, and visible forms of invisible characters.

const LN_2 = Math.LN2;
const NAMES = new Map([
  [" ", "space"],
  ["\n", "newline"],
  ["\t", "tab"],
  ["\r", "carriage return"],
  ["\u00a0", "no-break space"],
  ["\ue000", "padding"],
  ["\ue001", "beginning of text"],
  ["\ue002", "end of text"],
  ["\ue003", "a character outside the vocabulary"],
]);
const GLYPHS = new Map([
  ["\n", "⏎"],
  ["\t", "⇥"],
  ["\ue000", "▯"],
  ["\ue001", "⊢"],
  ["\ue002", "∎"],
  ["\ue003", "▯"],
]);

export function count(value) {
  return value.toLocaleString("en-US");
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

export function bits(value, digits = 2) {
  return `${value.toFixed(digits)} bits`;
}

export function bitsPerChar(value) {
  return `${value.toFixed(3)} bits/char`;
}

/** What was measured on held-out text: the model in a precision, while it adapts, a part or a baseline. */
export function measuredName({ name, kind }, model) {
  if (kind === "baseline") return name;
  if (kind === "part") return `${name} alone (part)`;
  return `${model} (${name})${kind === "adapting" ? " adapting" : ""}, held out`;
}

/** Probabilities from likely to tiny: 98 %, 12.3 %, 0.04 %, 3e-7 %. */
export function percent(share) {
  const value = 100 * share;
  if (value >= 99.95) return "100 %";
  if (value >= 0.01) return `${Number(value.toPrecision(3))} %`;
  return `${value.toExponential(0)} %`;
}

export function surprisal(logprob) {
  return Math.max(0, -logprob / LN_2);
}

/** With a true minus sign. */
export function fixed(value, digits) {
  return value.toFixed(digits).replace("-", "−");
}

export function signed(value, digits) {
  return `${value < 0 ? "" : "+"}${fixed(value, digits)}`;
}

/** A token as shown in running text. */
export function glyph(token) {
  if (GLYPHS.has(token)) return GLYPHS.get(token);
  const code = token.codePointAt(0);
  if (token.length === 1 && code < 32) return String.fromCodePoint(0x2400 + code);
  return token;
}

/** A token in words: “a”, space, end of text. */
export function tokenName(token) {
  if (NAMES.has(token)) return NAMES.get(token);
  const one = [...token].length === 1;
  const code = token.codePointAt(0);
  const shown = /^\p{M}/u.test(token) ? `◌${token}` : glyph(token);
  const hex = code.toString(16).toUpperCase().padStart(4, "0");
  return one && (code < 32 || code > 126) ? `“${shown}” U+${hex}` : `“${shown}”`;
}

/** A stretch of text on one line. */
export function oneLine(text) {
  return [...text].map(glyph).join("");
}
