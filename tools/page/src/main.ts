// The page: reads the data, and shows the view that the hash of the address names.

import { amounts, type Amounts, interval, isCompared, restrict, sum } from "./amounts.ts";
import { unpack } from "./columns.ts";
import { Data, type Head } from "./data.ts";
import { Choice, el, select, toggle } from "./dom.ts";
import { Flame } from "./flame.ts";
import { Grid } from "./grid.ts";
import { blamedOf, type Group, groups, groupsOf, owners } from "./groups.ts";
import { GROUPS } from "./palette.ts";
import { histogram } from "./sizes.ts";
import { base, counted, folded, number, share, size, tail } from "./text.ts";
import { Timeline } from "./timeline.ts";
import { fromLeaves, fromRoot, hiddenOf, Layout, sandwich } from "./tree.ts";
import { type By, fromHash, type Measure, type Tab, toHash, type View } from "./view.ts";

const POINTS = 48;
/** Most domains with a button each. */
const MOST_BUTTONS = 5;

/** Keeps the last result while the key stays. */
function remembered<T>(): (key: string, make: () => T) => T {
  let last: { key: string; value: T } | undefined;
  return (key, make) => {
    if (last?.key !== key) last = { key, value: make() };
    return last.value;
  };
}

class Page {
  private view: View;
  private readonly first: View;
  private readonly flame: Flame;
  private readonly grid: Grid;
  private readonly timeline: Timeline | undefined;
  private readonly ofView = remembered<Amounts>();
  private readonly ofGraph = remembered<{ main: Layout; other: Layout | undefined }>();
  private readonly ofTable = remembered<Group[]>();
  private readonly ofSeries = remembered<((group: Group) => Float64Array) | undefined>();
  private readonly colours: Map<string, number>;
  private readonly domainsWithRows: Set<number>;
  private readonly ownerOf: (frame: number) => string;

  // Parts of the page.
  private readonly domain = new Choice<number>("Memory", (domain) => this.go({ domain, zoom: [] }));
  /** In the place of the choice, of a program with many pools of its own. */
  private readonly pools = select<number>("Memory", (domain) => this.go({ domain, zoom: [] }));
  private readonly moment = new Choice<View["moment"]>("Moment", (moment) => this.go({ moment }));
  private readonly measure = new Choice<Measure>("Change", (measure) => this.go({ measure }));
  private readonly unit = new Choice<View["unit"]>("Unit", (unit) => this.go({ unit }));
  private readonly direction = new Choice<number>("Direction", (value) => this.go({ inverted: value === 1, zoom: [] }));
  private readonly by = new Choice<By>("Rows", (by) => this.go({ by }));
  private readonly thread = select<number>("Thread", (thread) => this.go({ thread }));
  private readonly process = select<number>("Process", (process) => this.go({ process, thread: -1 }));
  private readonly clear = el("button", { type: "button", class: "chip" });
  private readonly total = el("output", { class: "total" });
  private readonly tabs = el("div", { role: "tablist", "aria-label": "View", class: "tabs" });
  private readonly chips = el("div", { class: "chips" });
  private readonly legend = el("div", { class: "legend modules" });
  private readonly search = el("input", { type: "search", placeholder: "Find a function or file  /", "aria-label": "Find a function or file", spellcheck: "false" });
  private readonly found = el("span", { class: "quiet found", role: "status" });
  private readonly filter = el("input", { type: "search", placeholder: "Filter rows  /", "aria-label": "Filter rows", spellcheck: "false" });
  private readonly empty = el("p", { class: "empty" });
  private readonly options: { name: "flame" | "plumbing" | "lines" | "fold" | "whole" | "source"; show(on: boolean): void; inverse: boolean }[] = [];
  private readonly panels: Record<Tab, HTMLElement>;
  private readonly help: HTMLDialogElement;

