// The data of the page: columns as report writes them (tools/src/export/page/column.rs).

export interface Numbers {
  readonly length: number;
  [index: number]: number;
}

type Entry = [name: string, coding: string, count: number, bytes: number];

/** Columns by name, decoded when they are asked for. */
export class Columns {
  private readonly places = new Map<string, { coding: string; count: number; begin: number; bytes: number }>();

  constructor(private readonly bytes: Uint8Array) {
    const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const list = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length))) as Entry[];
    let begin = 4 + length;
    for (const [name, coding, count, size] of list) {
      this.places.set(name, { coding, count, begin, bytes: size });
      begin += size;
    }
  }

  /** A column of whole numbers below 2^32. */
  indices(name: string): Uint32Array {
    const place = this.place(name);
    return this.decode(place, new Uint32Array(place.count));
  }

  /** A column of numbers. Numbers above 2^53 lose their last digits. */
  numbers(name: string): Float64Array {
    const place = this.place(name);
    return this.decode(place, new Float64Array(place.count));
  }

  reals(name: string): Float64Array {
    const { begin, count } = this.place(name);
    const view = new DataView(this.bytes.buffer, this.bytes.byteOffset + begin);
    return Float64Array.from({ length: count }, (_, index) => view.getFloat64(index * 8, true));
  }

  texts(name: string): string[] {
    const { begin, count } = this.place(name);
    const decoder = new TextDecoder();
    const texts = new Array<string>(count);
    let at = begin;
    for (let index = 0; index < count; index += 1) {
      let length = 0;
      let scale = 1;
      let byte: number;
      do {
        byte = this.bytes[at++]!;
        length += (byte & 0x7f) * scale;
        scale *= 128;
      } while (byte >= 0x80);
      texts[index] = decoder.decode(this.bytes.subarray(at, at + length));
      at += length;
    }
    return texts;
  }

  private place(name: string) {
    const place = this.places.get(name);
    if (!place) throw new Error(`the page has no column ${name}`);
    return place;
  }

  private decode<T extends Numbers>(place: { coding: string; count: number; begin: number }, out: T): T {
    const { coding, count } = place;
    const { bytes } = this;
    const plain = coding === "plain";
    const steps = coding === "steps";
    let at = place.begin;
    let last = 0;
    for (let index = 0; index < count; index += 1) {
      let byte = bytes[at++]!;
      let value = byte & 0x7f;
      let scale = 128;
      while (byte >= 0x80) {
        byte = bytes[at++]!;
        value += (byte & 0x7f) * scale;
        scale *= 128;
      }
      if (!plain) value = value % 2 === 0 ? value / 2 : -(value + 1) / 2;
      if (steps) {
        value += last;
        last = value;
      }
      out[index] = value;
    }
    return out;
  }
}

/** Decodes and decompresses the text of the data. */
export async function unpack(base64: string): Promise<Columns> {
  const text = atob(base64.trim());
  const packed = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) packed[index] = text.charCodeAt(index);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Columns(new Uint8Array(await new Response(stream).arrayBuffer()));
}
