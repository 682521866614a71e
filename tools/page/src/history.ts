// Memory over time: steps of a process, and changes of its rows.

import type { Columns } from "./columns.ts";

export interface Told {
  process: number;
  begun: number;
  utc_offset: number;
  steps: number;
  domains: number[];
  marks: { at: number; kind: string; text: string }[];
}

export interface Series {
  current: Float64Array;
  greatest: Float64Array;
  allocated: Float64Array;
}

/** Changes of the rows of all processes; those of step s of a process lie in [first[s], first[s + 1]). */
export interface Changes {
  row: Uint32Array;
  size: Float64Array;
  count: Float64Array;
  allocated: Float64Array;
  allocs: Float64Array;
}

export class History {
  private constructor(
    readonly process: number,
    readonly begun: number,
    readonly utcOffset: number,
    readonly marks: Told["marks"],
    /** End of each step: milliseconds since the begin. */
    readonly end: Float64Array,
    readonly resident: Float64Array,
    readonly swap: Float64Array,
    readonly threads: Float64Array,
    /** Limit of the control group, increased by 1; 0 for none. */
    readonly limit: Float64Array,
    readonly domains: Map<number, Series>,
    readonly first: Float64Array,
    readonly changes: Changes,
  ) {}

  static all(columns: Columns, told: Told[]): History[] {
    const columnsOf = (names: string[]) => names.map((name) => columns.numbers(name));
    const [end, resident, swap, threads, limit] = columnsOf(["step.end", "step.resident", "step.swap", "step.threads", "step.limit"]) as
      [Float64Array, Float64Array, Float64Array, Float64Array, Float64Array];
    const [current, greatest, allocated] = columnsOf(["sum.current", "sum.greatest", "sum.allocated"]) as
      [Float64Array, Float64Array, Float64Array];
    const [size, count, bytes, allocs] = columnsOf(["change.size", "change.count", "change.allocated", "change.allocs"]) as
      [Float64Array, Float64Array, Float64Array, Float64Array];
    const changes = { row: columns.indices("change.row"), size, count, allocated: bytes, allocs };
    const counts = columns.numbers("step.changes");
    let step = 0, sum = 0, change = 0;
    return told.map((one) => {
      const of = (column: Float64Array) => column.subarray(step, step + one.steps);
      const first = new Float64Array(one.steps + 1);
      first[0] = change;
      for (let index = 0; index < one.steps; index += 1) first[index + 1] = change += counts[step + index]!;
      const domains = new Map<number, Series>();
      for (const domain of one.domains) {
        const part = (column: Float64Array) => column.subarray(sum, sum + one.steps);
        domains.set(domain, { current: part(current), greatest: part(greatest), allocated: part(allocated) });
        sum += one.steps;
      }
      const history = new History(one.process, one.begun, one.utc_offset, one.marks, of(end), of(resident), of(swap), of(threads), of(limit), domains, first, changes);
      step += one.steps;
      return history;
    });
  }

  get begin(): number {
    return this.begun;
  }

  /** Time of the last step: milliseconds since 1970. */
  get last(): number {
    return this.begun + (this.end[this.end.length - 1] ?? 0);
  }

  /** The step that contains a time, or the last step. None before the begin. */
  stepAt(time: number): number | undefined {
    if (time < this.begun) return undefined;
    const wanted = time - this.begun;
    let low = 0, high = this.end.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.end[middle]! < wanted) low = middle + 1;
      else high = middle;
    }
    return Math.min(low, this.end.length - 1);
  }

  /** Calls `visit` for each change of the steps in (after, until]; `after` may be -1. */
  visit(after: number, until: number, visit: (row: number, change: number, step: number) => void): void {
    const { row } = this.changes;
    for (let step = after + 1; step <= until; step += 1) {
      const end = this.first[step + 1]!;
      for (let change = this.first[step]!; change < end; change += 1) visit(row[change]!, change, step);
    }
  }
}
