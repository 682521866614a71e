// Words and numbers as the page shows them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Bytes in a unit that leaves two to five digits, as in the text of report. */
export function size(bytes: number): string {
  let value = Math.abs(bytes);
  let unit = 0;
  while (unit < UNITS.length - 1 && value >= (unit === 0 ? 10240 : 10 * 1024)) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit > 0 && value < 100 ? value.toFixed(1) : value.toFixed(0);
  return `${bytes < 0 ? "−" : ""}${digits} ${UNITS[unit]}`;
}

const GROUPS = new Intl.NumberFormat("en", { useGrouping: true, maximumFractionDigits: 0 });

export function number(value: number): string {
  return GROUPS.format(value).replace("-", "−");
}

/** An amount with a sign. */
export function signed(text: string, value: number): string {
  return value > 0 ? `+${text}` : text;
}

export function counted(count: number, noun: string): string {
  return `${number(count)} ${noun}${Math.abs(count) === 1 ? "" : "s"}`;
}

export function share(part: number, whole: number): string {
  if (!whole) return "";
  const percent = (100 * part) / whole;
  if (Math.abs(percent) >= 99.95) return `${percent.toFixed(0)} %`;
  if (percent !== 0 && Math.abs(percent) < 0.05) return "< 0.1 %";
  return `${percent.toFixed(1)} %`.replace("-", "−");
}

/** Words for a time span in milliseconds. */
export function span(millis: number): string {
  if (millis < 1000) return `${Math.round(millis)} ms`;
  const seconds = millis / 1000;
  if (seconds < 100) return `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const minutes = seconds / 60;
  if (minutes < 100) return `${minutes.toFixed(0)} min`;
  const hours = minutes / 60;
  return hours < 48 ? `${hours.toFixed(1)} h` : `${(hours / 24).toFixed(1)} d`;
}

/** Time of day where the program ran. */
export function clock(millis: number, utcOffset: number, withDate = false): string {
  const text = new Date(millis + utcOffset * 1000).toISOString();
  return withDate ? `${text.slice(0, 10)} ${text.slice(11, 19)}` : text.slice(11, 19);
}

/**
 * Folds template arguments and parameters: `std::map<int, long>::at(int const&)` is `std::map<>::at`.
 * Names that begin with `<` (Rust's impls, Python's `<listcomp>`) keep the first pair.
 */
export function folded(name: string): string {
  if (name.length > 4096) name = `${name.slice(0, 4096)}…`;
  // `operator<`, `operator->`, `operator()` have the signs in their names.
  const isOperator = (at: number) => /operator\s*$/.test(name.slice(Math.max(0, at - 12), at));
  let out = "";
  let depth = 0;
  let hadParameters = false;
  for (let at = 0; at < name.length; at += 1) {
    const sign = name[at]!;
    if (depth === 0 && isOperator(at) && "<>-(=".includes(sign)) {
      const operator = /^(\(\)|<=>|<<=?|>>=?|<=?|>=?|->\*?|-[-=]?|==?)/.exec(name.slice(at))?.[0] ?? sign;
      out += operator;
      at += operator.length - 1;
    } else if (sign === "<" && !(depth === 0 && out === "")) {
      if (depth === 0) out += "<";
      depth += 1;
    } else if (sign === "<" && /^<(?:lambda|listcomp|dictcomp|genexpr|setcomp|module|locals|string|unknown|frozen)/.test(name)) {
      return name;
    } else if (sign === "<") {
      out += sign;
      // The first pair of Rust's `<T as Trait>::f` stays, with its own arguments folded.
      const end = closing(name, at);
      out += folded(name.slice(at + 1, end)) + (end < name.length ? ">" : "");
      at = end;
    } else if (sign === ">" && depth > 0 && name[at - 1] !== "-") {
      depth -= 1;
      if (depth === 0) out += ">";
    } else if (depth === 0 && sign === "(") {
      const end = closingRound(name, at);
      const inside = name.slice(at, end + 1);
      if (/^\((anonymous|inlined)/.test(inside)) out += inside;
      else hadParameters = true;
      at = end;
    } else if (depth === 0) {
      out += sign;
    }
  }
  out = out.replace(/ const$/, "").trim();
  // Functions with parameters may have the type of their result in front.
  const result = /^(?:[^()]*\s)?(?<!operator )(?=(?:[^\s()]|\((?:anonymous|inlined)[^)]*\))+$)/.exec(out);
  if (hadParameters && result && !out.startsWith("<")) out = out.slice(result[0].length);
  return out || name;
}

function closing(name: string, open: number): number {
  let depth = 0;
  for (let at = open; at < name.length; at += 1) {
    if (name[at] === "<") depth += 1;
    else if (name[at] === ">" && name[at - 1] !== "-" && (depth -= 1) === 0) return at;
  }
  return name.length;
}

function closingRound(name: string, open: number): number {
  let depth = 0;
  for (let at = open; at < name.length; at += 1) {
    if (name[at] === "(") depth += 1;
    else if (name[at] === ")" && (depth -= 1) === 0) return at;
  }
  return name.length;
}

/** Shorter and shorter forms of a folded name: without the outer scopes, which tell the least. */
export function shorter(name: string): string[] {
  const parts: string[] = [];
  let depth = 0, begin = 0;
  for (let at = 0; at < name.length; at += 1) {
    const sign = name[at]!;
    if (sign === "<" || sign === "(") depth += 1;
    else if ((sign === ">" && name[at - 1] !== "-") || sign === ")") depth = Math.max(0, depth - 1);
    else if (depth === 0 && sign === ":" && name[at + 1] === ":") {
      parts.push(name.slice(begin, at));
      begin = at + 2;
      at += 1;
    }
  }
  parts.push(name.slice(begin));
  const forms = [name];
  for (let from = 1; from < parts.length; from += 1) forms.push(parts.slice(from).join("::"));
  return forms;
}

/** Shorter and shorter forms of a Python name. `<module>` and `<lambda>` tell nothing without their file. */
export function pythonForms(name: string, file: string): string[] {
  const short = name.replaceAll(".<locals>", "");
  if (name.startsWith("<")) return [`${file} ${name}`, file];
  const parts = short.split(".");
  return parts.map((_, from) => parts.slice(from).join("."));
}

/** Last part of a path. */
export function base(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1) || path;
}

/** Last parts of a path that fit into some characters, behind an ellipsis. */
export function tail(text: string, most: number): string {
  return text.length <= most ? text : `…${text.slice(text.length - most + 1)}`;
}

/** Package or library of a frame, for the colours: libraries, packages of Python, files of the program. */
export function owner(module: string, file: string, python: boolean): string {
  if (!python) return base(module || file) || "generated code";
  const packages = /\/(?:site|dist)-packages\/([^/]+)/.exec(file);
  if (packages) return packages[1]!.replace(/\.py$/, "");
  if (file.startsWith("<frozen") || /\/lib(?:64)?\/python[23][^/]*\//.test(file)) return "Python's library";
  return base(file);
}
