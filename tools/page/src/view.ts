// What the page shows: one value, kept in the hash of the address.

import type { Moment } from "./data.ts";

export type Tab = "graph" | "table" | "sizes";
export type Measure = "grown" | "shrunk" | "new" | "gone" | "allocated";
export type By = "line" | "function" | "file" | "module" | "thread";

export interface View {
  domain: number;
  /** A moment, an instant of the history, or the range between two instants. */
  moment: Moment | "instant" | "range";
  /** Milliseconds since 1970: the instant, or the end of the range. */
  at: number;
  /** Milliseconds since 1970: the begin of the range. */
  since: number;
  /** What counts in a range, and in a diff. */
  measure: Measure;
  unit: "bytes" | "blocks";
  thread: number;
  process: number;
  tab: Tab;
  /** Whether leaves are at the root. */
  inverted: boolean;
  /** Whether the root is at the bottom. */
  flame: boolean;
  /** Whether start-up, import and plumbing frames are shown. */
  plumbing: boolean;
  /** Whether lines of a function are boxes of their own. */
  lines: boolean;
  /** Whether each cycle of a recursion is one box. */
  fold: boolean;
  /** Whether names keep template arguments and parameters. */
  whole: boolean;
  /** Whether boxes show source lines. */
  source: boolean;
  search: string;
  /** Function of the sandwich; empty for none. */
  sandwich: string;
  only: string[];
  without: string[];
  /** Keys of the boxes from the root to the box that fills the width. */
  zoom: number[];
  by: By;
  filter: string;
  sort: string;
}

const FLAGS = ["inverted", "flame", "plumbing", "fold", "whole", "source"] as const;
const MOMENTS = ["live", "peak", "total", "instant", "range"];
const MEASURES = ["grown", "shrunk", "new", "gone", "allocated"];
const TABS = ["graph", "table", "sizes"];
const BYS = ["line", "function", "file", "module", "thread"];

/** Writes the parts of a view that differ from the first view. */
export function toHash(view: View, first: View): string {
  const parts = new URLSearchParams();
  const put = (name: string, value: unknown, standard: unknown) => {
    if (value !== standard) parts.append(name, String(value));
  };
  put("domain", view.domain, first.domain);
  put("at", view.moment, first.moment);
  if (view.moment === "instant" || view.moment === "range") {
    put("time", view.at, first.moment === view.moment ? first.at : undefined);
    if (view.moment === "range") put("since", view.since, first.moment === view.moment ? first.since : undefined);
  }
  put("measure", view.measure, first.measure);
  put("unit", view.unit, first.unit);
  put("thread", view.thread, first.thread);
  put("process", view.process, first.process);
  put("view", view.tab, first.tab);
  for (const flag of FLAGS) put(flag, view[flag] ? 1 : 0, first[flag] ? 1 : 0);
  put("lines", view.lines ? 1 : 0, first.lines ? 1 : 0);
  put("find", view.search, "");
  put("sandwich", view.sandwich, "");
  view.only.forEach((name) => parts.append("only", name));
  view.without.forEach((name) => parts.append("hide", name));
  put("zoom", view.zoom.map((key) => key.toString(36)).join("."), "");
  put("by", view.by, first.by);
  put("filter", view.filter, "");
  put("sort", view.sort, first.sort);
  const text = parts.toString();
  return text ? `#${text}` : "";
}

/** Reads a hash. Whatever is no view is left out: an address may come from anybody. */
export function fromHash(hash: string, first: View): View {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const view: View = { ...first, zoom: [], only: [], without: [] };
  const whole = (name: string): number | undefined => {
    const text = parts.get(name);
    return text !== null && /^-?\d{1,15}$/.test(text) ? Number(text) : undefined;
  };
  const word = <T>(name: string, known: string[], standard: T): T => {
    const text = parts.get(name);
    return text !== null && known.includes(text) ? (text as T) : standard;
  };
  view.domain = whole("domain") ?? first.domain;
  view.moment = word("at", MOMENTS, first.moment);
  view.at = whole("time") ?? first.at;
  view.since = whole("since") ?? first.since;
  view.measure = word("measure", MEASURES, first.measure);
  view.unit = word("unit", ["bytes", "blocks"], first.unit);
  view.thread = whole("thread") ?? first.thread;
  view.process = whole("process") ?? first.process;
  view.tab = word("view", TABS, first.tab);
  for (const flag of [...FLAGS, "lines"] as const) {
    const value = whole(flag);
    if (value !== undefined) view[flag] = value === 1;
  }
  view.search = (parts.get("find") ?? "").slice(0, 1000);
  view.sandwich = parts.get("sandwich") ?? "";
  view.only = parts.getAll("only").slice(0, 50);
  view.without = parts.getAll("hide").slice(0, 50);
  const zoom = parts.get("zoom");
  if (zoom) view.zoom = zoom.split(".").slice(0, 5000).map((key) => parseInt(key, 36)).filter((key) => key >= 0);
  view.by = word("by", BYS, first.by);
  view.filter = (parts.get("filter") ?? "").slice(0, 1000);
  view.sort = (parts.get("sort") ?? first.sort).slice(0, 40);
  return view;
}
