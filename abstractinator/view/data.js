// Data of the page: the text, its levels, and the bytes its codes decode to.

const given = JSON.parse(document.getElementById('data').textContent);

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

function numbers([type, base64]) {
  return new globalThis[type](bytesOf(base64).buffer);
}

// Returns the last index whose value is at most x; values are ascending.
function lastAtMost(values, x) {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (values[middle] <= x) low = middle;
    else high = middle - 1;
  }
  return low;
}

class Level {
  // begin: position of each id of the level in the text, and the end of the
  // last one.
  constructor(of, begin, below) {
    this.begin = begin;
    this.rule = of.rule;
    this.numCodes = of.numCodes;
    this.escape = of.escape;
    this.queries = of.queries;
    this.codes = numbers(of.codes);
    this.shortBits = numbers(of.short);
    // In hundredths of a bit.
    this.bits = {
      entropy: numbers(of.entropy),
      cost: numbers(of.cost),
      given: numbers(of.given),
    };
    const lengths = numbers(of.lengths);
    this.count = lengths.length;
    // The first id of each segment, and one past the last of all.
    this.first = new Uint32Array(this.count + 1);
    lengths.forEach((n, i) => { this.first[i + 1] = this.first[i] + n; });
    this.start = Float64Array.from(this.first, (id) => begin[id]);
    this.own(below);
    this.keys = Array.from({length: this.count}, (_, i) => this.key(i));
    this.byKey = new Map();
    this.keys.forEach((key, i) => {
      if (!this.byKey.has(key)) this.byKey.set(key, []);
      this.byKey.get(key).push(i);
    });
  }

  // Sets `owner`, the segment of each position of the text, and `from` and `to`,
  // the positions of each segment.
  own(below) {
    const segmentOf = new Uint32Array(this.first[this.count]);
    for (let i = 0; i < this.count; i++) {
      segmentOf.fill(i, this.first[i], this.first[i + 1]);
    }
    this.owner = below
      ? below.owner.map((segment) => segmentOf[segment * below.queries])
      : segmentOf;
    this.from = Uint32Array.from(this.start.subarray(0, this.count), Math.ceil);
    this.to = this.from.slice();
    this.owner.forEach((segment, position) => {
      if (this.from[segment] === this.to[segment]) this.from[segment] = position;
      this.to[segment] = position + 1;
    });
  }

  // Returns whether a segment was cut because its row ran short of slots.
  isShort(segment) {
    return (this.shortBits[segment >> 3] >> (7 - (segment & 7)) & 1) === 1;
  }

  codesOf(segment) {
    const at = segment * this.queries;
    return this.codes.subarray(at, at + this.queries);
  }

  key(segment) {
    return Array.from(this.codesOf(segment), (code) => this.label(code)).join('·');
  }

  // Returns what stands for a code: * for that of all segments without an entry.
  label(code) {
    return code === this.escape ? '*' : String(code);
  }

  // Returns a multiple of the golden ratio: similar codes get distant hues.
  hue(segment) {
    return ((this.codes[segment * this.queries] * 0.6180339887) % 1) * 360;
  }

  at(position) {
    return Math.min(lastAtMost(this.start, position), this.count - 1);
  }

  // Returns the position of each code in the text, and the end of the last one:
  // the codes of a segment divide it evenly.
  codeBegins() {
    const q = this.queries;
    const begins = new Float64Array(this.count * q + 1);
    for (let i = 0; i < this.count; i++) {
      const size = this.start[i + 1] - this.start[i];
      for (let k = 0; k < q; k++) begins[i * q + k] = this.start[i] + size * k / q;
    }
    begins[this.count * q] = this.start[this.count];
    return begins;
  }

  sum(name, segment) {
    let total = 0;
    for (let i = this.first[segment]; i < this.first[segment + 1]; i++) {
      total += this.bits[name][i];
    }
    return total / 100;
  }
}

const END = 257;
const text = bytesOf(given.text);
const numIds = text.length + 1;
const levels = [];
given.levels.forEach((of, number) => {
  const begin = number
    ? levels[number - 1].codeBegins()
    : Float64Array.from({length: numIds + 1}, (_, i) => i);
  levels.push(new Level(of, begin, levels[number - 1]));
});
const peak = levels[levels.length - 1];
const topCost = given.topCost === null ? null : numbers(given.topCost);

// Id decoded at each position: -1 for none, RIGHT for the true id.
const RIGHT = -2;
const decoded = numbers(given.decoded);
const forced = numbers(given.forced);

// Bytes that top segments decode to past their end: how many, and the first.
const beyond = new Map();
{
  const counts = numbers(given.beyond.counts);
  const bytes = numbers(given.beyond.bytes);
  let at = 0;
  numbers(given.beyond.segments).forEach((segment, i) => {
    const few = Math.min(counts[i], given.beyond.most);
    beyond.set(segment, {count: counts[i], bytes: bytes.subarray(at, at + few)});
    at += few;
  });
}

function idAt(position) {
  return position < text.length ? text[position] : END;
}

// Returns the range of positions of a segment, which may be empty: those of the
// segments below whose first code is one of its ids.
function range(level, segment) {
  const {from, to} = levels[level];
  return [from[segment], to[segment]];
}

function bytesBetween(from, to) {
  return Array.from(text.subarray(from, Math.min(to, text.length)));
}

// Returns the bytes that a segment decodes to from codes alone.
function decodedOf(level, segment) {
  const [from, to] = range(level, segment);
  const found = [];
  for (let i = from; i < to; i++) {
    const id = decoded[i] === RIGHT ? idAt(i) : decoded[i];
    if (id >= 0 && id < 256) found.push(id);
    const more = beyondAt(i);
    if (more) found.push(...more.bytes);
  }
  return found;
}

// Returns bytes decoded past the top segment that a position ends, if any.
function beyondAt(position) {
  const segment = peak.owner[position];
  if (position + 1 < peak.to[segment]) return undefined;
  return beyond.get(segment);
}