  constructor(private readonly data: Data) {
    const { head } = data;
    this.first = {
      domain: head.domain, moment: head.at, at: head.instant ?? 0, since: head.since ?? 0, measure: "grown", unit: "bytes", thread: -1, process: -1,
      tab: "graph", inverted: false, flame: false, plumbing: false, lines: true, fold: head.fold, whole: false, source: false, search: "", sandwich: "", only: [],
      without: [], zoom: [], by: "line", filter: "", sort: "size",
    };
    if (head.since !== null) this.first.moment = "range";
    else if (head.instant !== null) this.first.moment = "instant";
    if (head.domains[head.domain]?.name === "python") this.first.source = data.frames.sources.length > 0;
    this.view = this.checked(fromHash(location.hash, this.first));
    this.ownerOf = owners(data);
    this.domainsWithRows = new Set(data.rows.domain);
    this.colours = this.rankedGroups();
    this.flame = new Flame(data, this.ownerOf, {
      zoomed: (zoom) => this.go({ zoom }),
      sandwich: (name) => this.go({ sandwich: name, zoom: [], tab: "graph" }),
      only: (name) => this.go({ only: [...this.view.only.filter((one) => one !== name), name], zoom: [] }),
      hide: (name) => this.go({ without: [...this.view.without.filter((one) => one !== name), name], zoom: [] }),
    });
    this.grid = new Grid((group) => this.open(group), (sort) => this.go({ sort }, true));
    const hasHistory = data.histories.some((history) => !head.processes[history.process]!.old);
    if (hasHistory) {
      this.timeline = new Timeline(data, data.isDiff ? undefined : (since, at) => {
        if (at === undefined) this.go({ moment: head.at });
        else if (since === undefined) this.go({ moment: "instant", at });
        else this.go({ moment: "range", since, at });
      });
    }
    this.help = this.makeHelp();
    const option = (name: "flame" | "plumbing" | "lines" | "fold" | "whole" | "source", text: string, title: string, inverse = false) => {
      const made = toggle(text, title, (on) => this.go({ [name]: inverse ? !on : on, ...(name === "flame" || name === "whole" || name === "source" ? {} : { zoom: [] }) }));
      this.options.push({ name, show: made.show, inverse });
      return made.element;
    };
    const button = (text: string, title: string, pressed: () => void) => {
      // Words are a name; signs are none.
      const made = el("button", { type: "button", title, "aria-label": text.length === 1 ? title : undefined }, text);
      made.addEventListener("click", pressed);
      return made;
    };
    this.search.addEventListener("input", () => this.go({ search: this.search.value }, true));
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.flame.next(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape" && this.search.value) {
        this.search.value = "";
        this.go({ search: "" }, true);
      }
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.filter.addEventListener("input", () => this.go({ filter: this.filter.value }, true));
    this.clear.addEventListener("click", () => this.go({ moment: this.data.head.at }));
    const graphBar = el("div", { class: "bar-row" },
      this.direction.element,
      el("div", { class: "find" }, this.search, button("‹", "Match before (N)", () => this.flame.next(-1)), button("›", "Next match (n)", () => this.flame.next(1)), this.found),
      el("div", { class: "switches" },
        option("plumbing", "Hide plumbing", "Frames that start the program, import modules, or belong to allocators and standard libraries", true),
        option("lines", "Lines", "A box for each line of a function"),
        option("fold", "Fold recursion", "Each cycle of a recursion once"),
        option("whole", "Whole names", "Names with template arguments and parameters"),
        ...(data.frames.sources.length ? [option("source", "Source", "Source lines in the boxes")] : []),
        option("flame", "Root below", "A flame graph: the root at the bottom")));
    const copied = el("span", { class: "quiet", role: "status" });
    const tableBar = el("div", { class: "bar-row" }, this.by.element, el("div", { class: "find" }, this.filter, this.grid.count),
      button("Copy as text", "Copy the rows, with tabs between columns", () => {
        void this.grid.copy().then((done) => (copied.textContent = done ? "Copied" : "The browser allows no copying"));
      }), copied);
    const panel = (name: Tab, ...children: HTMLElement[]) => el("section", { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}` }, ...children);
    this.panels = {
      graph: panel("graph", graphBar, this.legend, this.empty, this.flame.element, this.flame.details),
      table: panel("table", tableBar, this.grid.element),
      sizes: panel("sizes"),
    };
    this.makeTabs();
    const theme = button("◐", "Dark or light", () => this.turnTheme());
    const helpButton = button("?", "Keys and words (?)", () => this.help.showModal());
    const concerns = head.concerns.length === 1 ? [el("p", { class: "concerns" }, head.concerns[0]!)] : head.concerns.length
      ? [el("details", { class: "concerns", open: head.concerns.length <= 2 }, el("summary", {}, this.concernSummary()), ...head.concerns.map((text) => el("p", {}, text)))]
      : [];
    const [what, who, ...more] = head.lines as [string, string, ...string[]];
    document.body.append(
      el("header", {},
        el("div", { class: "titles" }, el("h1", { title: who }, who), el("p", {}, what), ...more.map((line) => el("p", {}, line))),
        el("div", { class: "tools" }, theme, helpButton)),
      el("main", {},
        ...concerns,
        ...(this.timeline ? [this.timeline.element] : []),
        el("div", { class: "bar-row controls" },
          this.domain.element, this.pools.element, this.moment.element, this.measure.element, this.clear, this.unit.element,
          ...(head.processes.filter((one) => !one.old).length > 1 ? [this.process.element] : []), this.thread.element),
        el("div", { class: "tab-row" }, this.tabs, this.chips, this.total),
        ...Object.values(this.panels)),
      this.help);
    document.addEventListener("keydown", (event) => this.key(event));
    const fromAddress = () => {
      this.view = this.checked(fromHash(location.hash, this.first));
      this.show();
    };
    addEventListener("popstate", fromAddress);
    addEventListener("hashchange", fromAddress);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
    for (const kind of ["beforeprint", "afterprint"]) {
      addEventListener(kind, () => {
        document.documentElement.classList.toggle("printing", kind === "beforeprint");
        this.recolour();
        this.grid.draw();
      });
    }
    this.show();
  }

  // The view

  /** Changes the view. Steps back lead to each view, but not to each letter of a search. */
  private go(change: Partial<View>, replaces = false): void {
    const before = toHash(this.view, this.first);
    const isOfGraph = this.view.tab === "graph" && Object.keys(change).every((name) => name === "zoom" || name === "search");
    this.view = this.checked({ ...this.view, ...change });
    const hash = toHash(this.view, this.first);
    if (hash !== before) {
      const address = hash || location.pathname + location.search;
      if (replaces) history.replaceState(null, "", address);
      else history.pushState(null, "", address);
    }
    // A zoom leaves everything else as it is.
    if (isOfGraph) this.showGraph();
    else this.show();
  }

  /** Makes a view fit to the data. */
  private checked(view: View): View {
    const { head, histories } = this.data;
    const checked = { ...view };
    if (!head.domains[checked.domain]) checked.domain = head.domain;
    if (!head.processes[checked.process] || head.processes[checked.process]!.old) checked.process = -1;
    const hasHistory = histories.length > 0 && !this.data.isDiff;
    if ((checked.moment === "instant" || checked.moment === "range") && !hasHistory) checked.moment = head.at;
    if (checked.moment !== "live" || !head.threads[checked.thread]) checked.thread = -1;
    if (checked.measure === "allocated" && checked.moment !== "range") checked.measure = "grown";
    if (checked.by === "thread" && (checked.moment === "instant" || checked.moment === "range" || this.data.isDiff)) checked.by = "line";
    return checked;
  }

  private get noun(): string {
    return this.data.head.domains[this.view.domain]!.noun;
  }

  private get amounts(): Amounts {
    const { view } = this;
    const key = JSON.stringify([view.domain, view.moment, view.moment === "instant" || view.moment === "range" ? [view.at, view.since] : 0,
      view.measure, view.thread, view.process, view.only, view.without]);
    return this.ofView(key, () => restrict(this.data, amounts(this.data, view), view.only, view.without));
  }

  private viewKey(): string {
    const { zoom: _zoom, search: _search, tab: _tab, by: _by, filter: _filter, sort: _sort, whole: _whole, source: _source, flame: _flame, ...rest } = this.view;
    return JSON.stringify(rest);
  }

  private show(): void {
    const { view, data } = this;
    const { head } = data;
    const isCompare = isCompared(data, view);
    const hasRows = (domain: number) => this.domainsWithRows.has(domain);
    const domains = head.domains.map((domain, value) => ({ value, text: domain.name, title: TITLES[domain.name] }))
      .filter((option) => hasRows(option.value) || option.value === view.domain);
    this.domain.element.hidden = domains.length > MOST_BUTTONS;
    this.pools.element.hidden = domains.length <= MOST_BUTTONS;
    if (domains.length > MOST_BUTTONS) this.pools.show(domains, view.domain);
    else this.domain.show(domains, view.domain);
    const isPast = view.moment === "instant" || view.moment === "range";
    this.moment.show([
      { value: "live", text: "Live", title: "Blocks that live at the snapshot" },
      { value: "peak", text: "Peak", title: "Blocks that lived at the peak" },
      { value: "total", text: "Total", title: "All blocks since the start" },
    ], view.moment);
    this.measure.element.hidden = !isCompare;
    const measures: { value: Measure; text: string; title: string }[] = [
      { value: "grown", text: "Grown", title: "What there is more of, with what is new" },
      { value: "shrunk", text: "Shrunk", title: "What there is less of, with what is gone" },
      { value: "new", text: "New", title: "Tracebacks without blocks before" },
      { value: "gone", text: "Gone", title: "Tracebacks without blocks now" },
    ];
    if (view.moment === "range") measures.push({ value: "allocated", text: "Allocated", title: "All that was allocated in the range, freed since or not" });
    this.measure.show(measures, view.measure);
    this.clear.hidden = !isPast;
    this.timeline?.show({ moment: view.moment, at: view.at, since: view.since, domain: view.domain });
    this.clear.replaceChildren(this.timeline?.words() ?? "", el("span", { "aria-hidden": "true" }, " ×"));
    this.clear.title = "Back to the snapshot";
    this.unit.show([{ value: "bytes", text: "Bytes" }, { value: "blocks", text: this.noun === "range" ? "Ranges" : "Blocks" }], view.unit);
    this.showThreads();
    this.showTotal();
    for (const tab of this.tabs.children) {
      const isOn = tab.id === `tab-${view.tab}`;
      tab.setAttribute("aria-selected", String(isOn));
      (tab as HTMLElement).tabIndex = isOn ? 0 : -1;
    }
    for (const [name, panel] of Object.entries(this.panels)) panel.hidden = name !== view.tab;
    this.showChips();
    if (view.tab === "graph") this.showGraph();
    else if (view.tab === "table") this.showTable();
    else this.panels.sizes.replaceChildren(histogram(data, view));
  }

  private showThreads(): void {
    const { head } = this.data;
    const { view } = this;
    const seen = new Set<string>();
    const threads = head.threads.map((thread, value) => ({ value, text: thread.name, process: thread.process })).filter((thread) => {
      if (head.processes[thread.process]!.old || (view.process >= 0 && thread.process !== view.process)) return false;
      const key = `${thread.process} ${thread.text}`;
      return !seen.has(key) && seen.add(key);
    });
    this.thread.show([{ value: -1, text: "All threads" }, ...threads], view.thread);
    this.thread.element.hidden = threads.length < 2;
    this.thread.element.disabled = view.moment !== "live";
    this.thread.element.title = view.moment === "live" ? "Thread that allocated the blocks" : "Threads of single blocks are known of the live blocks only; the table has sums by thread";
    const processes = head.processes.map((process, value) => ({ value, text: `${"  ".repeat(process.depth)}${process.pid} ${tail(process.command, 40)}` }))
      .filter((_, value) => !head.processes[value]!.old);
    this.process.show([{ value: -1, text: "All processes" }, ...processes], view.process);
  }

  /** The amount of the view: exact, or with its interval. */
  private showTotal(): void {
    const { view, data } = this;
    const of = this.amounts;
    const bytes = sum(of.bytes), blocks = Math.round(sum(of.blocks));
    const isWhole = view.thread < 0 && view.process < 0 && view.only.length === 0 && view.without.length === 0 && !isCompared(data, view);
    const whole = isWhole ? data.head.sums.find((one) => !one.old && one.domain === view.domain && one.at === view.moment) : undefined;
    const variance = sum(of.bytesVariance);
    let range = whole?.size_interval ?? undefined;
    if (!whole?.size_interval && variance > 0) range = interval(bytes, variance);
    const tilde = range ? "~" : "";
    this.total.dataset["bytes"] = String(bytes);
    this.total.dataset["blocks"] = String(blocks);
    this.total.replaceChildren(el("b", {}, `${tilde}${size(bytes)}`), ` in ${tilde}${counted(blocks, this.noun)}`);
    if (range) this.total.append(el("span", { class: "quiet" }, ` ${size(range[0])} to ${size(range[1])}, 95 %`));
  }

  private showChips(): void {
    const { view } = this;
    const chip = (text: string, title: string, change: Partial<View>) => {
      const button = el("button", { type: "button", class: "chip", title }, text, el("span", { "aria-hidden": "true" }, " ×"));
      button.addEventListener("click", () => this.go(change));
      return button;
    };
    const short = (name: string) => tail(folded(name), 48);
    const chips = [
      ...view.only.map((name) => chip(`Only ${short(name)}`, name, { only: view.only.filter((one) => one !== name), zoom: [] })),
      ...view.without.map((name) => chip(`Without ${short(name)}`, name, { without: view.without.filter((one) => one !== name), zoom: [] })),
    ];
    if (view.sandwich && view.tab === "graph") chips.unshift(chip(`Callers and callees of ${short(view.sandwich)}`, view.sandwich, { sandwich: "", zoom: [] }));
    this.chips.replaceChildren(...chips);
  }

  private showGraph(): void {
    const { view, data } = this;
    const shape = { plumbing: view.plumbing, lines: view.lines, fold: view.fold, unit: view.unit };
    const { main, other } = this.ofGraph(this.viewKey(), () => {
      if (view.sandwich) {
        const both = sandwich(data, this.amounts, shape, view.sandwich);
        return { main: new Layout(both.callees, view.unit), other: new Layout(both.callers, view.unit) };
      }
      const tree = view.inverted ? fromLeaves(data, this.amounts, shape) : fromRoot(data, this.amounts, shape);
      return { main: new Layout(tree, view.unit), other: undefined };
    });
    this.direction.element.hidden = view.sandwich !== "";
    this.direction.show([{ value: 0, text: "Callers first", title: "From the root of the tracebacks to the blocks" },
      { value: 1, text: "Leaves first", title: "From the blocks to their callers" }], view.inverted ? 1 : 0);
    for (const option of this.options) option.show(option.inverse ? !view[option.name] : view[option.name]);
    const isEmpty = main.value[0] === 0;
    this.empty.hidden = !isEmpty;
    this.flame.element.hidden = this.flame.details.hidden = this.legend.hidden = isEmpty;
    this.empty.textContent = this.nothing();
    this.flame.show({
      main, other, rootName: "all", unit: view.unit, noun: this.noun, sampled: data.head.sampled, upwards: view.flame, whole: view.whole, lines: view.lines,
      source: view.source, groups: this.colours, zoom: view.zoom, search: view.search,
    });
    if (document.activeElement !== this.search) this.search.value = view.search;
    if (view.search.trim()) {
      const { boxes, amount, whole } = this.flame.matches;
      this.found.textContent = boxes === 0 ? (view.plumbing ? "no match" : "no match in what is shown") : `${number(boxes)} · ${share(amount, whole)}`;
    } else {
      this.found.textContent = "";
    }
    this.showLegend();
  }

  /** Why a view has nothing. */
  private nothing(): string {
    const { view, data } = this;
    if (view.only.length || view.without.length) return "No traceback passes the filters: remove one of them.";
    if (view.sandwich) return "The function has no memory in this view.";
    if (isCompared(data, view)) return { grown: "Nothing has grown.", shrunk: "Nothing has shrunk.", new: "Nothing is new.", gone: "Nothing is gone.", allocated: "Nothing was allocated in the range." }[view.measure];
    return `There are no ${this.noun}s in this view.`;
  }

  private showLegend(): void {
    const names = [...this.colours.entries()];
    this.legend.replaceChildren(...names.map(([name, index]) => el("span", {}, el("span", { class: `swatch group-${index + 1}` }), tail(name, 32))),
      ...(names.length >= GROUPS ? [el("span", {}, el("span", { class: "swatch group-other" }), "others")] : []));
  }

  /** Groups of modules by their part of the picture, the largest first. */
  private rankedGroups(): Map<string, number> {
    const { data } = this;
    const { nodes, rows } = data;
    const sums = new Float64Array(nodes.length), areas = new Map<string, number>();
    for (let row = 0; row < rows.length; row += 1) if (rows.domain[row] === data.head.domain) sums[rows.node[row]!]! += rows.peakSize[row]!;
    for (let node = nodes.length - 1; node >= 0; node -= 1) if (nodes.parent[node]! >= 0) sums[nodes.parent[node]!]! += sums[node]!;
    const hidden = hiddenOf(data, false);
    const byFrame = new Float64Array(data.frames.function.length);
    for (let node = 0; node < nodes.length; node += 1) if (!hidden[node]) byFrame[nodes.frame[node]!]! += sums[node]!;
    byFrame.forEach((area, frame) => {
      if (area > 0) areas.set(this.ownerOf(frame), (areas.get(this.ownerOf(frame)) ?? 0) + area);
    });
    const ranked = [...areas.entries()].sort((one, other) => other[1] - one[1]).slice(0, GROUPS);
    return new Map(ranked.map(([name], index) => [name, index]));
  }

  private showTable(): void {
    const { view, data } = this;
    const isCompare = isCompared(data, view);
    const all: { value: By; text: string; disabled?: boolean; title?: string }[] = [
      { value: "line", text: "Lines" }, { value: "function", text: "Functions" }, { value: "file", text: "Files" }, { value: "module", text: "Modules" },
      { value: "thread", text: "Threads", disabled: isCompare || view.moment === "instant", title: "Threads are known at the snapshot, at the peak and in total" },
    ];
    this.by.show(all, view.by);
    const hasPast = this.timeline !== undefined;
    const shown = this.ofTable(JSON.stringify([this.viewKey(), view.by]), () => groups(data, view, this.amounts, this.changes()));
    const isThreads = view.by === "thread";
    this.grid.show({
      groups: shown, total: { bytes: sum(this.amounts.bytes), blocks: sum(this.amounts.blocks) }, unit: view.unit, sampled: data.head.sampled,
      size: isCompare ? view.measure[0]!.toUpperCase() + view.measure.slice(1) : "Size",
      change: isThreads || !hasPast || (isCompare && view.measure !== "allocated") ? undefined
        : view.moment === "range" ? "Change of the live bytes in the range" : "Change of the live bytes in the second half of the time up to this moment",
      series: hasPast && !isThreads ? this.series() : undefined, hasThrough: !isThreads, sort: view.sort, filter: view.filter,
    });
    if (document.activeElement !== this.filter) this.filter.value = view.filter;
  }

  /** By node: the change of the bytes. */
  private changes(): Float64Array | undefined {
    const { data, view } = this;
    if (!this.timeline || (isCompared(data, view) && view.measure !== "allocated")) return undefined;
    const changes = new Float64Array(data.nodes.length);
    for (const history of data.histories) {
      const process = data.head.processes[history.process]!;
      if (process.old || (view.process >= 0 && history.process !== view.process)) continue;
      const [since, until] = this.growthTime();
      history.visit(history.stepAt(since) ?? -1, history.stepAt(until) ?? -1, (row, change) => {
        if (data.rows.domain[row] === view.domain) changes[data.rows.node[row]!]! += history.changes.size[change]!;
      });
    }
    return changes;
  }

  /** The time that growth is counted in: a range, or the second half of the time up to the moment of the view. */
  private growthTime(): [number, number] {
    const { view, data } = this;
    const histories = data.histories.filter((history) => !data.head.processes[history.process]!.old);
    const begin = Math.min(...histories.map((history) => history.begun));
    let until = Math.max(...histories.map((history) => history.last));
    if (view.moment === "range") return [view.since, view.at];
    if (view.moment === "instant") until = view.at;
    else if (view.moment === "peak") until = this.timeline!.peakOf(view.domain);
    return [(begin + until) / 2, until];
  }

  /** Live bytes of the groups over time. */
  private series(): ((group: Group) => Float64Array) | undefined {
    const { data, view } = this;
    return this.ofSeries(JSON.stringify([view.domain, view.process, view.by]), () => {
      const { of } = groupsOf(data, view.by);
      const blamed = blamedOf(data, view.domain);
      const deltas = new Map<number, Float64Array>();
      const histories = data.histories.filter((history) => !data.head.processes[history.process]!.old);
      const begin = Math.min(...histories.map((history) => history.begun)), end = Math.max(...histories.map((history) => history.last));
      for (const history of histories) {
        if (view.process >= 0 && history.process !== view.process) continue;
        history.visit(-1, history.end.length - 1, (row, change, step) => {
          if (data.rows.domain[row] !== view.domain) return;
          const group = of[data.nodes.frame[blamed[data.rows.node[row]!]!]!]!;
          let series = deltas.get(group);
          if (!series) deltas.set(group, (series = new Float64Array(POINTS)));
          const time = history.begun + history.end[step]!;
          series[Math.min(POINTS - 1, Math.floor(((time - begin) / Math.max(end - begin, 1)) * POINTS))]! += history.changes.size[change]!;
        });
      }
      for (const series of deltas.values()) for (let point = 1; point < POINTS; point += 1) series[point]! += series[point - 1]!;
      const nothing = new Float64Array(POINTS);
      return (group) => deltas.get(of[group.frame]!) ?? nothing;
    });
  }

  /** Opens a row of the table in the graph. */
  private open(group: Group): void {
    const { frames } = this.data;
    if (group.frame < 0) return;
    if (this.view.by === "function" || this.view.by === "line") this.go({ tab: "graph", sandwich: frames.name(group.frame), zoom: [] });
    else this.go({ tab: "graph", search: this.view.by === "file" ? frames.fileOf(group.frame) : base(group.name), zoom: [], sandwich: "" });
  }

  // Keys, tabs, theme, help

  private makeTabs(): void {
    const names: [Tab, string][] = [["graph", "Flame graph"], ["table", "Table"], ["sizes", "Sizes"]];
    this.tabs.append(...names.map(([name, text]) => {
      const tab = el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` }, text);
      tab.addEventListener("click", () => this.go({ tab: name }));
      return tab;
    }));
    this.tabs.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const at = names.findIndex(([name]) => name === this.view.tab);
      this.go({ tab: names[(at + step + names.length) % names.length]![0] });
      document.getElementById(`tab-${this.view.tab}`)?.focus();
    });
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const isTyping = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (isTyping) {
      if (event.key === "Escape") (event.target as HTMLElement).blur();
      return;
    }
    const { view } = this;
    const actions: Record<string, () => void> = {
      "/": () => (view.tab === "table" ? this.filter : this.search).focus(),
      "?": () => this.help.showModal(),
      n: () => this.flame.next(1),
      N: () => this.flame.next(-1),
      g: () => this.go({ tab: "graph" }),
      t: () => this.go({ tab: "table" }),
      z: () => this.go({ tab: "sizes" }),
      i: () => this.go({ inverted: !view.inverted, zoom: [], sandwich: "" }),
      p: () => this.go({ plumbing: !view.plumbing, zoom: [] }),
      d: () => this.turnTheme(),
      Escape: () => {
        // One step back: the sandwich, the zoom, the last filter, the past.
        if (view.zoom.length) this.go({ zoom: view.zoom.slice(0, -1) });
        else if (view.sandwich) this.go({ sandwich: "" });
        else if (view.without.length) this.go({ without: view.without.slice(0, -1) });
        else if (view.only.length) this.go({ only: view.only.slice(0, -1) });
        else if (view.search) this.go({ search: "" });
        else if (view.moment === "instant" || view.moment === "range") this.go({ moment: this.data.head.at });
      },
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  private turnTheme(): void {
    const root = document.documentElement;
    const isDark = root.dataset["theme"] ? root.dataset["theme"] === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset["theme"] = isDark ? "light" : "dark";
    this.recolour();
  }

  private recolour(): void {
    this.flame.recolour();
    this.timeline?.recolour();
  }

  private concernSummary(): string {
    const loud = this.data.head.concerns.find((text) => /^[A-Z]{3,}/.test(text));
    return loud ? tail(loud, 200) : counted(this.data.head.concerns.length, "note");
  }

  private makeHelp(): HTMLDialogElement {
    const keys: [string, string][] = [
      ["← → ↑ ↓", "move between boxes, rows, instants"], ["Enter", "zoom into a box; open a row"], ["Escape", "one step back out"], ["Home", "the root"],
      ["/", "find, or filter the table"], ["n  N", "next match, match before"], ["s", "callers and callees of the function"], ["o", "only tracebacks through the function"],
      ["h", "hide the tracebacks through the function"], ["i", "callers first or leaves first"], ["p", "start-up and plumbing frames"], ["g  t  z", "graph, table, sizes"],
      ["Shift ← →", "over time: a range"], ["d", "dark or light"], ["?", "this help"],
    ];
    const close = el("button", { type: "button" }, "Close");
    const dialog = el("dialog", { "aria-label": "Keys and words" },
      el("h2", {}, "Keys"),
      el("dl", {}, ...keys.flatMap(([key, text]) => [el("dt", {}, ...key.split(/ {2}| (?=[←→↑↓])/).map((one) => el("kbd", {}, one))), el("dd", {}, text)])),
      el("h2", {}, "Words"),
      el("p", {}, "A box is as wide as the memory of the tracebacks through it. python, native and mmap are layers of the same memory: they are never added up. " +
        "Size counts a block at the line of the program that asked for it; With callees counts it at each line of its traceback. ~ marks an estimate from samples. " +
        "(smaller ones) are stacks too small for a history of their own."),
      el("p", { class: "quiet" }, `Heapline ${this.data.head.heapline}`), close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    return dialog;
  }
}

const TITLES: Record<string, string> = {
  python: "Memory that Python's allocators handed out", native: "malloc and its family", mmap: "Ranges that the program mapped itself",
  "mmap:reserved": "Reserved address space: no memory",
};

async function start(): Promise<void> {
  const text = (id: string) => document.getElementById(id)?.textContent ?? "";
  const head = JSON.parse(text("head")) as Head;
  document.title = head.title;
  const columns = await unpack(text("data"));
  // The text is not needed again.
  document.getElementById("data")?.remove();
  new Page(new Data(head, columns));
  requestAnimationFrame(() => {
    performance.mark("painted");
    document.documentElement.dataset["ready"] = "yes";
  });
}

start().catch((error: unknown) => {
  document.body.append(el("p", { role: "alert", class: "empty" }, `This page cannot be shown: ${error instanceof Error ? error.message : String(error)}. A browser from 2023 on is needed.`));
});
