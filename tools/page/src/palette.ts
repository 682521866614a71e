// Colours: read from the style sheet, so that a theme is one list of variables.

export interface Palette {
  background: string;
  surface: string;
  text: string;
  quiet: string;
  faint: string;
  line: string;
  accent: string;
  mark: string;
  limit: string;
  box: string;
  boxText: string;
  other: string;
  groups: string[];
  series: string[];
}

export const GROUPS = 7;

export function palette(): Palette {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const list = (name: string, count: number) => Array.from({ length: count }, (_, index) => of(`${name}-${index + 1}`));
  return {
    background: of("background"), surface: of("surface"), text: of("text"), quiet: of("quiet"), faint: of("faint"), line: of("line"),
    accent: of("accent"), mark: of("mark"), limit: of("up"), box: of("box"), boxText: of("box-text"), other: of("group-other"),
    groups: list("group", GROUPS), series: list("series", 5),
  };
}

const shades = new Map<string, string>();

/** A colour, a little lighter or darker: tells neighbours of one group apart. */
export function shade(colour: string, step: number): string {
  const key = `${colour}${step}`;
  const known = shades.get(key);
  if (known) return known;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) as [number, number, number];
  // A step is a little light, and a little of the neighbouring hue.
  const tint = [1 + step * 0.012, 1 + step * 0.034, 1 + step * 0.02];
  const mixed = [red, green, blue].map((part, index) => Math.max(0, Math.min(255, Math.round(part * tint[index]!))));
  const made = `rgb(${mixed.join(",")})`;
  shades.set(key, made);
  return made;
}

export function hash(text: string): number {
  let value = 0;
  for (let at = 0; at < text.length; at += 1) value = (Math.imul(value, 31) + text.charCodeAt(at)) >>> 0;
  return value;
}
