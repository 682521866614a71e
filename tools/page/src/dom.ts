// Elements of the page. Names from the snapshot become text, never HTML.

export type Child = Node | string;

type Attributes = Record<string, string | number | boolean | undefined>;

export function el<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

export interface Option<T> {
  value: T;
  text: string;
  title?: string | undefined;
  disabled?: boolean;
}

/** Buttons of which one is pressed: a single tab stop, with arrow keys within. */
export class Choice<T extends string | number> {
  readonly element: HTMLElement;
  private buttons: HTMLButtonElement[] = [];
  private options: Option<T>[] = [];

  constructor(label: string, private readonly chosen: (value: T) => void) {
    this.element = el("div", { role: "radiogroup", "aria-label": label, class: "choice" });
    this.element.addEventListener("keydown", (event) => this.move(event));
  }

  show(options: Option<T>[], value: T): void {
    const hadFocus = this.element.contains(document.activeElement);
    this.options = options;
    this.buttons = options.map((option) => {
      const isOn = option.value === value;
      const button = el("button", {
        type: "button", role: "radio", "aria-checked": isOn ? "true" : "false", tabindex: isOn ? 0 : -1,
        disabled: option.disabled, title: option.title,
      }, option.text);
      button.addEventListener("click", () => this.chosen(option.value));
      return button;
    });
    this.element.replaceChildren(...this.buttons);
    const enabled = this.buttons.filter((button) => !button.disabled);
    if (enabled.length && !enabled.some((button) => button.tabIndex === 0)) enabled[0]!.tabIndex = 0;
    if (hadFocus) this.buttons.find((button) => button.tabIndex === 0)?.focus();
  }

  private move(event: KeyboardEvent): void {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const at = this.buttons.findIndex((button) => button === document.activeElement);
    for (let tried = 1; tried <= this.buttons.length; tried += 1) {
      const next = (at + step * tried + this.buttons.length * tried) % this.buttons.length;
      if (this.options[next]!.disabled) continue;
      this.chosen(this.options[next]!.value);
      return;
    }
  }
}

/** A switch with two states. */
export function toggle(text: string, title: string, flipped: (on: boolean) => void): { element: HTMLElement; show(on: boolean): void } {
  const button = el("button", { type: "button", class: "toggle", title, "aria-pressed": "false" }, text);
  button.addEventListener("click", () => flipped(button.getAttribute("aria-pressed") !== "true"));
  return { element: button, show: (on) => button.setAttribute("aria-pressed", String(on)) };
}

export function select<T extends string | number>(label: string, chosen: (value: T) => void): {
  element: HTMLSelectElement;
  show(options: Option<T>[], value: T): void;
} {
  const element = el("select", { "aria-label": label });
  let known: Option<T>[] = [];
  element.addEventListener("change", () => chosen(known[element.selectedIndex]!.value));
  return {
    element,
    show(options, value) {
      known = options;
      element.replaceChildren(...options.map((option) => el("option", { title: option.title }, option.text)));
      element.selectedIndex = options.findIndex((option) => option.value === value);
    },
  };
}

/** A canvas as large as its place, in pixels of the screen. */
export class Surface {
  readonly canvas = el("canvas", { "aria-hidden": "true" });
  readonly context: CanvasRenderingContext2D;
  width = 0;
  height = 0;

  constructor() {
    const context = this.canvas.getContext("2d");
    if (!context) throw new Error("this browser draws no canvas");
    this.context = context;
  }

  /** Sets the size, and clears the surface. */
  resize(width: number, height: number): CanvasRenderingContext2D {
    const ratio = globalThis.devicePixelRatio || 1;
    const [wide, high] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    this.width = width;
    this.height = height;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, height);
    return this.context;
  }
}

/** Calls a function before the next frame, once for many calls. */
export function onceAFrame(work: () => void): () => void {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      work();
    });
  };
}

/** Puts a text on the clipboard. Returns whether that was possible. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "offscreen", "aria-hidden": "true", tabindex: -1 });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
